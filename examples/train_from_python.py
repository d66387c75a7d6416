"""Train a dual encoder on pairs from Python: python examples/train_from_python.py openmoji outputs/mine"""

import argparse

from accelerate.utils import set_seed

from xmodal_hf.training import arguments as options
from xmodal_hf.training.batches import load_pair_table
from xmodal_hf.training.loop import build_accelerator, run_phase
from xmodal_hf.training.phases import build_pair_phase


def train(dataset: str, output_dir: str, max_steps: int | None = None, **contrastive: object) -> None:
    """Train on `dataset` and save the model with its processor to `output_dir`.

    Args:
        dataset: what `--dataset` of train_contrastive.py takes.
        output_dir: folder of the model and of the log.
        max_steps: number of steps; None: one pass over the data.
        contrastive: fields of `ContrastiveArguments`, such as the towers.
    """
    training = options.TrainingArguments(output_dir=output_dir, max_steps=max_steps, batch_size=16, report_to="none")
    pairs = options.PairArguments(dataset=[dataset])
    accelerator = build_accelerator(training)
    set_seed(training.seed)
    phase = build_pair_phase(
        *(accelerator, training, options.TextModelArguments(), pairs),
        *(options.ContrastiveArguments(**contrastive), options.SentenceArguments(), options.LoraArguments()),  # type: ignore[arg-type]
        table=load_pair_table(pairs, training.exclude_texts),
        sentences=None,
    )
    result = run_phase(accelerator, phase.model, phase.objective, phase.loader, training, "pairs")
    phase.model.save_pretrained(output_dir)
    phase.processor.save_pretrained(output_dir)
    accelerator.print(f"{result.steps} steps, last loss {result.last_log['loss']:.3f}: {output_dir}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("output_dir")
    parser.add_argument("--max_steps", type=int)
    train(**vars(parser.parse_args()))

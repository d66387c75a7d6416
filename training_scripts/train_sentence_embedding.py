"""Phase 1: train a language encoder as a sentence encoder (SimCSE), unsupervised or supervised.

    accelerate launch training_scripts/train_sentence_embedding.py --sentences corpus.txt.gz \\
        --text_model bert-base-uncased --pooling cls --head mlp --learning_rate 3e-5 --output_dir outputs/simcse

With --lora_rank a LoRA adapter is trained, as for large decoders; --lora_merge adds it to the weights. The output
folder is a `SentenceEncoder` checkpoint (or an adapter of the one that --text_model names) with its tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

from xmodal_hf.commands import run_command
from xmodal_hf.losses import SENTENCE_LOSSES
from xmodal_hf.options import check_inputs, parse_arguments
from xmodal_hf.training.arguments import (
    NOT_IN_PHASE_1,
    LoraArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    ValidationArguments,
    check_phase_1,
)
from xmodal_hf.training.loss_arguments import with_weights_of

# Options that --help shows first.
EVERYDAY = (
    *("sentences", "sentence_column", "triplets", "text_model", "pooling", "head", "max_length", "temperature"),
    "lora_rank",
    *("output_dir", "num_epochs", "batch_size", "learning_rate", "mixed_precision", "num_workers", "seed"),
    *("eval_steps", "eval_sts", "resume", "dry_run"),
)


def main(args: Sequence[str] | None = None) -> None:
    """Run phase 1 and write the checkpoint, the log, its plot and the resolved recipe."""
    sentence_class = with_weights_of(SentenceArguments, SENTENCE_LOSSES)
    classes = (TrainingArguments, ValidationArguments, TextModelArguments, sentence_class, LoraArguments)
    arguments = parse_arguments(classes, __doc__, args, check_phase_1, EVERYDAY, NOT_IN_PHASE_1)
    training, validation, text, sentence, lora = arguments

    if not training.dry_run:  # a dry run replaces sources that are missing
        check_inputs(*arguments)

    # After parsing: --help and a wrong option answer without torch.
    from accelerate.utils import set_seed

    from xmodal_hf.features.processes import main_process_first
    from xmodal_hf.training.batches import check_length, load_sentence_table
    from xmodal_hf.training.defaults import describe_defaults, resolve_sentence_defaults
    from xmodal_hf.training.dry_run import estimate_sentences
    from xmodal_hf.training.log import inform
    from xmodal_hf.training.loop import build_accelerator, run_phase
    from xmodal_hf.training.output import finish_output, options_of, start_output
    from xmodal_hf.training.phases import build_sentence_phase
    from xmodal_hf.training.validation import build_validation

    accelerator = build_accelerator(training)
    if training.dry_run:
        accelerator.print(estimate_sentences(accelerator, training, text, sentence, validation, lora))
        return
    training, text = resolve_sentence_defaults(training, text, lora)
    arguments = (training, validation, text, sentence, lora)
    inform(accelerator, describe_defaults(training, text))
    resume_from = start_output(accelerator, *arguments)
    table = main_process_first(
        accelerator, lambda: load_sentence_table(sentence, training.seed, training.exclude_texts)
    )
    check_length(table, training.expected_items)
    set_seed(training.seed)  # seed of new weights, set here so that they are the same in every process
    phase = build_sentence_phase(accelerator, training, text, sentence, table, lora)
    result = run_phase(
        accelerator,
        phase.model,
        phase.objective,
        phase.loader,
        training,
        "phase 1: sentences",
        resume_from=resume_from,
        options=options_of(*arguments),
        validation=build_validation(accelerator, training, validation, phase.processor),
    )
    finish_output(accelerator, training, result, phase.model, phase.processor, lora, text.text_model)


if __name__ == "__main__":
    run_command(main)

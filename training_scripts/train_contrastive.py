"""Phase 2: train a dual encoder on image-text or audio-text pairs (CLIP, CyCLIP, SigLIP, CLAP).

    accelerate launch training_scripts/train_contrastive.py --dataset openmoji --text_model outputs/simcse \\
        --objective cyclip --output_dir outputs/clip

The language encoder comes from phase 1, from any text model, or from scratch. With --sentences or --triplets both
phases are trained jointly, as here, where somebody's model gets a better language encoder and a small adapter is all
that is published:

    accelerate launch training_scripts/train_contrastive.py --dataset my_pairs --sentences corpus.txt.gz \\
        --model some/dual-encoder --lora_rank 16 --output_dir outputs/adapter

The output folder is an `ImageTextDualEncoder` or `AudioTextDualEncoder` checkpoint (or an adapter) with its processor.
"""

from __future__ import annotations

from collections.abc import Sequence

from xmodal_hf.commands import run_command
from xmodal_hf.losses import LOSSES, SENTENCE_LOSSES
from xmodal_hf.options import check_inputs, parse_arguments
from xmodal_hf.training.arguments import (
    NOT_IN_PHASE_2,
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    ValidationArguments,
    check_phase_2,
)
from xmodal_hf.training.loss_arguments import with_weights_of

# Options that --help shows first.
EVERYDAY = (
    *("dataset", "modality", "split", "image_column", "audio_column", "text_column", "id_column"),
    *("model", "text_model", "image_model", "audio_model", "objective", "sentences", "triplets", "freeze", "lora_rank"),
    *("output_dir", "num_epochs", "batch_size", "learning_rate", "mixed_precision", "num_workers", "seed"),
    *("eval_steps", "eval_split", "resume", "dry_run"),
)


def main(args: Sequence[str] | None = None) -> None:
    """Run phase 2 and write the checkpoint, the log, its plot and the resolved recipe."""
    classes = (
        *(TrainingArguments, ValidationArguments, TextModelArguments, PairArguments),
        *(with_weights_of(ContrastiveArguments, LOSSES), with_weights_of(SentenceArguments, SENTENCE_LOSSES)),
        LoraArguments,
    )
    arguments = parse_arguments(classes, __doc__, args, check_phase_2, EVERYDAY, NOT_IN_PHASE_2)
    training, validation, text, pairs, contrastive, sentence, lora = arguments

    if not training.dry_run:  # a dry run replaces sources that are missing
        check_inputs(*arguments)

    # After parsing: --help and a wrong option answer without torch.
    from accelerate.utils import set_seed

    from xmodal_hf.features.processes import main_process_first
    from xmodal_hf.training.batches import check_length, load_pair_table, load_sentence_table
    from xmodal_hf.training.defaults import describe_defaults, resolve_pair_defaults
    from xmodal_hf.training.dry_run import estimate_pairs
    from xmodal_hf.training.log import inform
    from xmodal_hf.training.loop import build_accelerator, run_phase
    from xmodal_hf.training.output import finish_output, options_of, start_output
    from xmodal_hf.training.phases import build_pair_phase
    from xmodal_hf.training.validation import build_validation

    accelerator = build_accelerator(training)
    if training.dry_run:
        accelerator.print(estimate_pairs(accelerator, training, text, pairs, contrastive, sentence, lora, validation))
        return
    training, text = resolve_pair_defaults(training, text, contrastive, lora, pairs.modality)
    arguments = (training, validation, text, pairs, contrastive, sentence, lora)
    inform(accelerator, describe_defaults(training, text, pairs.modality))
    resume_from = start_output(accelerator, *arguments)
    table = main_process_first(accelerator, lambda: load_pair_table(pairs, training.exclude_texts))
    sentences = None
    if sentence.is_given:
        sentences = main_process_first(
            accelerator, lambda: load_sentence_table(sentence, training.seed, training.exclude_texts)
        )
    check_length(table, training.expected_items)
    set_seed(training.seed)  # seed of new weights, set here so that they are the same in every process
    phase = build_pair_phase(
        accelerator, training, text, pairs, contrastive, sentence, lora, table=table, sentences=sentences
    )
    result = run_phase(
        accelerator,
        phase.model,
        phase.objective,
        phase.loader,
        training,
        "phase 2: pairs" if sentences is None else "pairs and sentences",
        resume_from=resume_from,
        options=options_of(*arguments),
        validation=build_validation(accelerator, training, validation, phase.processor, pairs),
    )
    finish_output(accelerator, training, result, phase.model, phase.processor, lora, contrastive.model)


if __name__ == "__main__":
    run_command(main)

"""Phase 1: train a language encoder as a sentence encoder (SimCSE), unsupervised or supervised.

    accelerate launch training_scripts/train_sentence_embedding.py --sentences corpus.txt.gz \
        --text_model bert-base-uncased --pooling cls --head mlp --learning_rate 3e-5 --output_dir outputs/simcse

The output folder is a `SentenceEncoder` checkpoint with its tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

from xmodal_hf.training.arguments import (
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    ValidationArguments,
    check_phase_1,
    parse_arguments,
)

DESCRIPTION = "Train a sentence encoder (SimCSE)."


def main(args: Sequence[str] | None = None) -> None:
    """Run phase 1 and write the checkpoint, the log, its plot and the resolved recipe."""
    classes = (TrainingArguments, ValidationArguments, TextModelArguments, SentenceArguments)
    arguments = parse_arguments(classes, DESCRIPTION, args, check_phase_1)
    training, validation, text, sentence = arguments

    # After parsing: --help and a wrong option answer without torch.
    from accelerate.utils import set_seed

    from xmodal_hf.training import batches, building
    from xmodal_hf.training.loop import build_accelerator, run_phase, text_sub_batches
    from xmodal_hf.training.output import finish_output, options_of, start_output
    from xmodal_hf.training.validation import build_validation

    accelerator = build_accelerator(training)
    resume_from = start_output(accelerator, *arguments)
    set_seed(training.seed)
    with accelerator.main_process_first():
        table = batches.load_sentence_table(sentence, training.seed)
    tokenizer = building.build_tokenizer(text, lambda: batches.texts_of(None, table))
    model = building.build_sentence_encoder(text, sentence, tokenizer)
    objective = building.build_sentence_objective(sentence, table, text_sub_batches(training, accelerator))
    stream = batches.sentence_stream(accelerator, table, tokenizer, training, text, sentence)
    result = run_phase(
        accelerator,
        model,
        objective,
        stream,
        training,
        "phase 1: sentences",
        resume_from=resume_from,
        options=options_of(*arguments),
        validation=build_validation(accelerator, training, validation, tokenizer),
    )
    finish_output(accelerator, training, result, model, tokenizer)


if __name__ == "__main__":
    main()

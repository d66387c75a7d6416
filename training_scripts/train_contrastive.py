"""Phase 2: train a dual encoder on image-text or audio-text pairs (CLIP, CyCLIP, SigLIP, CLAP).

    accelerate launch training_scripts/train_contrastive.py --dataset openmoji --text_model outputs/simcse \
        --objective cyclip --output_dir outputs/clip

The language encoder comes from phase 1, from any text model, or from scratch. With --sentences or --triplets both
phases are trained jointly, as here, where somebody's model gets a better language encoder and a small adapter is all
that is published:

    accelerate launch training_scripts/train_contrastive.py --dataset my_pairs --sentences corpus.txt.gz \
        --model some/dual-encoder --lora_rank 16 --output_dir outputs/adapter

The output folder is an `ImageTextDualEncoder` or `AudioTextDualEncoder` checkpoint (or an adapter) with its processor.
"""

from __future__ import annotations

from collections.abc import Sequence

from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    ValidationArguments,
    check_phase_2,
    parse_arguments,
)

DESCRIPTION = "Train a dual encoder on pairs, alone or jointly with sentences."


def main(args: Sequence[str] | None = None) -> None:
    """Run phase 2 and write the checkpoint, the log, its plot and the resolved recipe."""
    classes = (
        *(TrainingArguments, ValidationArguments, TextModelArguments, PairArguments),
        *(ContrastiveArguments, SentenceArguments, LoraArguments),
    )
    arguments = parse_arguments(classes, DESCRIPTION, args, check_phase_2)
    training, validation, text, pairs, contrastive, sentence, lora = arguments

    # After parsing: --help and a wrong option answer without torch.
    from accelerate.utils import set_seed

    from xmodal_hf.objectives import JointObjective, Objective
    from xmodal_hf.training import batches, building
    from xmodal_hf.training.loop import build_accelerator, run_phase, text_sub_batches
    from xmodal_hf.training.output import finish_output, options_of, start_output
    from xmodal_hf.training.validation import build_validation

    accelerator = build_accelerator(training)
    resume_from = start_output(accelerator, *arguments)
    set_seed(training.seed)
    with accelerator.main_process_first():
        table = batches.load_pair_table(pairs)
        sentences = batches.load_sentence_table(sentence, training.seed) if sentence.is_given else None
    processor = building.build_processor(
        contrastive, pairs.modality, lambda: building.build_tokenizer(text, lambda: batches.texts_of(table, sentences))
    )
    model = building.build_trained_dual_encoder(text, contrastive, lora, processor)
    sub_batches = text_sub_batches(training, accelerator)
    cross_modal = building.build_cross_modal_objective(contrastive, sub_batches)
    objective: Objective = cross_modal
    stream: batches.Stream = batches.pair_stream(accelerator, table, processor, training, text, pairs)
    if sentences is not None:
        part = building.build_sentence_objective(sentence, sentences, sub_batches)
        objective = JointObjective(cross_modal, part, contrastive.sentence_weight)
        stream = batches.JointStream(
            stream,
            batches.sentence_stream(
                accelerator, sentences, processor.tokenizer, training, text, sentence, contrastive.sentence_batch_size
            ),
        )
    result = run_phase(
        accelerator,
        model,
        objective,
        stream,
        training,
        "phase 2: pairs" if sentences is None else "pairs and sentences",
        resume_from=resume_from,
        options=options_of(*arguments),
        validation=build_validation(accelerator, training, validation, processor, pairs),
    )
    finish_output(accelerator, training, result, model, processor, lora, contrastive.model)


if __name__ == "__main__":
    main()

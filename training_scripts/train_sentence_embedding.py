"""Phase 1: train a language encoder as a sentence encoder (SimCSE), unsupervised or supervised.

    accelerate launch training_scripts/train_sentence_embedding.py --sentences corpus.txt.gz \
        --text_model bert-base-uncased --pooling cls --head mlp --learning_rate 3e-5 --output_dir outputs/simcse

The output folder is a `SentenceEncoder` checkpoint with its tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

from xmodal_hf.training.arguments import SentenceArguments, TextModelArguments, TrainingArguments, parse_arguments


def main(args: Sequence[str] | None = None) -> None:
    """Run phase 1 and write the checkpoint, the log, its plot and the resolved recipe."""
    classes = (TrainingArguments, TextModelArguments, SentenceArguments)
    training, text, sentence = parse_arguments(classes, "Train a sentence encoder (SimCSE).", args)

    # After parsing: --help and a wrong option answer without torch.
    from accelerate.utils import set_seed

    from xmodal_hf.data.collators import SentenceCollator
    from xmodal_hf.data.sampling import SentenceDataset
    from xmodal_hf.data.sentences import load_sentences, load_triplets
    from xmodal_hf.objectives import SentenceObjective
    from xmodal_hf.training.building import build_sentence_encoder, build_tokenizer
    from xmodal_hf.training.loop import build_accelerator, build_loader, run_phase, text_sub_batches
    from xmodal_hf.training.output import finish_output, start_output

    accelerator = build_accelerator(training)
    start_output(accelerator, training, text, sentence)
    set_seed(training.seed)
    with accelerator.main_process_first():
        if sentence.triplets is None:
            table = load_sentences(
                sentence.sentences,
                column=sentence.sentence_column,
                max_sentences=sentence.max_sentences,
                seed=training.seed,
            )
        else:
            table = load_triplets(sentence.triplets, seed=training.seed)
    dataset = SentenceDataset(table)
    tokenizer = build_tokenizer(text, lambda: (text for view in dataset.views for text in table[view]))
    model = build_sentence_encoder(text, sentence, tokenizer)
    objective = SentenceObjective(
        num_views=len(dataset.views),
        temperature=sentence.temperature,
        hard_negative_weight=sentence.hard_negative_weight,
        mlm_weight=sentence.mlm_weight,
        text_sub_batches=text_sub_batches(training, accelerator),
    )
    mlm_probability = sentence.mlm_probability if sentence.mlm_weight > 0 else 0.0
    collator = SentenceCollator(
        tokenizer, max_length=text.max_length, mlm_probability=mlm_probability, seed=training.seed
    )
    loader = build_loader(dataset, collator, training)
    result = run_phase(accelerator, model, objective, loader, training, "phase 1: sentences")
    finish_output(accelerator, training, result, model, tokenizer)


if __name__ == "__main__":
    main()

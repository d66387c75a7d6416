"""Phase 2: train a dual encoder on image-text or audio-text pairs (CLIP, CyCLIP, SigLIP, CLAP).

    accelerate launch training_scripts/train_contrastive.py --dataset openmoji --text_model outputs/simcse \
        --objective cyclip --output_dir outputs/clip

The language encoder comes from phase 1, from any text model, or from scratch. The output folder is an
`ImageTextDualEncoder` or `AudioTextDualEncoder` checkpoint with its processor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    PairArguments,
    TextModelArguments,
    TrainingArguments,
    parse_arguments,
)

# The smallest side of a crop of 70 % of the area with aspect 1.15 (ImageAugment's defaults) is 0.78 of the picture's.
_CROP_MARGIN = 1 / 0.78


def main(args: Sequence[str] | None = None) -> None:
    """Run phase 2 and write the checkpoint, the log, its plot and the resolved recipe."""
    classes = (TrainingArguments, TextModelArguments, PairArguments, ContrastiveArguments)
    training, text, pairs, contrastive = parse_arguments(classes, "Train a dual encoder on pairs.", args)

    # After parsing: --help and a wrong option answer without torch.
    from accelerate.utils import set_seed

    from xmodal_hf.objectives import CrossModalObjective
    from xmodal_hf.training.building import build_dual_encoder, build_processor, build_tokenizer
    from xmodal_hf.training.loop import build_accelerator, build_loader, run_phase, text_sub_batches
    from xmodal_hf.training.output import finish_output, start_output

    accelerator = build_accelerator(training)
    start_output(accelerator, training, text, pairs, contrastive)
    set_seed(training.seed)
    with accelerator.main_process_first():
        table = load_table(pairs)
    tokenizer = build_tokenizer(text, lambda: captions_of(table))
    processor = build_processor(contrastive, pairs.modality, tokenizer)
    model = build_dual_encoder(text, contrastive, processor)
    objective = CrossModalObjective(
        loss_type=contrastive.objective,
        in_modal_weight=contrastive.in_modal_weight,
        cross_modal_weight=contrastive.cross_modal_weight,
        text_sub_batches=text_sub_batches(training, accelerator),
    )
    dataset, collator = dataset_and_collator(table, processor, training.seed, text.max_length, pairs.augment)
    loader = build_loader(dataset, collator, training)
    result = run_phase(accelerator, model, objective, loader, training, "phase 2: pairs")
    finish_output(accelerator, training, result, model, processor)


def load_table(pairs: PairArguments) -> Any:
    """Load the pairs in canonical columns."""
    from xmodal_hf.data.sources import load_pairs

    return load_pairs(
        pairs.dataset,
        modality=pairs.modality,
        split=pairs.split,
        image_column=pairs.image_column,
        audio_column=pairs.audio_column,
        text_column=pairs.text_column,
        max_samples=pairs.max_samples,
    )


def captions_of(table: Any) -> Iterable[str]:
    """Yield every caption of the pairs."""
    for text in table["text"]:
        yield from [text] if isinstance(text, str) else text


def dataset_and_collator(table: Any, processor: Any, seed: int, max_length: int, augment: bool) -> tuple[Any, Any]:
    """Return the training dataset and the collator of a processor's modality."""
    from xmodal_hf.data.collators import PairCollator
    from xmodal_hf.data.images import ImageAugment
    from xmodal_hf.data.sampling import PairDataset
    from xmodal_hf.models.processing_dual_encoder import ImageTextProcessor

    if not isinstance(processor, ImageTextProcessor):
        dataset = PairDataset(table, seed=seed, sampling_rate=processor.feature_extractor.sampling_rate)
        return dataset, PairCollator(processor, max_length=max_length)
    size = min(dict(processor.image_processor.size).values())  # height and width, or the shortest edge
    image_augment = ImageAugment(size, seed=seed) if augment else None
    # JPEGs are decoded at reduced scale: a random crop then still has the pixels that the tower sees.
    dataset = PairDataset(table, seed=seed, min_image_size=round(size * _CROP_MARGIN) if augment else size)
    return dataset, PairCollator(processor, max_length=max_length, image_augment=image_augment)


if __name__ == "__main__":
    main()

"""Embed every item of a data set once with a tower that stays as it is, and keep the pooled vectors.

    accelerate launch training_scripts/extract_features.py --model openai/clip-vit-base-patch32 \\
        --dataset my_pictures --output_dir outputs/features/my_pictures
    python training_scripts/extract_features.py --text_model outputs/simcse --dataset my_pictures

The folder is a `xmodal_hf.features.FeatureStore`: `train_contrastive.py --freeze image --features FOLDER` trains on it,
`search.py` searches it. All processes share the work. Killed at any moment, the same command goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from xmodal_hf.commands import run_command
from xmodal_hf.options import check_inputs, parse_arguments
from xmodal_hf.training.arguments import PairArguments
from xmodal_hf.training.feature_arguments import NOT_IN_EXTRACTION, FeatureArguments, check_extraction

# Options that --help shows first.
EVERYDAY = (
    *("model", "image_model", "audio_model", "text_model", "dataset", "modality", "split", "output_dir"),
    *("batch_size", "num_workers"),
)


def main(args: Sequence[str] | None = None) -> None:
    """Write the vectors."""
    classes = (FeatureArguments, PairArguments)
    features, pairs = parse_arguments(classes, __doc__, args, check_extraction, EVERYDAY, NOT_IN_EXTRACTION)

    # After parsing: --help and a wrong option answer without torch.
    from xmodal_hf.training.feature_extraction import run_extraction

    check_inputs(features, pairs)
    run_extraction(features, pairs)


if __name__ == "__main__":
    run_command(main)

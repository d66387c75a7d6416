"""Both towers of a model as ONNX files, for programs without PyTorch: text.onnx beside image.onnx or audio.onnx.

Each file takes what the processor gives and returns unit-norm embeddings (B, D), whose inner products are the cosines
that the model gives. The batch is of any size, and so is the number of tokens where the tower allows it. Texts are
padded on the right: a graph cannot move padding.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..messages import missing_package
from ..models.modeling_dual_encoder import DualEncoder
from ..models.modeling_sentence_encoder import SentenceEncoder
from ..models.text_format import TextFormat

# Maximum difference between the unit-norm embeddings of the file and of the model.
TOLERANCE = 1e-5
_PACKAGES = ("onnx", "onnxruntime")
# Texts with which the model is traced. They differ in length, so that one is padded.
_TEXTS = ["a picture of a dog in the grass", "rain", "two birds"]
_OPSET = 18


class _Tower(nn.Module):
    """One tower of a model: named tensors in, embeddings out.

    Args:
        model: Model whose forward runs that tower alone on these inputs.
        names: Names of the inputs, in the order in which `forward` gets them.
        field: Field of the output that holds the embeddings.
    """

    model: DualEncoder | SentenceEncoder

    def __init__(self, model: DualEncoder | SentenceEncoder, names: list[str], field: str) -> None:
        super().__init__()
        self.model, self.names, self.field = model, names, field
        self.flags = {"return_logits": False} if isinstance(model, DualEncoder) else {}

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """(B, ...) each -> (B, D) of unit norm."""
        return self.model(**dict(zip(self.names, inputs, strict=True)), **self.flags)[self.field]


def export_onnx(
    model: DualEncoder | SentenceEncoder, processor: ProcessorMixin | PreTrainedTokenizerBase, folder: Path
) -> dict[str, float]:
    """Write the towers of a model as ONNX files, and compare each with the model on inputs of two sizes.

    Args:
        model: Model in fp32 on the CPU.
        processor: Processor of the model; the tokenizer of a sentence encoder.
        folder: Folder for the files; it is made.

    Returns:
        Dictionary of file name to the largest difference of its embeddings from the model's.

    Raises:
        ImportError: If onnx or onnxruntime is missing; the extra `onnx` installs them.
        ValueError: If the embeddings of a file differ from those of the model by more than TOLERANCE.

    Example:
        ```python
        from pathlib import Path

        import onnxruntime

        from xmodal_hf.hub.onnx_export import export_onnx
        from xmodal_hf.models.conversion import load_dual_encoder, load_dual_processor

        model, processor = load_dual_encoder("outputs/clip"), load_dual_processor("outputs/clip")
        differences = export_onnx(model, processor, Path("outputs/clip_onnx"))  # {"text.onnx": 1e-07, ...}
        session = onnxruntime.InferenceSession("outputs/clip_onnx/text.onnx")
        names = [item.name for item in session.get_inputs()]
        inputs = processor(text=["a red bicycle", "a dog"], padding=True, return_tensors="np")
        (embeds,) = session.run(None, {name: inputs[name] for name in names})  # (2, D), unit norm
        ```
    """
    for name in _PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise missing_package("the export to ONNX", name, "onnx")
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    differences = {}
    for side, inputs in _example_inputs(model, processor).items():
        tower = _Tower(model, list(inputs), f"{side}_embeds").eval()
        path = folder / f"{side}.onnx"
        _write(tower, inputs, path)
        differences[path.name] = _largest_difference(tower, inputs, path)
    return differences


def _example_inputs(
    model: DualEncoder | SentenceEncoder, processor: ProcessorMixin | PreTrainedTokenizerBase
) -> dict[str, dict[str, torch.Tensor]]:
    """Return inputs of three items for each tower, made by the processor."""
    tokenizer = processor if isinstance(model, SentenceEncoder) else processor.tokenizer
    text_format = TextFormat.of(model, tokenizer)
    examples = {"text": dict(text_format.collate(text_format.tokenize(_TEXTS)))}
    if isinstance(model, SentenceEncoder):
        return examples
    modality = model.config.modality
    return examples | {modality: dict(_EXAMPLES[modality](processor, np.random.default_rng(0)))}


def _example_images(processor: Any, generator: np.random.Generator) -> Mapping[str, torch.Tensor]:
    images = [Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in _TEXTS]
    return processor(images=images, return_tensors="pt")


def _example_sounds(processor: Any, generator: np.random.Generator) -> Mapping[str, torch.Tensor]:
    """One second each."""
    rate = processor.feature_extractor.sampling_rate
    clips = [generator.standard_normal(rate).astype(np.float32) for _ in _TEXTS]
    return processor(audio=clips, audio_kwargs={"sampling_rate": rate}, return_tensors="pt")


# Modality -> inputs of its tower for as many items as there are texts, made by the processor.
_EXAMPLES: dict[str, Callable[[Any, np.random.Generator], Mapping[str, torch.Tensor]]] = {
    "image": _example_images,
    "audio": _example_sounds,
}


def _write(tower: _Tower, inputs: Mapping[str, torch.Tensor], path: Path) -> None:
    """Export a tower with a free batch size, and a free number of tokens for texts.

    By tracing: the exporter on torch.export fixes the batch size of CLIP's text tower (torch 2.11, measured).
    """
    free = {0: "batch", 1: "tokens"} if _has_free_length(tower, inputs) else {0: "batch"}
    with torch.no_grad(), warnings.catch_warnings():
        # Warnings about checks of shapes, which a trace does not repeat, and about the successor of the exporter.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            tower,
            tuple(inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=["embeds"],
            dynamic_axes={**dict.fromkeys(inputs, free), "embeds": {0: "batch"}},
            opset_version=_OPSET,
            dynamo=False,
        )


def _has_free_length(tower: _Tower, inputs: Mapping[str, torch.Tensor]) -> bool:
    return "input_ids" in inputs and tower.model.config.text_length is None


def _largest_difference(tower: _Tower, inputs: Mapping[str, torch.Tensor], path: Path) -> float:
    """Return by how much the file differs from the model: on the traced inputs, and on fewer and shorter ones.

    Raises:
        ValueError: If the difference is more than TOLERANCE.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    is_text = _has_free_length(tower, inputs)
    # The second text is the short one.
    fewer = {name: value[1:2, :-1] if is_text else value[1:2] for name, value in inputs.items()}
    # inputs without effect, such as CLAP's is_longer, are not in the graph
    taken = [item.name for item in session.get_inputs()]
    largest = 0.0
    for each in (inputs, fewer):
        with torch.no_grad():
            expected = tower(*each.values()).numpy()
        (found,) = session.run(["embeds"], {name: each[name].numpy() for name in taken})
        largest = max(largest, float(np.abs(found - expected).max()))
    if not largest <= TOLERANCE:  # written in this way, a NaN is refused too
        raise ValueError(f"{path.name} gives other embeddings than the model, by {largest:.1e}: it is of no use")
    return largest

"""ONNX files of both towers give the model's embeddings in onnxruntime."""

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from xmodal_hf.hub.onnx_export import TOLERANCE, _example_inputs, export_onnx

try:
    import onnx  # noqa: F401
    import onnxruntime
except ModuleNotFoundError:
    onnxruntime = None

needs_onnx = pytest.mark.skipif(onnxruntime is None, reason="needs the extra onnx: make test-peers")


def run(path: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(("text", "image", "pooling"), [("bert", "vit", "mean"), ("clip_text", "convnext", "eos")])
def test_images_and_texts(
    text: str, image: str, pooling: str, make_image_text: Callable, image_text_processor, images, tmp_path: Path
) -> None:
    model = make_image_text(text=text, image=image, text_pooling=pooling)
    differences = export_onnx(model, image_text_processor, tmp_path)
    assert set(differences) == {"text.onnx", "image.onnx"} and max(differences.values()) <= TOLERANCE
    # Other inputs than those of the export, in another number and length.
    texts = ["the cat sleeps", "rain", "a red apple on a green table", "two small birds", "music"]
    inputs = dict(image_text_processor(text=texts, images=images, padding=True, return_tensors="pt"))
    with torch.no_grad():
        expected = model(**inputs)
    pixels = {"pixel_values": inputs.pop("pixel_values")}
    for name, side in (("text", inputs), ("image", pixels)):
        side = {key: value for key, value in side.items() if key in _example_inputs(model, image_text_processor)[name]}
        assert np.abs(run(tmp_path / f"{name}.onnx", side) - expected[f"{name}_embeds"].numpy()).max() <= TOLERANCE


@needs_onnx
@pytest.mark.slow
def test_the_example_of_the_docstring_runs(image_text_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(image_text_folder.parent)
    code = inspect.getdoc(export_onnx).partition("```python\n")[2].partition("```")[0]
    names = {}
    exec(textwrap.dedent(code).replace("outputs/clip", image_text_folder.name), names)
    assert np.allclose(np.linalg.norm(names["embeds"], axis=1), 1, atol=1e-5) and len(names["embeds"]) == 2


def test_a_modality_without_inputs_is_not_taken_for_another(
    image_text_model, image_text_processor, monkeypatch
) -> None:
    monkeypatch.setattr(type(image_text_model.config), "modality", "video")
    with pytest.raises(KeyError, match="video"):
        _example_inputs(image_text_model, image_text_processor)


@needs_onnx
@pytest.mark.slow
def test_sounds(audio_text_model, audio_text_processor, tmp_path: Path) -> None:
    assert set(export_onnx(audio_text_model, audio_text_processor, tmp_path)) == {"text.onnx", "audio.onnx"}


@needs_onnx
@pytest.mark.slow
def test_a_file_that_differs_is_refused(sentence_encoder, tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("xmodal_hf.hub.onnx_export.TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"text\.onnx gives other embeddings than the model"):
        export_onnx(sentence_encoder, tokenizer, tmp_path)


def test_without_the_packages(sentence_encoder, tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"needs the package onnx: pip install 'xmodal_hf\[onnx\]'"):
        export_onnx(sentence_encoder, tokenizer, tmp_path / "new")
    assert not (tmp_path / "new").exists()

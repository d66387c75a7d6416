"""Search in a gallery and zero-shot classification of a demo Space. It is copied beside the page as search.py.

Shapes: n gallery items, D embedding.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor, ClapFeatureExtractor

# If this package is installed, its classes run also checkpoints that carry no code.
with suppress(ImportError):
    import xmodal_hf  # noqa: F401

if not __package__:  # in a Space, the modules that decode lie beside this one
    sys.path.append(str(Path(__file__).parent))

# Path of an image or a sound, as the components of the page return them, or an image.
Item = Image.Image | str
# Item that a visitor chooses.
ITEMS = {"image": "an image", "audio": "a sound"}
# Seed of the crops that a fused CLAP takes from a long sound, as in the package's evaluation.
_FUSION_SEED = 0


@dataclass(frozen=True)
class Hit:
    """An answer: a file of the gallery, what it shows, and its cosine with the query."""

    path: Path
    caption: str
    cosine: float


class Demo:
    """A model and a gallery that it has embedded.

    Args:
        folder: Folder with `space.json`, `gallery.json`, `gallery.safetensors` and the gallery's files.
        model: Folder or Hub id of the model, to try the Space with a model that is not published yet. Default: the one
            that `space.json` names.
    """

    def __init__(self, folder: Path, model: str | None = None):
        self.folder = folder
        self.settings = json.loads((folder / "space.json").read_text(encoding="utf-8"))
        self.gallery = json.loads((folder / "gallery.json").read_text(encoding="utf-8"))
        self.embeds = load_file(folder / "gallery.safetensors")["embeds"]  # (n, D), unit norm
        self.modality = self.settings["modality"]
        beside = (folder / self.settings["model"]).resolve()
        source = model or (str(beside) if beside.is_dir() else self.settings["model"])
        # The code in the model's repository was published together with this Space, at the commit that it names.
        options = {"trust_remote_code": True, "revision": None if model else self.settings["revision"]}
        self.model = AutoModel.from_pretrained(source, **options).eval()
        self.processor = AutoProcessor.from_pretrained(source, **options)

    def search_text(self, query: str, top_k: int) -> list[Hit]:
        """Return the items that a text describes best.

        Raises:
            ValueError: If the text is empty.
        """
        if not query.strip():
            raise ValueError("Write what to look for.")
        return self._best(self._embed(text=[query.strip()]), top_k)

    def search_item(self, item: Item | None, top_k: int) -> list[Hit]:
        """Return the items that are most like an image or a sound.

        Raises:
            ValueError: If there is no item.
        """
        return self._best(self._embed(**self._inputs(item)), top_k)

    def classify(self, item: Item | None, labels: str, template: str) -> dict[str, float]:
        """Return the probability of each label, by the model's softmax over all of them.

        Args:
            item: Image or audio clip.
            labels: Labels, one per line or separated by commas.
            template: Sentence with `{}` in the place of the label.

        Raises:
            ValueError: If there is no item, there are fewer than two labels, or the template has no place for them.
        """
        names = list(dict.fromkeys(name.strip() for name in labels.replace(",", "\n").splitlines() if name.strip()))
        if len(names) < 2:
            raise ValueError("Write two labels or more, one per line.")
        if "{}" not in template:
            raise ValueError("The sentence needs {} where the label goes.")
        inputs = self._inputs(item)
        texts = [template.replace("{}", name) for name in names]
        with torch.inference_mode():
            outputs = self.model(**self.processor(text=texts, return_tensors="pt"), **inputs)
        probabilities = outputs[f"logits_per_{self.modality}"][0].softmax(dim=0)  # (labels,)
        return dict(zip(names, probabilities.tolist(), strict=True))

    def _inputs(self, item: Item | None) -> dict[str, Any]:
        """Return the model's inputs for what a visitor chose."""
        if item is None:
            raise ValueError(f"Choose {ITEMS[self.modality]} first.")
        return _INPUTS[self.modality](self.processor, item)

    def _embed(self, text: list[str] | None = None, **inputs: Any) -> torch.Tensor:
        """Return the unit-norm embedding (D,) of one text, image or sound."""
        if text is not None:
            inputs = dict(self.processor(text=text, return_tensors="pt"))
        with torch.inference_mode():
            outputs = self.model(**inputs)
        return outputs["text_embeds" if text is not None else f"{self.modality}_embeds"][0]

    def _best(self, query: torch.Tensor, top_k: int) -> list[Hit]:
        cosines = self.embeds @ query  # (n,)
        best = cosines.topk(min(top_k, len(cosines)))
        return [
            Hit(self.folder / self.gallery[index]["file"], self.gallery[index]["caption"], cosine)
            for cosine, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def read_clip(path: str, sampling_rate: int, max_seconds: float | None = None) -> np.ndarray:
    """Return a sound as mono samples at a rate in Hz, (samples,): the window that evaluation takes of it.

    Raises:
        ValueError: If the file is not a sound.
    """
    # Spaces of image models do not install this.
    from ...data.waveforms import decode_audio

    return decode_audio(path, sampling_rate, max_seconds=max_seconds)


def sound_features(extractor: Any, path: str) -> dict[str, Any]:
    """Return what a feature extractor makes of a sound, the same at every call."""
    from ...data.clips import clap_features, clip_seconds, to_clip_length

    clips = to_clip_length(extractor, [read_clip(path, extractor.sampling_rate, clip_seconds(extractor))])
    if isinstance(extractor, ClapFeatureExtractor):
        return dict(clap_features(extractor, clips, seeds=[_FUSION_SEED]))
    return dict(extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt"))


def image_inputs(processor: Any, item: Item) -> dict[str, Any]:
    """Return the model's inputs for an image, decoded as in training and evaluation."""
    from ...data.pictures import decode_image

    return dict(processor(images=[decode_image(item)], return_tensors="pt"))


def sound_inputs(processor: Any, item: Item) -> dict[str, Any]:
    """Return the model's inputs for the path of a sound, decoded as in training and evaluation."""
    return sound_features(processor.feature_extractor, str(item))


_INPUTS = {"image": image_inputs, "audio": sound_inputs}


def without_folders(message: str, values: Sequence[Any]) -> str:
    """Return a message that names files of a visitor as the visitor does: by their names alone.

    Args:
        message: Text of an error.
        values: Inputs, of which some may be paths of files.
    """
    for value in values:
        if isinstance(value, str) and Path(value).is_absolute():
            message = message.replace(value, Path(value).name)
    return message


def titles(hits: Sequence[Hit]) -> list[str]:
    """Return what stands under each answer: its cosine with the query, and its caption."""
    return [f"{hit.cosine:.2f} {hit.caption}" for hit in hits]

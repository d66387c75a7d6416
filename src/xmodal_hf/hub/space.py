"""A demo Space of a model: a small Gradio app that searches a gallery and classifies with labels of one's own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..data.modalities import MODALITIES
from .arguments import SpaceArguments
from .remote_code import CONFIG_NAME, read_json, read_model_type, tower_packages
from .safety import check_folder
from .staging import new_folder

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

SPACE_FOLDER = "space"
_SETTINGS_NAME = "space.json"
_TEMPLATES_FOLDER = Path(__file__).with_name("templates")
_DATA_FOLDER = Path(__file__).parents[1] / "data"
_FILES = {"space_app.py": "app.py", "space_search.py": "search.py"}
# Modules that lead from a file to pixels or samples, in this package and in a Space. They need no other modules.
_DECODERS = {
    "image": ("errors", "formats", "local_files", "pictures"),
    "audio": ("errors", "formats", "local_files", "stream_lengths", "waveforms", "clips"),
}
# Imports such as "from ...data.pictures import x" and "from .errors import y", whose modules lie beside each other in a
# Space.
_RELATIVE_IMPORT = re.compile(r"^( *)from \.+(?:data\.)?(\w+) import", re.MULTILINE)
_MODALITIES = {spec.model_type: name for name, spec in MODALITIES.items()}
# Version of Gradio for a Space if Gradio is not installed here; the page was tested with it.
_GRADIO = "6.31.0"
# Packages that the app imports, in the ranges of setup.py. Spaces install Gradio themselves.
_REQUIREMENTS = ["transformers>=5.20,<6", "torch>=2.8,<2.12", "safetensors", "pillow", "numpy"]
_MODALITY_REQUIREMENTS = {"image": ["torchvision>=0.23,<0.27"], "audio": ["torchaudio>=2.8,<2.12", "soundfile"]}
# Built-in gallery -> attribution that its licence asks for, and example queries.
_ATTRIBUTIONS = {
    "openmoji": "Pictures: [OpenMoji](https://openmoji.org), the open-source emoji and icon project, CC BY-SA 4.0.",
    "soundfont": "Sounds: rendered with the General-MIDI soundfont TimGM6mb.",
}
_QUERIES = {
    "openmoji": ["an angry face", "a heart", "a clock", "a flag with a blue stripe", "woman worker"],
    "soundfont": ["a low note on a synthesizer", "a violin playing quietly", "a loud guitar, then a snare drum"],
}
_LABELS = {
    "openmoji": ["a face", "a flag", "an animal", "food", "a building", "a symbol"],
    "soundfont": ["a piano", "a guitar", "strings", "a brass instrument", "drums", "a synthesizer"],
}
# Side of the emoji on the page in pixels: those on which the model is trained are too small for people.
_EMOJI_SIZE = 160
# Longer side of the gallery's images, in pixels, and their WebP quality.
_MAX_SIDE, _QUALITY = 480, 90
_NUM_QUERIES, _NUM_LABELS = 5, 6
# Split of the gallery, if it has splits.
_GALLERY_SPLIT = "test"


def stage_space(
    checkpoint: Path, folder: Path, model: str, arguments: SpaceArguments, revision: str | None = None
) -> Path:
    """Fill a new folder with a demo Space: page, requirements, card, and a gallery that the model has embedded.

    `python app.py` in the folder runs it, where Gradio is installed.

    Args:
        checkpoint: Folder of the model.
        folder: Folder that is made; it may exist if it is empty. `<checkpoint>/space` puts the app into a model's
            folder.
        model: Model that the app loads: its Hub id, or its folder relative to the Space's (`..`).
        arguments: Options of the gallery, the texts on the page and the licence.
        revision: Commit of the model on the Hub, whose code the app runs. If None, the newest.

    Raises:
        ValueError: If the model takes neither images nor sounds, or the folder is not empty.
        UnsafeFolderError: If the folder holds something that must not be published.
        OSError: If the disk is full. The files that were written are removed.
    """
    model_type = read_model_type(checkpoint)
    if model_type not in _MODALITIES:
        raise ValueError(f"{checkpoint} is a {model_type}: a demo Space needs a model of images or sounds")
    modality = _MODALITIES[model_type]
    with new_folder(folder):
        rows = _load_gallery(modality, arguments)
        captions = [text if isinstance(text, str) else text[0] for text in rows["text"]]
        _write_gallery(checkpoint, folder, modality, rows, captions, arguments.gallery_features)
        settings = _settings(modality, model, revision, captions, arguments)
        _write_json(folder / _SETTINGS_NAME, settings)
        sources = {_TEMPLATES_FOLDER / source: target for source, target in _FILES.items()}
        sources |= {_DATA_FOLDER / f"{name}.py": f"{name}.py" for name in _DECODERS[modality]}
        for source, target in sources.items():
            code = source.read_text(encoding="utf-8")
            (folder / target).write_text(_RELATIVE_IMPORT.sub(r"\1from \2 import", code), encoding="utf-8")
        requirements = [*_REQUIREMENTS, *_MODALITY_REQUIREMENTS[modality]]
        towers = tower_packages(read_json(checkpoint / CONFIG_NAME))
        requirements += [f"{package}{versions}" for package, versions in towers.items()]
        (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(_card(settings, arguments), encoding="utf-8")
        check_folder(folder)
    return folder


def pin_revision(folder: Path, revision: str) -> None:
    """Write into a Space the commit of the model whose code and weights it loads."""
    path = folder / _SETTINGS_NAME
    _write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"revision": revision})


def _load_gallery(modality: str, arguments: SpaceArguments) -> Dataset:
    from ..data.builtin.openmoji import load_openmoji
    from ..data.sources import load_pairs
    from ..data.splits import with_default_split

    source, size = arguments.gallery, arguments.gallery_size
    if source == "openmoji":
        rows = load_openmoji(arguments.gallery_split or _GALLERY_SPLIT, image_size=_EMOJI_SIZE)
        return rows.select(range(min(size, len(rows))))

    def load(split: str) -> Dataset:
        return load_pairs(source, modality=modality, split=split, max_samples=size)  # type: ignore[arg-type]

    return with_default_split(load, arguments.gallery_split, _GALLERY_SPLIT, source)[0]


def _write_gallery(
    checkpoint: Path, folder: Path, modality: str, rows: Dataset, captions: list[str], features: str | None
) -> None:
    """Write the files that people see or hear, their embeddings, and the list of them."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoProcessor

    from ..data.mixing import undecoded

    processor = AutoProcessor.from_pretrained(checkpoint)
    cells = undecoded(rows)[modality]
    embeds = _gallery_embeds(checkpoint, processor, modality, cells, rows["id"], features)
    save_file({"embeds": torch.from_numpy(embeds)}, folder / "gallery.safetensors")
    (folder / "gallery").mkdir()
    entries = []
    for number, (cell, caption) in enumerate(zip(cells, captions, strict=True)):
        file = _WRITERS[modality](cell, folder / "gallery" / f"{number:04}", processor)
        entries.append({"file": file.relative_to(folder).as_posix(), "caption": caption})
    _write_json(folder / "gallery.json", entries)


def _gallery_embeds(
    checkpoint: Path, processor: Any, modality: str, cells: Any, ids: Any, features: str | None
) -> np.ndarray:
    """Return (n, D) unit-norm embeddings of a gallery, from its feature store where there is one."""
    from transformers import AutoModel

    from ..evaluation import as_embedder
    from ..evaluation.search import Search
    from ..features import FeatureStore

    model = AutoModel.from_pretrained(checkpoint)
    if features is None:
        return as_embedder(model, processor).encode_items(modality, cells)
    return Search(model, processor, FeatureStore.open(features)).embeds(ids)


def _write_image(cell: Any, stem: Path, processor: Any) -> Path:
    from ..data.images import load_image

    image = load_image(cell)
    image.thumbnail((_MAX_SIDE, _MAX_SIDE))
    image.save(path := stem.with_suffix(".webp"), quality=_QUALITY)
    return path


def _write_sound(cell: dict[str, Any], stem: Path, processor: Any) -> Path:
    """Write what the model hears of a clip, as FLAC, which browsers play."""
    import soundfile

    from ..data.audio import load_waveform
    from ..data.clips import clip_seconds

    extractor = processor.feature_extractor
    clip = load_waveform(cell, extractor.sampling_rate, max_seconds=clip_seconds(extractor))
    soundfile.write(path := stem.with_suffix(".flac"), clip, extractor.sampling_rate)
    return path


_WRITERS: dict[str, Callable[[Any, Path, Any], Path]] = {"image": _write_image, "audio": _write_sound}


def _settings(
    modality: str, model: str, revision: str | None, captions: list[str], arguments: SpaceArguments
) -> dict[str, Any]:
    """Return the texts and settings of the page."""
    gallery = arguments.gallery
    link = f"[{model}](https://huggingface.co/{model})" if "/" in model else "The model of this folder"
    kind = MODALITIES[modality].plural
    origin = "from" if arguments.gallery_split is None else f"the {arguments.gallery_split} split of"
    return {
        "model": model,
        "revision": revision,
        "modality": modality,
        "title": arguments.space_title or f"Search {kind} in your own words",
        "description": f"{link} finds what you describe among {len(captions):,} {kind}. It never reads their captions.",
        "queries": arguments.queries or _QUERIES.get(gallery) or captions[:_NUM_QUERIES],
        "labels": arguments.labels or _LABELS.get(gallery) or captions[:_NUM_LABELS],
        "template": arguments.template or MODALITIES[modality].prompt,
        "attribution": _ATTRIBUTIONS.get(gallery, f"Gallery: {origin} `{Path(gallery).name}`."),
    }


def _card(settings: dict[str, Any], arguments: SpaceArguments) -> str:
    """Return the README.md of the Space: what the Hub runs it by, and what it is."""
    metadata = {
        "title": settings["title"],
        "emoji": "🔎",
        "colorFrom": "indigo",
        "colorTo": "pink",
        "sdk": "gradio",
        "sdk_version": _gradio_version(),
        "app_file": "app.py",
        "pinned": False,
        **({"models": [settings["model"]]} if "/" in settings["model"] else {}),
        **({"license": arguments.space_license} if arguments.space_license else {}),
        "tags": ["xmodal_hf"],
    }
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return (
        f"---\n{front}---\n\n# {settings['title']}\n\n{settings['description']}\n\n{settings['attribution']}\n\n"
        "Made with `xmodal_hf`. To run it on your machine: `pip install gradio -r requirements.txt`, then "
        "`python app.py`, or `python app.py --model FOLDER` with a model that is not on the Hub.\n"
    )


def _gradio_version() -> str:
    try:
        return version("gradio")
    except PackageNotFoundError:
        return _GRADIO


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

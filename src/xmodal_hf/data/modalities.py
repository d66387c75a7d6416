"""Modalities that can be paired with text, each with all that is particular to it: columns, classes, options, tags.

A new modality is one entry in `MODALITIES` and the places that docs/extend.md lists. This module imports no torch,
because `--help` and cards read it: what other modules define is named by its address, "module:name".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, get_args

from .formats import Modality

# Usual names of columns of files, the most specific first, for all modalities.
PATH_COLUMNS = (
    *("file_name", "file_names", "filename", "filepath", "file_path", "slice_file_name", "fname", "file", "path"),
    "sound_name",
)


@dataclass(frozen=True)
class ModalitySpec:
    """Everything that is particular to a modality; its key in `MODALITIES` is the name of its canonical column.

    Its name is also the first part of the names of config fields (`image_config`), of towers (`image_model`), of
    outputs (`image_embeds`, `logits_per_image`), of the vectors of a feature store (`image_pooler_output`), of options
    (`--image_model`) and of an embedder's method (`encode_image`).

    Args:
        noun: Noun phrase for a single item, with its article.
        plural: Noun for several items.
        columns: Usual names of the column in tables, the most specific first.
        cell: Address of the feature of `datasets` that describes the column.
        decoder: Address of the function from a cell, a path or bytes to what the processor takes; where `is_sampled`,
            it takes the sampling rate in Hz and `max_seconds` too.
        processor_part: Attribute of the processor that prepares an item.
        model_class, processor_class: Addresses of the classes of the model and its processor.
        model_type: `model_type` of the config.
        is_sampled: Whether items are sequences at a sampling rate, which the decoder and the datasets are then given.
        own_options: Options of `PairArguments` that concern this modality alone.
        prompts: Name of the prompt set of zero-shot classification.
        prompt: Template of a text in demos.
        pipeline_tag: Pipeline of the Hub that such models are listed under; it has none for zero-shot audio
            classification.
        tags: Tags of model cards.
        colour: Colour of the modality's points in figures.
        citations: BibTeX entries beside those of the losses.
    """

    noun: str
    plural: str
    columns: tuple[str, ...]
    cell: str
    decoder: str
    processor_part: str
    model_class: str
    processor_class: str
    model_type: str
    is_sampled: bool
    own_options: tuple[str, ...]
    prompts: str
    prompt: str
    pipeline_tag: str
    tags: tuple[str, ...]
    colour: str
    citations: tuple[str, ...] = ()


_CLAP = """@inproceedings{wu2023large,
  title={Large-Scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption Augmentation},
  author={Wu, Yusong and Chen, Ke and Zhang, Tianyu and Hui, Yuchen and Berg-Kirkpatrick, Taylor and Dubnov, Shlomo},
  booktitle={International Conference on Acoustics, Speech and Signal Processing},
  year={2023}
}"""

MODALITIES: dict[str, ModalitySpec] = {
    "image": ModalitySpec(
        noun="a picture",
        plural="images",
        columns=(
            *("image", "images", "img", "jpg", "jpeg", "png", "webp", "image_path", "image_file", "image_file_name"),
            *PATH_COLUMNS,
        ),
        cell="xmodal_hf.data.files:PICTURE_CELL",
        decoder="xmodal_hf.data.images:load_image",
        processor_part="image_processor",
        model_class="xmodal_hf.models.modeling_dual_encoder:ImageTextDualEncoder",
        processor_class="xmodal_hf.models.processing_dual_encoder:ImageTextProcessor",
        model_type="xmodal_image_text",
        is_sampled=False,
        own_options=("augment",),
        prompts="imagenet",
        prompt="{}",
        pipeline_tag="zero-shot-image-classification",
        tags=("clip",),
        colour="#0072B2",
    ),
    "audio": ModalitySpec(
        noun="a sound",
        plural="sounds",
        columns=(
            *("audio", "sound", "wav", "flac", "mp3", "ogg", "audio_path", "audio_file", "audio_file_name"),
            *PATH_COLUMNS,
        ),
        cell="xmodal_hf.data.files:AUDIO_CELL",
        decoder="xmodal_hf.data.audio:load_waveform",
        processor_part="feature_extractor",
        model_class="xmodal_hf.models.modeling_dual_encoder:AudioTextDualEncoder",
        processor_class="xmodal_hf.models.processing_dual_encoder:AudioTextProcessor",
        model_type="xmodal_audio_text",
        is_sampled=True,
        own_options=("spec_augment", "audio_padding", "clip_seconds"),
        prompts="laion_clap",
        prompt="This is a sound of {}.",
        pipeline_tag="feature-extraction",
        tags=("clap", "audio"),
        colour="#009E73",
        citations=(_CLAP,),
    ),
}
# For annotations and `choices`, the same names as a type.
MODALITY_NAMES: tuple[Modality, ...] = get_args(Modality)


def find_address(address: str) -> Any:
    """Return what "module:name" names."""
    module, _, name = address.partition(":")
    return getattr(import_module(module), name)


def cell_feature(modality: str) -> Any:
    """Return the feature of `datasets` of the column of a modality."""
    return find_address(MODALITIES[modality].cell)


def modality_of_columns(columns: Iterable[str]) -> Modality:
    """Return which modality a table in canonical columns has.

    Raises:
        ValueError: If the table has the column of no modality or of several.
    """
    columns = list(columns)
    present = [name for name in MODALITY_NAMES if name in columns]
    if len(present) != 1:
        raise ValueError(
            f"Pairs have the columns id, text and one of {', '.join(MODALITY_NAMES)}; found "
            f"{', '.join(sorted(columns))}. load_pairs brings any source into this form."
        )
    return present[0]


def modality_of_processor(processor: Any) -> Modality:
    """Return which modality a processor prepares beside text.

    Raises:
        ValueError: If the processor prepares no modality of this package.
    """
    attributes = processor.get_attributes()
    present = [name for name in MODALITY_NAMES if MODALITIES[name].processor_part in attributes]
    if len(present) != 1:
        raise ValueError(f"{type(processor).__name__} prepares none of {', '.join(MODALITY_NAMES)} beside text")
    return present[0]

"""Prompt templates of the published zero-shot protocols; `{}` takes the class name.

ImageNet's 80 and CIFAR-10's 18 (Radford et al. 2021; CLIP_benchmark has the same) follow a few patterns, nearly all of
them once with "a" and once with "the"; they are composed from these here.
"""

from __future__ import annotations

from xmodal_hf.data.modalities import MODALITIES

_ARTICLES = ("a", "the")
_PHOTO_QUALITIES = (
    "bad", "good", "bright", "dark", "blurry", "cropped", "close-up", "pixelated", "low resolution", "jpeg corrupted",
    "black and white",
)  # fmt: skip
_OBJECT_QUALITIES = ("clean", "dirty", "nice", "cool", "weird", "small", "large", "hard to see")
_DEPICTIONS = (
    "a photo", "a painting", "a drawing", "a sketch", "a doodle", "a rendering", "a rendition", "a sculpture",
    "a tattoo", "graffiti", "art", "itap",
)  # fmt: skip
_MATERIALS = ("plastic", "origami", "embroidered", "plushie", "toy", "cartoon")
# Prompts of CIFAR-10 (18), which OpenAI's CLIP and CLIP_benchmark use for CIFAR-100 too.
_SMALL_PHOTO_QUALITIES = ("blurry", "black and white", "low contrast", "high contrast", "bad", "good")
_UNPAIRED = ("a photo of my {}.", "a photo of one {}.", "a photo of many {}.", "itap of my {}.")


def _imagenet_templates() -> tuple[str, ...]:
    templates = list(_UNPAIRED)
    for article in _ARTICLES:
        templates += [f"a {quality} photo of {article} {{}}." for quality in _PHOTO_QUALITIES]
        templates += [f"a photo of {article} {quality} {{}}." for quality in _OBJECT_QUALITIES]
        templates += [f"{depiction} of {article} {{}}." for depiction in _DEPICTIONS]
        templates += [f"{article} {material} {{}}." for material in _MATERIALS]
        templates.append(f"{article} {{}} in a video game.")
    return tuple(templates)


def _cifar10_templates() -> tuple[str, ...]:
    templates = []
    for article in _ARTICLES:
        templates.append(f"a photo of {article} {{}}.")
        templates += [f"a {quality} photo of {article} {{}}." for quality in _SMALL_PHOTO_QUALITIES]
        templates += [f"a photo of {article} {size} {{}}." for size in ("small", "big")]
    return tuple(templates)


PROMPT_SETS: dict[str, tuple[str, ...]] = {
    "imagenet": _imagenet_templates(),
    "photo": ("a photo of a {}.",),
    "cifar10": _cifar10_templates(),
    "laion_clap": ("This is a sound of {}.",),
    "wavcaps": ("{} can be heard",),
    "msclap": ("this is the sound of {}",),
    "name": ("{}",),
}
DEFAULT_PROMPTS = {name: spec.prompts for name, spec in MODALITIES.items()}


def clean_class_name(name: str) -> str:
    """A class name as words: underscores become spaces, repeated and outer spaces go.

    Example:
        >>> clean_class_name("chirping_birds ")
        'chirping birds'
    """
    return " ".join(name.replace("_", " ").split())


def resolve_templates(templates: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    """The templates themselves, from a name of `PROMPT_SETS` or from a list of strings.

    Raises:
        ValueError: If the name is unknown, there is no template, or a template lacks `{}`.
    """
    if isinstance(templates, str):
        if templates not in PROMPT_SETS:
            raise ValueError(
                f"unknown prompt set {templates!r}: one of {', '.join(PROMPT_SETS)}, or a list of templates"
            )
        return PROMPT_SETS[templates]
    if not templates or not all("{}" in template for template in templates):
        raise ValueError(f"templates are strings with {{}} for the class name, at least one; got {list(templates)}")
    return tuple(templates)

"""Decoding of images to upright RGB, and the seeded augmentation that training uses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from .errors import BadItemError, naming
from .files import read_media
from .pictures import WHITE, decode_image
from .seeding import EpochIndex, row_generator

__all__ = ["ImageAugment", "decode_image", "load_image"]

_AUGMENTATION_STREAM = 1


def load_image(item: Any, *, min_size: int | None = None) -> Image.Image:
    """Load an item of an image column as upright 8-bit RGB. All code that turns a cell into pixels calls it.

    Training, validation, evaluation and the galleries of demo Spaces call it.

    Args:
        item: Cell {"bytes", "path"} as in an undecoded `datasets.Image` column, or one of the two alone; a path, which
            may also name a member of an archive or an address that fsspec opens; encoded bytes; a Pillow image; or a
            uint8 array (height, width[, 1, 3 or 4]).
        min_size: Shorter side in pixels that is large enough, as in `decode_image`.

    Raises:
        BadItemError: If `decode_image` or `read_media` raises it; the detail then names the path.
    """
    if isinstance(item, str | os.PathLike):
        item = {"bytes": None, "path": os.fspath(item)}
    if item is None or isinstance(item, Mapping):
        with naming(None if item is None else item.get("path")):
            return decode_image(_content(item), min_size=min_size)
    return decode_image(item, min_size=min_size)


def _content(cell: Mapping[str, Any] | None) -> bytes:
    if cell is not None and not {"bytes", "path"} & cell.keys():
        raise BadItemError("unknown cell", f"a picture has bytes or a path, this cell has {', '.join(map(str, cell))}")
    return read_media(None if cell is None else dict(cell))


@dataclass(frozen=True)
class ImageAugment:
    """Gentle augmentation for contrastive training: the caption must stay true of the picture.

    A crop of `min_scale` to 1 of the area is resized to a square, then rotated, mirrored and changed in brightness,
    contrast and saturation. All is drawn from (`seed`, epoch, index) of the row: neither the number of workers nor
    resuming changes a picture.

    Attributes:
        size: Side of the resulting square in pixels.
        seed: Seed of the training run.
        min_scale: Minimum area of the crop, as a fraction of the picture.
        max_aspect: Maximum ratio of the sides of the crop.
        max_degrees: Maximum angle of the rotation in degrees; corners are filled with white.
        colour: Maximum relative change of brightness, contrast and saturation.
        flip: Whether half of the pictures are mirrored. Off by default, because captions may tell left from right, and
            text reads one way.
    """

    size: int
    seed: int = 0
    min_scale: float = 0.7
    max_aspect: float = 1.15
    max_degrees: float = 10.0
    colour: float = 0.2
    flip: bool = False

    def __call__(self, image: Image.Image, position: EpochIndex) -> Image.Image:
        generator = row_generator(self.seed, position, stream=_AUGMENTATION_STREAM)
        image = image.resize(
            (self.size, self.size),
            Image.Resampling.BILINEAR,
            box=self._crop_box(image.size, generator),
            reducing_gap=2.0,
        )
        degrees = generator.uniform(-self.max_degrees, self.max_degrees)
        image = image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=WHITE)
        if self.flip and generator.random() < 0.5:
            image = ImageOps.mirror(image)
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(generator.uniform(1 - self.colour, 1 + self.colour))
        return image

    def _crop_box(self, size: tuple[int, int], generator: np.random.Generator) -> tuple[float, float, float, float]:
        """(left, upper, right, lower) of a random crop within a picture of this size."""
        scale = generator.uniform(self.min_scale, 1.0)
        aspect = np.exp(generator.uniform(-1, 1) * np.log(self.max_aspect))
        width = min(1.0, np.sqrt(scale * aspect)) * size[0]
        height = min(1.0, np.sqrt(scale / aspect)) * size[1]
        left = generator.uniform(0, size[0] - width)
        upper = generator.uniform(0, size[1] - height)
        return left, upper, left + width, upper + height

"""Any picture -> upright RGB, and the seeded augmentation that training uses."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

from .errors import BadItemError
from .seeding import EpochIndex, row_generator

# Pillow's own threshold for a decompression bomb; it only warns below twice that, we refuse.
MAX_PIXELS = 89_478_485
# A picture one pixel wide is a tracking pixel or a divider.
MIN_SIDE = 2
# Sides that differ by more are a divider too; resized by its shorter side, such a strip would fill the memory.
MAX_ASPECT = 100
_WHITE = (255, 255, 255)
_AUGMENTATION_STREAM = 1


def decode_image(source: bytes | str | os.PathLike | Image.Image, *, min_size: int | None = None) -> Image.Image:
    """The first frame of a picture as upright 8-bit RGB.

    Applies the EXIF orientation; converts CMYK, palette, grey and 16-bit pictures; puts transparent ones on white.

    Args:
        source: encoded bytes, a path, or an opened picture.
        min_size: a shorter side of at least this many pixels is enough: JPEG is decoded at the smallest of 1, 1/2,
            1/4, 1/8 of its size that satisfies it.

    Raises:
        BadItemError: the file is empty, cut off or not a picture; the picture is a pixel wide, a strip with one side
            more than 100 times the other, or a decompression bomb.
    """
    try:
        image = _open(source)
        if image.width * image.height > MAX_PIXELS:
            raise BadItemError("decompression bomb", f"{image.width} x {image.height} pixels")
        if min(image.size) < MIN_SIDE:
            raise BadItemError("image without content", f"{image.width} x {image.height} pixels")
        if max(image.size) > MAX_ASPECT * min(image.size):
            raise BadItemError("image is a strip", f"{image.width} x {image.height} pixels")
        if min_size is not None:
            _use_reduced_scale(image, min_size)
        image.seek(0)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise BadItemError("missing file", str(error)) from error
    except UnidentifiedImageError as error:
        raise BadItemError("not an image", str(error)) from error
    except Image.DecompressionBombError as error:
        raise BadItemError("decompression bomb", str(error)) from error
    except BadItemError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise BadItemError("corrupt image", f"{type(error).__name__}: {error}") from error


def _open(source: bytes | str | os.PathLike | Image.Image) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not content:
        raise BadItemError("empty file", "0 bytes")
    return Image.open(io.BytesIO(content))


def _use_reduced_scale(image: Image.Image, min_size: int) -> None:
    """Let the JPEG decoder skip detail (`draft` is a no-op for other formats)."""
    scale = min_size / min(image.size)
    if scale < 1:
        image.draft(None, (int(np.ceil(image.width * scale)), int(np.ceil(image.height * scale))))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey opens as I;16 or as I: keep the upper byte
        return Image.fromarray((np.asarray(image, dtype=np.int64).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        return Image.fromarray((np.nan_to_num(np.asarray(image)).clip(0, 1) * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*_WHITE, 255)), image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class ImageAugment:
    """Gentle augmentation for contrastive training: the caption must stay true of the picture.

    A crop of `min_scale` to 1 of the area is resized to a square, then rotated, mirrored and changed in brightness,
    contrast and saturation. All is drawn from (`seed`, epoch, index) of the row: neither the number of workers nor
    resuming changes a picture.

    Attributes:
        size: side of the result in pixels.
        seed: of the training run.
        min_scale: smallest area of the crop, as a fraction.
        max_aspect: the crop's sides differ by at most this factor.
        max_degrees: of rotation; corners are filled with white.
        colour: largest relative change of brightness, contrast and saturation.
        flip: mirror half of the pictures (off: captions may tell left from right, and text reads one way).
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
        image = image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=_WHITE)
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

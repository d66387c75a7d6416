"""An encoded or decoded picture -> upright RGB.

Needs nothing of this package but `errors`, `formats` and `local_files`, so that a demo Space carries it.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import BadItemError
from .formats import conversion, ending, image_formats, is_unreadable
from .local_files import check_size, open_regular, read_regular

# Pillow's threshold for a decompression bomb. Pillow only warns below twice that number; here such pictures are
# refused.
MAX_PIXELS = 89_478_485
# A picture one pixel wide is a tracking pixel or a divider.
MIN_SIDE = 2
# Maximum ratio of the sides. A strip with a larger one is a divider too; resized by its shorter side, it would fill the
# memory.
MAX_ASPECT = 100
WHITE = (255, 255, 255)
_CHANNELS = (1, 3, 4)
_FULL_SCALE = 65_535  # of 16 bits
_FORMATS_OF_16_BITS = ("PNG", "PPM")  # formats whose integers have 16 bits at most
# Range of the numbers of a picture whose full scale is 1: filters and bright lights go beyond it.
_FLOAT_RANGE = (-0.5, 2.0)
# Formats of cameras and phones that Pillow lacks, by the first bytes of their files (ISO 23008-12 10.2, ISO 18181-2 9).
_HEAD_BYTES = 16
_FOREIGN_FORMATS: dict[str, Callable[[bytes], bool]] = {
    "HEIF (heic, heif)": lambda head: head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"mif1", b"msf1"),
    "JPEG XL (jxl)": lambda head: head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")),
}


def decode_image(source: Any, *, min_size: int | None = None) -> Image.Image:
    """The first frame of a picture as upright 8-bit RGB.

    Applies the EXIF orientation; converts CMYK, palette, grey and 16-bit pictures; puts transparent ones on white.

    Args:
        source: Encoded bytes, the path of a local file, a Pillow image, or a uint8 array (height, width[, 1, 3 or 4]).
        min_size: Shorter side in pixels that is large enough: JPEG is decoded at the smallest of 1, 1/2, 1/4 and 1/8 of
            its size that satisfies it. A Pillow image is decoded at its own size.

    Raises:
        BadItemError: If the file is missing, is not a regular file, is larger than `local_files.MAX_FILE_BYTES`, is
            empty, is cut off or has a format that is not in `image_formats()` (PostScript is not, because Pillow starts
            Ghostscript for it); if the picture is one pixel wide, is a strip with one side more than 100 times the
            other, or is a decompression bomb; if its full scale is not known: integers of 32 bits that go beyond 0 to
            65535 or would all be black, fractions that go far beyond 0 to 1; or if the source has another type. The
            detail names the path.
    """
    try:
        image = _open(source)
        _check_sides(image)
        if min_size is not None and image is not source:  # a Pillow image of the caller keeps its size
            _use_reduced_scale(image, min_size)
        image.seek(0)
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image), is_16_bit=image.format in _FORMATS_OF_16_BITS)
    except FileNotFoundError as error:
        raise BadItemError("missing file", str(error.filename)) from error
    except UnidentifiedImageError as error:
        # Pillow's message contains the address of a buffer in memory.
        raise _unreadable(source) from error
    except Image.DecompressionBombError as error:
        raise BadItemError("decompression bomb", _named(source, str(error))) from error
    except BadItemError as error:
        raise BadItemError(error.reason, _named(source, error.detail)) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise BadItemError("corrupt image", _named(source, f"{type(error).__name__}: {error}")) from error


def _open(source: Any) -> Image.Image:
    if isinstance(source, Image.Image):
        if source.format not in (None, *image_formats()) and getattr(source, "tile", None):  # not yet decoded
            raise BadItemError("not an image", f"{source.format} is none of {_shown_formats()}")
        return source
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes | bytearray | memoryview):
        check_size(len(source), "")
        content = bytes(source)
    elif isinstance(source, str | os.PathLike):
        content = read_regular(source)
    else:
        raise BadItemError("unknown cell", f"{type(source).__name__} is no picture: pass bytes, a path or an image")
    if not content:
        raise BadItemError("empty file", "0 bytes")
    return Image.open(io.BytesIO(content), "r", image_formats())


def _unreadable(source: Any) -> BadItemError:
    """Error for a file that Pillow does not read: a format that it lacks, by first bytes or ending, or no picture."""
    head, name = b"", ""
    if isinstance(source, bytes | bytearray | memoryview):
        head = bytes(source[:_HEAD_BYTES])
    elif isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        with open_regular(source) as file:
            head = file.read(_HEAD_BYTES)
    for known, is_of in _FOREIGN_FORMATS.items():
        if is_of(head):
            return BadItemError(
                "unsupported format", _named(source, f"{known}: convert it with `magick INPUT OUT.png`")
            )
    if is_unreadable(name, "image"):
        hint = f"{ending(name)}: convert it with `{conversion(name, 'image')}`"
        return BadItemError("unsupported format", _named(source, hint))
    return BadItemError("not an image", _named(source, f"none of {_shown_formats()}"))


def _shown_formats() -> str:
    return ", ".join(image_formats())


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS):
        raise BadItemError(
            "unknown cell",
            f"an array of {pixels.dtype} {pixels.shape} is no picture: pass uint8, (height, width[, 1, 3 or 4])",
        )
    return Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)


def _named(source: Any, detail: str) -> str:
    """The detail, preceded by the path where there is one that it does not name."""
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    return detail if not path or str(path) in detail else f"{path}: {detail}"


def _check_sides(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadItemError("decompression bomb", f"{image.width} x {image.height} pixels")
    if min(image.size) < MIN_SIDE:
        raise BadItemError("image without content", f"{image.width} x {image.height} pixels")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise BadItemError("image is a strip", f"{image.width} x {image.height} pixels")


def _use_reduced_scale(image: Image.Image, min_size: int) -> None:
    """Let the JPEG decoder skip detail (`draft` is a no-op for other formats)."""
    scale = min_size / min(image.size)
    if scale < 1:
        image.draft(None, (int(np.ceil(image.width * scale)), int(np.ceil(image.height * scale))))


def _to_rgb(image: Image.Image, *, is_16_bit: bool) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey opens as I;16 or as I
        values = np.asarray(image, dtype=np.int64)
        grey = _upper_bytes(values, is_16_bit or image.mode != "I")
        clear = image.info.get("transparency")  # one grey that stands for nothing
        return Image.fromarray(grey if clear is None else np.where(values == clear, np.uint8(WHITE[0]), grey)).convert(
            "RGB"
        )
    if image.mode == "F":
        return Image.fromarray(_bytes_of_fractions(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*WHITE, 255)), image).convert("RGB")
    return image.convert("RGB")


def _upper_bytes(values: np.ndarray, is_16_bit: bool) -> np.ndarray:
    """16-bit grey (height, width) int64 -> uint8; integers that may have 32 bits must look like 16-bit grey."""
    lowest, highest = int(values.min()), int(values.max())
    if not is_16_bit and (lowest < 0 or highest > _FULL_SCALE or 0 < highest <= _FULL_SCALE >> 8):
        raise _unknown_scale(f"integers from {lowest} to {highest}", f"0 to {_FULL_SCALE}")
    return (values >> 8).astype(np.uint8)


def _bytes_of_fractions(values: np.ndarray) -> np.ndarray:
    """Fractions (height, width) of full scale -> uint8; those that are not finite become black."""
    values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    lowest, highest = float(values.min()), float(values.max())
    if lowest < _FLOAT_RANGE[0] or highest > _FLOAT_RANGE[1]:
        raise _unknown_scale(f"fractions from {lowest:.3g} to {highest:.3g}", "0 to 1")
    return (values.clip(0, 1) * 255).astype(np.uint8)


def _unknown_scale(found: str, expected: str) -> BadItemError:
    return BadItemError("unknown full scale", f"{found}, where {expected} is full scale: save the picture with 8 bits")

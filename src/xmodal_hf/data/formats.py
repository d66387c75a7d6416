"""File endings of pictures and sounds: those that the decoders read, and known ones that they do not.

Rule: folders, zip archives and tars use `readable_endings` alone, so that a file which can be decoded is found wherever
it lies; in folders and zip archives, a file without an ending is one of them if the decoder recognises its contents.
What is left out is counted by ending (`left_out_note`), and a format that the decoders lack is named as such,
with the command that converts it (`conversion`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import PurePosixPath
from typing import BinaryIO, Literal

from PIL import Image

Modality = Literal["image", "audio"]

# Pillow formats of pictures. Left out are formats that start other programs (EPS), stubs without a decoder, films and
# files of design programs.
_PILLOW_FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000"),
    *("PPM", "TGA", "PCX", "SGI", "QOI", "ICO", "DDS"),
)
# libsndfile format -> the endings that its files have. Formats without a header (RAW) cannot be recognised.
_SOUNDFILE_ENDINGS = {
    "WAV": (".wav", ".wave"),
    "FLAC": (".flac",),
    "OGG": (".ogg", ".oga", ".opus"),
    "MP3": (".mp3",),
    "AIFF": (".aiff", ".aif", ".aifc"),
    "AU": (".au", ".snd"),
    "CAF": (".caf",),
    "W64": (".w64",),
    "RF64": (".rf64",),
    "NIST": (".sph", ".nist"),
    "VOC": (".voc",),
}
_UNREADABLE: dict[Modality, tuple[str, ...]] = {
    "image": (".heic", ".heif", ".jxl", ".svg", ".eps", ".ps", ".pdf", ".psd", ".cr2", ".nef", ".arw", ".dng"),
    "audio": (
        *(".m4a", ".m4b", ".aac", ".wma", ".webm", ".weba", ".mp4", ".mka", ".mkv", ".mov", ".avi", ".3gp"),
        *(".amr", ".ac3", ".ape", ".wv", ".ra", ".mp2"),
    ),
}
_CONVERTERS: dict[Modality, str] = {"image": "magick {0} {1}.png", "audio": "ffmpeg -i {0} {1}.flac"}
_SHOWN = 8


@cache
def image_formats() -> tuple[str, ...]:
    """The formats that `PIL.Image.open(..., formats=image_formats())` may use: those of pictures that Pillow has."""
    Image.init()
    return tuple(name for name in _PILLOW_FORMATS if name in Image.OPEN)


@cache
def readable_endings(modality: Modality) -> frozenset[str]:
    """Endings, in lower case with their dot, of the files that the decoder of a modality reads here."""
    return _READABLE[modality]()


def _picture_endings() -> frozenset[str]:
    Image.init()
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in image_formats())


def _sound_endings() -> frozenset[str]:
    import soundfile  # demo Spaces of image models carry this module and do not install soundfile

    present = soundfile.available_formats()
    return frozenset(ending for name, endings in _SOUNDFILE_ENDINGS.items() if name in present for ending in endings)


_READABLE: dict[Modality, Callable[[], frozenset[str]]] = {"image": _picture_endings, "audio": _sound_endings}


def ending(name: str) -> str:
    """The last ending of a file's name in lower case: ".jpeg" of "000.image.JPEG"."""
    return PurePosixPath(name).suffix.lower()


def is_readable(name: str, modality: Modality) -> bool:
    """Whether the ending of a file is one that the decoder of the modality reads."""
    return ending(name) in readable_endings(modality)


def is_recognised(stream: BinaryIO, modality: Modality) -> bool:
    """Whether the decoder of a modality recognises a file by its contents: for files whose names have no ending."""
    try:
        if modality == "image":
            Image.open(stream, "r", image_formats())  # this reads only the header
        else:
            import soundfile

            soundfile.info(stream)
    except (OSError, RuntimeError, ValueError, Image.DecompressionBombError):
        return False
    return True


def is_unreadable(name: str, modality: Modality) -> bool:
    """Whether a file is known to be a picture or sound in a format that the decoder lacks, such as .m4a or .heic."""
    return ending(name) in _UNREADABLE[modality] and not is_readable(name, modality)


def conversion(name: str, modality: Modality) -> str:
    """The command that converts a file to a format that the decoder reads: "ffmpeg -i a.m4a a.flac"."""
    return _CONVERTERS[modality].format(name, str(PurePosixPath(name).with_suffix("")))


def left_out_note(names: Iterable[str], modality: Modality) -> str:
    """Number of files that are left out, by ending; for a format that the decoder lacks, the command that converts it.

    Args:
        names: Names of the files that are left out.
        modality: Modality that is looked for, `image` or `audio`.

    Returns:
        Text such as "12 .m4a (cannot be decoded: convert with `ffmpeg -i NAME.m4a NAME.flac`), 3 .txt".
    """
    counts = Counter(ending(name) or "without an ending" for name in names)
    parts = []
    for found, count in counts.most_common(_SHOWN):
        name = f"NAME{found}"
        convert = f" (cannot be decoded: convert with `{conversion(name, modality)}`)"
        parts.append(f"{count:,} {found}" + (convert if is_unreadable(name, modality) else ""))
    more = len(counts) - _SHOWN
    return ", ".join(parts) + (f" and {more} other endings" if more > 0 else "")

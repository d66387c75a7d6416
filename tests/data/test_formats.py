"""The endings are those of files that the decoders really read."""

import io

import numpy as np
import pytest
import soundfile
from PIL import Image

from xmodal_hf.data.audio import decode_audio
from xmodal_hf.data.formats import (
    conversion,
    image_formats,
    is_readable,
    is_unreadable,
    left_out_note,
    readable_endings,
)
from xmodal_hf.data.images import decode_image


def test_endings_are_those_of_the_decoders():
    assert {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2"} <= readable_endings("image")
    assert {".wav", ".flac", ".ogg", ".mp3", ".opus", ".oga", ".aiff", ".aif", ".au"} <= readable_endings("audio")
    assert not {".eps", ".ps", ".mpg", ".h5"} & readable_endings("image")


@pytest.mark.parametrize("name", sorted(readable_endings("image")))
def test_each_picture_ending_is_decoded(name):
    picture, buffer = Image.new("RGB", (32, 24), (200, 30, 40)), io.BytesIO()
    kind = Image.registered_extensions()[name]
    if kind not in Image.SAVE:
        # Which formats Pillow writes depends on the libraries that its wheel was built with.
        pytest.skip(f"Pillow does not write {kind}")
    (picture.convert("1") if name == ".pbm" else picture).save(buffer, kind)
    assert (
        Image.open(io.BytesIO(buffer.getvalue()), formats=image_formats()).size == decode_image(buffer.getvalue()).size
    )


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *(("WAV", None), ("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None), ("AIFF", None)),
        *(("AU", None), ("CAF", None), ("W64", None), ("RF64", None), ("NIST", None), ("VOC", "PCM_16")),
    ],
)
def test_each_sound_format_is_decoded(kind, subtype):
    buffer = io.BytesIO()
    tone = np.sin(np.arange(8000) / 5).astype(np.float32)
    soundfile.write(buffer, tone, 16_000, format=kind, subtype=subtype)
    assert len(decode_audio(buffer.getvalue(), 16_000)) >= 8000


def test_formats_that_the_decoder_lacks_are_named_with_the_command():
    assert all(is_unreadable(name, "audio") for name in ("a.m4a", "a.aac", "a.WMA", "a.webm"))
    assert is_unreadable("a.heic", "image") and not is_unreadable("a.opus", "audio")
    assert is_readable("000.image.JPEG", "image") and not is_readable("a.m4a", "audio")
    assert conversion("dogs/a.m4a", "audio") == "ffmpeg -i dogs/a.m4a dogs/a.flac"
    note = left_out_note(["a.m4a", "b.M4A", "notes.txt", "LICENSE"], "audio")
    assert "2 .m4a (cannot be decoded: convert with `ffmpeg -i NAME.m4a NAME.flac`)" in note
    assert "1 .txt" in note and "1 without an ending" in note

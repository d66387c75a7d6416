"""Where pictures and sounds lie: only regular files of a bounded size are read, wherever they lie."""

import bz2
import io
import os
import socket
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import soundfile
from PIL import Image

from xmodal_hf.data import files, local_files, pictures
from xmodal_hf.data.audio import load_waveform
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.data.files import read_media, tar_member, zip_member
from xmodal_hf.data.images import load_image

LIMIT = 1 << 16


def png(colour=(1, 2, 3)):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def wav():
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.3 * np.sin(np.arange(800)), 8000, format="WAV")
    return buffer.getvalue()


@pytest.fixture
def small_limit(monkeypatch):
    for module in (files, local_files):
        monkeypatch.setattr(module, "MAX_FILE_BYTES", LIMIT)


@pytest.fixture(params=["fifo", "device", "directory", "socket"])
def no_file(request, tmp_path):
    path = tmp_path / "item.jpg"
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    elif request.param == "directory":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(path))
    return str(path)


@pytest.mark.parametrize("scheme", ["", "file://", "local://"])
@pytest.mark.parametrize("load", [load_image, lambda item: load_waveform(item, 8000)])
def test_what_is_no_file_is_a_bad_item_and_never_read(no_file, scheme, load):
    for item in (scheme + no_file, {"bytes": None, "path": scheme + no_file}):
        with pytest.raises(BadItemError, match=r"not a regular file: .*item\.jpg is a"):
            load(item)


@pytest.mark.parametrize("address", [lambda path: zip_member(path, "a.png"), lambda path: tar_member(path, 0, 10)])
def test_an_archive_that_is_no_file(tmp_path, address):
    os.mkfifo(tmp_path / "archive")
    with pytest.raises(BadItemError, match="not a regular file"):
        read_media({"bytes": None, "path": address(tmp_path / "archive")})


def test_a_directory_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.mkdir("pictures")
    with pytest.raises(BadItemError, match="not a regular file"):
        read_media({"bytes": None, "path": zip_member(tmp_path / "a.zip", "pictures/")})


class TestTooLarge:
    def test_bytes_and_files(self, small_limit, tmp_path):
        path = tmp_path / "large.png"
        for size, is_refused in ((LIMIT, False), (LIMIT + 1, True)):
            path.write_bytes(bytes(size))
            for cell in ({"bytes": bytes(size), "path": None}, {"bytes": None, "path": str(path)}):
                with pytest.raises(BadItemError) as caught:
                    load_image(cell)
                assert (caught.value.reason == "file too large") == is_refused
        with pytest.raises(BadItemError, match="file too large"):
            load_waveform(bytes(LIMIT + 1), 8000)

    def test_addresses_of_servers(self, small_limit):
        filesystem = files.fsspec.filesystem("memory")
        filesystem.pipe("/large.png", bytes(LIMIT + 1))
        filesystem.pipe("/small.png", png())
        with pytest.raises(BadItemError, match=r"file too large: memory://large\.png"):
            load_image({"bytes": None, "path": "memory://large.png"})
        assert load_image("memory://small.png").size == (8, 8)

    def test_members_of_a_tar(self, small_limit, tmp_path):
        with pytest.raises(BadItemError, match="file too large"):
            read_media({"bytes": None, "path": tar_member(tmp_path / "a.tar", 512, LIMIT + 1)})

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_members_of_a_zip(self, small_limit, tmp_path, method):
        with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as archive:
            archive.writestr("bomb.png", bytes(40 * LIMIT))
            archive.writestr("good.png", png())
        with pytest.raises(BadItemError, match=r"file too large: zip://bomb.png::.*a\.zip"):
            read_media({"bytes": None, "path": zip_member(tmp_path / "a.zip", "bomb.png")})
        assert read_media({"bytes": None, "path": zip_member(tmp_path / "a.zip", "good.png")}) == png()

    @pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_a_zip_that_lies_about_a_size(self, small_limit, tmp_path, method, monkeypatch):
        """No more is inflated than the limit, whatever the archive declares."""
        path = tmp_path / "a.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("bomb.png", bytes(40 * LIMIT))
        content = path.read_bytes()
        declared = struct.pack("<I", 40 * LIMIT)
        assert content.count(declared) == 2  # before the member and in the directory
        path.write_bytes(content.replace(declared, struct.pack("<I", 1000)))
        largest = []
        decompressor = bz2.BZ2Decompressor

        class Counting:
            def __init__(self):
                self.inner = decompressor()

            def decompress(self, *arguments, **options):
                content = self.inner.decompress(*arguments, **options)
                largest.append(len(content))
                return content

        monkeypatch.setattr(files.bz2, "BZ2Decompressor", Counting)
        with pytest.raises(BadItemError, match=r"file too large|unreadable file"):
            read_media({"bytes": None, "path": zip_member(path, "bomb.png")})
        assert max(largest, default=0) <= LIMIT + 1
        assert bool(largest) == (method == zipfile.ZIP_BZIP2)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


class TestPostScript:
    @pytest.fixture(autouse=True)
    def no_ghostscript(self, monkeypatch):
        def started(*arguments, **options):
            raise AssertionError("Ghostscript was started")

        monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", started)

    def test_pillow_would_start_it(self):
        with pytest.raises(AssertionError, match="Ghostscript"):
            Image.open(io.BytesIO(POSTSCRIPT)).load()

    def test_named_like_a_picture(self, tmp_path):
        path = tmp_path / "page.jpg"
        path.write_bytes(POSTSCRIPT)
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            archive.add(path, "page.jpg")
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.write(path, "page.jpg")
        tar = tar_member(tmp_path / "a.tar", tarfile.BLOCKSIZE, len(POSTSCRIPT))
        items = [
            path,
            str(path),
            POSTSCRIPT,
            Image.open(path),
            {"bytes": POSTSCRIPT, "path": "page.jpg"},
            {"path": tar},
        ]
        for item in [*items, {"bytes": None, "path": zip_member(tmp_path / "a.zip", "page.jpg")}]:
            with pytest.raises(BadItemError, match=r"not an image: .*none of JPEG"):
                load_image(item)

    def test_other_formats_that_pillow_opens_by_other_programs_or_not_at_all(self):
        assert not {"EPS", "WMF", "HDF5", "FITS", "PSD", "MPEG"} & set(pictures.image_formats())


class TestForms:
    """What an image or audio column can hold is one picture or sound, or a clear error."""

    def test_pictures(self, tmp_path):
        content, path = png((9, 8, 7)), tmp_path / "a.png"
        path.write_bytes(content)
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.write(path, "a.png")
        forms = [content, bytearray(content), path, str(path), Image.open(path), np.asarray(Image.open(path))]
        forms += [f"file://{path}", {"bytes": content, "path": None}, {"path": str(path)}, {"bytes": content}]
        forms += [zip_member(tmp_path / "a.zip", "a.png")]
        pixels = {load_image(form).tobytes() for form in forms}
        assert pixels == {bytes((9, 8, 7)) * 64}

    @pytest.mark.parametrize(
        "item, message",
        [
            (3, "unknown cell: int is no picture"),
            ([1, 2], "unknown cell: list is no picture"),
            ({"pixels": []}, "unknown cell: a picture has bytes or a path, this cell has pixels"),
            (np.zeros((4, 4)), "unknown cell: an array of float64"),
            (np.zeros((3, 8, 8), np.uint8), "unknown cell: an array of uint8"),
            (None, "no media"),
        ],
    )
    def test_what_is_no_picture(self, item, message):
        with pytest.raises(BadItemError, match=message):
            load_image(item)

    def test_no_error_holds_an_address_in_memory(self, tmp_path):
        (tmp_path / "a").write_bytes(b"neither a picture nor a sound")
        for load in (load_image, lambda item: load_waveform(item, 8000)):
            for item in (b"neither a picture nor a sound", str(tmp_path / "a"), wav()[:30], png()[:40]):
                with pytest.raises(BadItemError) as caught:
                    load(item)
                assert "0x" not in str(caught.value)

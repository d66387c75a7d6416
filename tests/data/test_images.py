import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from xmodal_hf.data.errors import BadItemError
from xmodal_hf.data.images import ImageAugment, decode_image, load_image
from xmodal_hf.data.seeding import EpochIndex


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def photo(width: int = 64, height: int = 48) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=2).astype(np.uint8))


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, data)
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: rotate by 90 degrees to view
    image = decode_image(encoded(photo(), "JPEG", exif=exif.tobytes(), quality=95))
    assert image.size == (48, 64)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(photo().rotate(-90, expand=True))).mean() < 3


@pytest.mark.parametrize(
    "mode, kind", [("CMYK", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("YCbCr", "JPEG")]
)
def test_modes_become_rgb(mode, kind):
    image = decode_image(encoded(photo().convert(mode), kind))
    assert image.mode == "RGB" and image.size == (64, 48)
    expected = np.asarray(photo().convert(mode).convert("RGB")).astype(int)
    assert np.abs(np.asarray(image) - expected).mean() < 4


def test_transparency_is_put_on_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (255, 0, 0, 128))
    decoded = decode_image(encoded(image, "PNG"))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 1)) == (255, 127, 127)


def test_a_transparent_palette_colour_is_put_on_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.putpixel((1, 1), 1)
    decoded = decode_image(encoded(image, "PNG", transparency=0))
    assert decoded.getpixel((0, 0)) == (255, 255, 255)
    assert decoded.getpixel((1, 1)) == (200, 0, 0)


def test_sixteen_bits_keep_their_upper_byte():
    """Pillow's own conversion clips: all of this picture above 255 would be white."""
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values), "PNG"))
    assert np.array_equal(np.asarray(decoded)[..., 0], values >> 8)


def test_float_pictures_are_scaled():
    values = np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(48, 64)
    decoded = decode_image(encoded(Image.fromarray(values), "TIFF"))
    assert np.array_equal(np.asarray(decoded)[..., 1], (values * 255).astype(np.uint8))


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(0, 255, 64, dtype=np.float32),
        np.linspace(-1, 1, 64, dtype=np.float32),
        np.linspace(0, 255, 64).astype(np.int32),
        np.linspace(0, 1 << 20, 64).astype(np.int32),
        np.linspace(-5, 60_000, 64).astype(np.int32),
    ],
)
def test_numbers_of_another_full_scale_are_refused(values, tmp_path):
    """They would become a white or a black picture."""
    (tmp_path / "a.tif").write_bytes(encoded(Image.fromarray(values.reshape(8, 8)), "TIFF"))
    with pytest.raises(BadItemError, match=r"unknown full scale: .*a\.tif: .* is full scale: save the picture with 8"):
        load_image(str(tmp_path / "a.tif"))


def test_integers_and_fractions_of_the_usual_full_scale_are_read():
    integers = np.linspace(0, 65_535, 64).astype(np.int32).reshape(8, 8)
    assert np.array_equal(np.asarray(decode_image(Image.fromarray(integers)))[..., 0], integers >> 8)
    assert not np.asarray(decode_image(Image.fromarray(np.zeros((8, 8), np.int32)))).any()
    bright = np.array([[0, 1.2], [np.nan, np.inf]], np.float32)
    assert np.asarray(decode_image(Image.fromarray(bright)))[..., 0].tolist() == [[0, 255], [0, 0]]


def test_dark_pictures_of_formats_with_16_bits_are_read():
    dark = b"P5 4 4 1023\n" + np.full(16, 3, ">u2").tobytes()
    assert np.asarray(decode_image(dark)).max() == 0
    values = np.full((4, 4), 40, np.uint16)
    assert np.asarray(decode_image(encoded(Image.fromarray(values), "PNG"))).max() == 0


def test_a_transparent_grey_of_16_bits_is_put_on_white():
    values = np.array([[30_000, 20_000]] * 2, np.uint16)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(values), "PNG", transparency=30_000)))
    assert decoded[0].tolist() == [[255] * 3, [20_000 >> 8] * 3]


def test_a_pillow_image_of_the_caller_keeps_its_size():
    opened = Image.open(io.BytesIO(encoded(photo(256, 256), "JPEG")))
    assert decode_image(opened, min_size=32).size == opened.size == (256, 256)
    assert decode_image(opened, min_size=224).size == (256, 256)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)
    opened = Image.open(io.BytesIO(content))
    opened.seek(1)
    assert decode_image(opened).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("width, height", [(800, 600), (600, 800), (1001, 333)])
def test_jpeg_is_decoded_at_a_reduced_scale_that_is_large_enough(width, height):
    content = encoded(photo(width, height), "JPEG")
    reduced = decode_image(content, min_size=90)
    assert 90 <= min(reduced.size) <= min(width, height) / 2 + 1
    assert decode_image(content).size == (width, height)
    small = np.asarray(reduced.resize((32, 24), Image.Resampling.BOX)).astype(int)
    assert np.abs(small - np.asarray(photo(32, 24))).mean() < 8
    assert decode_image(content, min_size=2000).size == (width, height)


def test_paths_bytes_and_pictures_are_the_same(tmp_path):
    path = tmp_path / "photo.png"
    photo().save(path)
    arrays = [np.asarray(decode_image(source)) for source in (path, str(path), path.read_bytes(), photo())]
    assert all(np.array_equal(array, np.asarray(photo())) for array in arrays)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty file"),
        (b"This is a text file, whatever its name is.\n" * 20, "not an image"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "unsupported format"),
        (b"\xff\x0a" + bytes(100), "unsupported format"),
        (encoded(photo(), "JPEG")[:400], "corrupt image"),
        (encoded(photo(), "PNG")[:100], "corrupt image"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "image without content"),
        (png_header(15_000, 10_000), "decompression bomb"),
        (png_header(100_000, 100_000), "decompression bomb"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_unusable_pictures_say_why(content, reason):
    with pytest.raises(BadItemError) as caught:
        decode_image(content)
    assert caught.value.reason == reason
    copied = pickle.loads(pickle.dumps(caught.value))  # as when it travels from a worker
    assert (copied.reason, copied.detail) == (caught.value.reason, caught.value.detail)


def test_a_format_that_pillow_lacks_says_how_to_convert(tmp_path):
    """Wherever the file is named: in a table, in a folder, with the ending of another format."""
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypmif1" + bytes(100))
    (tmp_path / "b.cr2").write_bytes(b"raw" * 100)
    for name, message in (
        ("a.jpg", r"a\.jpg: HEIF .*: convert it with `magick"),
        ("b.cr2", r"convert it with `magick .*b\.cr2"),
    ):
        with pytest.raises(BadItemError, match=rf"unsupported format: .*{message}"):
            decode_image(tmp_path / name)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(BadItemError, match=r"missing file.*gone\.png"):
        decode_image(tmp_path / "gone.png")


class TestImageAugment:
    def test_depends_on_seed_epoch_and_index_only(self):
        augment = ImageAugment(32, seed=3)

        def picture(seed, epoch, index):
            np.random.seed(seed * 7 + epoch)  # the global state must not matter
            return np.asarray(ImageAugment(32, seed=seed)(photo(), EpochIndex(epoch, index)))

        first = np.asarray(augment(photo(), EpochIndex(1, 5)))
        assert first.shape == (32, 32, 3)
        assert np.array_equal(first, picture(3, 1, 5))
        for other in (picture(4, 1, 5), picture(3, 2, 5), picture(3, 1, 6)):
            assert not np.array_equal(first, other)

    def test_with_everything_off_it_is_a_resize(self):
        augment = ImageAugment(32, min_scale=1.0, max_aspect=1.0, max_degrees=0.0, colour=0.0)
        expected = photo().resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2.0)
        assert np.array_equal(np.asarray(augment(photo(), EpochIndex(0, 0))), np.asarray(expected))

    def test_flip_mirrors_half_of_the_pictures(self):
        augment = ImageAugment(32, min_scale=1.0, max_aspect=1.0, max_degrees=0.0, colour=0.0, flip=True)
        reds = [augment(photo(), EpochIndex(0, index)).getpixel((0, 16))[0] for index in range(200)]
        assert 70 < sum(red > 128 for red in reds) < 130

    def test_crops_stay_inside_and_cover_enough(self):
        augment = ImageAugment(32, min_scale=0.5, max_aspect=1.3)
        for index in range(200):
            box = augment._crop_box((64, 48), np.random.default_rng(index))
            left, upper, right, lower = box
            assert 0 <= left < right <= 64 and 0 <= upper < lower <= 48
            assert (right - left) * (lower - upper) >= 0.85 * 0.5 * 64 * 48  # a side that is clipped loses a little


@pytest.mark.parametrize("size", [(2, 201), (5000, 20)])
def test_strips_are_refused(size):
    """Resized by its shorter side to 224 pixels, a strip of 2 x 20,000 would have 500 million."""
    with pytest.raises(BadItemError, match=f"image is a strip: {size[0]} x {size[1]} pixels"):
        decode_image(encoded(Image.new("L", size), "PNG"))
    assert decode_image(encoded(Image.new("L", (2, 200)), "PNG")).size == (2, 200)


@pytest.mark.parametrize("error", [struct.error("unpack"), KeyError("tile"), MemoryError(), zlib.error("damaged")])
def test_whatever_a_decoder_raises_is_a_bad_item(error, monkeypatch):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(BadItemError, match=f"corrupt image: {type(error).__name__}"):
        decode_image(b"a picture")


def test_noise_in_place_of_bytes_is_a_bad_item_or_a_picture():
    """No damage to a file may end a worker."""
    generator = np.random.default_rng(0)
    contents = [encoded(photo(), kind) for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")]
    refused = 0
    for content in contents * 40:
        damaged = bytearray(content)
        for place in generator.integers(len(damaged), size=8):
            damaged[place] = generator.integers(256)
        try:
            decode_image(bytes(damaged))
        except BadItemError:
            refused += 1
    assert 40 < refused < 240

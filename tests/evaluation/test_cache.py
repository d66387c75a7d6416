"""The embedding memory: nothing is encoded twice, nothing is mixed up, a folder outlives the process."""

import io

import numpy as np
import pytest
from PIL import Image

from xmodal_hf.data.builtin.soundfont import ADDRESS_SCHEME
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.evaluation import Embedder
from xmodal_hf.evaluation.cache import CachedEmbedder, content_digest


class Counting(Embedder):
    """Embeds by length or brightness, and remembers what it was asked."""

    logit_scale = 7.0

    def __init__(self):
        self.seen = []

    def encode_text(self, texts, normalize=True):
        self.seen += texts
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32)

    def encode_image(self, images):
        batch = list(images)
        self.seen += batch
        return np.array([[np.asarray(image).mean(), 1.0] for image in batch], dtype=np.float32)


def picture(level, size=(4, 4)):
    return Image.new("L", size, level)


def test_each_content_is_encoded_once_and_order_is_kept():
    inner = Counting()
    cached = CachedEmbedder(inner)
    first = cached.encode_text(["aa", "b", "aa"], normalize=False)
    second = cached.encode_text(["ccc", "b"], normalize=False)
    assert inner.seen == ["aa", "b", "ccc"]
    assert first[:, 0].tolist() == [2, 1, 2] and second[:, 0].tolist() == [3, 1]
    assert np.allclose(np.linalg.norm(cached.encode_text(["aa"]), axis=1), 1)
    assert cached.logit_scale == 7.0 and cached.modality is None


def test_items_may_be_a_stream():
    inner = Counting()
    cached = CachedEmbedder(inner)
    embeds = cached.encode_image(picture(level) for level in (5, 9, 5))
    again = cached.encode_image(iter([picture(9)]))
    assert embeds[:, 0].tolist() == [5, 9, 5] and again[0, 0] == 9 and len(inner.seen) == 2


def test_content_decides_not_its_container(tmp_path):
    buffer = io.BytesIO()
    picture(3).save(buffer, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    forms = [
        buffer.getvalue(),
        path,
        str(path),
        {"bytes": buffer.getvalue(), "path": None},
        {"bytes": None, "path": str(path)},
    ]
    assert len({content_digest(form, "image") for form in forms}) == 1
    assert content_digest(picture(0, (2, 8)), "image") != content_digest(picture(0, (4, 4)), "image")
    red, blue = (Image.new("P", (2, 2)) for _ in range(2))
    red.putpalette([255, 0, 0])
    blue.putpalette([0, 0, 255])
    assert content_digest(red, "image") != content_digest(blue, "image")
    clip = np.arange(4, dtype=np.float32)
    assert content_digest(clip, "audio") == content_digest(clip.copy(), "audio")
    assert content_digest(clip, "audio") != content_digest(clip.astype(np.float64), "audio")


def test_a_rendered_sound_is_identified_by_its_address():
    cells = [{"bytes": None, "path": f"{ADDRESS_SCHEME}test/{index}"} for index in (0, 0, 1)]
    digests = [content_digest(cell, "audio") for cell in cells]
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_outlives_the_process_and_keeps_models_apart(tmp_path):
    CachedEmbedder(Counting(), tmp_path, "model A").encode_text(["aa", "b"])
    CachedEmbedder(Counting(), tmp_path, "model A").encode_image([picture(1)])
    later, other = Counting(), Counting()
    embeds = CachedEmbedder(later, tmp_path, "model A").encode_text(["b", "new", "aa"], normalize=False)
    CachedEmbedder(other, tmp_path, "model B").encode_text(["aa"])
    assert later.seen == ["new"] and embeds[:, 0].tolist() == [1, 3, 2]
    assert other.seen == ["aa"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_text_tower_has_a_memory_of_its_own(tmp_path):
    class TwoTowers(Counting):
        text_tower = Counting()

    model = TwoTowers()
    cached = CachedEmbedder(model, tmp_path, "model A")
    for _ in range(2):
        cached.encode_text(["aa"])
        cached.text_tower.encode_text(["aa", "b"])
    assert model.seen == ["aa"] and model.text_tower.seen == ["aa", "b"]
    alone = CachedEmbedder(Counting())
    assert alone.text_tower is alone


def test_bad_input_is_named(tmp_path):
    with pytest.raises(BadItemError, match="no media"):  # a null at the start does not look like the end of the stream
        CachedEmbedder(Counting()).encode_image([None])
    with pytest.raises(ValueError, match="needs the model's identity"):
        CachedEmbedder(Counting(), tmp_path)
    with pytest.raises(ValueError, match="no image to embed"):
        CachedEmbedder(Counting()).encode_image([])
    with pytest.raises(ValueError, match="no audio encoder"):
        CachedEmbedder(Counting()).encode_audio([np.zeros(3)])

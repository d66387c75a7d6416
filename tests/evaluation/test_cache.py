"""The embedding memory: nothing is encoded twice, nothing is mixed up, a folder outlives the process."""

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal_hf.data.builtin.soundfont import ADDRESS_SCHEME
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.evaluation import Embedder, as_embedder
from xmodal_hf.evaluation.cache import CachedEmbedder, content_digest
from xmodal_hf.evaluation.embed import EmbedOptions
from xmodal_hf.evaluation.frozen import with_memory


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
    with pytest.raises(KeyError, match="video"):
        content_digest(np.zeros(3), "video")
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


def test_models_on_the_same_frozen_towers_share_their_vectors(tmp_path, image_text_model, image_text_processor, images):
    other = copy.deepcopy(image_text_model)
    trained = copy.deepcopy(image_text_model)
    with torch.no_grad():
        other.image_projection.weight.normal_()
        other.text_projection.weight.normal_()
        for parameter in trained.image_model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    runs, embeds, texts = [], [], ["rain", "a dog"]
    for name, model, expected in (
        ("first", image_text_model, ["first image", "first text"]),
        ("other", other, []),
        ("trained", trained, ["trained image"]),
    ):
        for side, tower in (("image", model.image_model), ("text", model.text_model)):
            tower.register_forward_hook(lambda *_, run=f"{name} {side}": runs.append(run))
        embedder = as_embedder(model, image_text_processor)
        kept = with_memory(embedder, tmp_path, f"model {name}")
        found = kept.encode_image(images), kept.encode_text(texts), kept.text_tower.encode_text(texts)
        assert list(dict.fromkeys(runs)) == expected
        wanted = embedder.encode_image(images), embedder.encode_text(texts), embedder.text_tower.encode_text(texts)
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=1e-6)
        runs.clear()
        embeds.append(found)
    assert np.abs(embeds[0][0] - embeds[1][0]).max() > 0.01 < np.abs(embeds[0][0] - embeds[2][0]).max()


def test_a_tower_of_sounds_is_shared_too(tmp_path, audio_text_model, audio_text_processor, clips):
    embedder = as_embedder(audio_text_model, audio_text_processor)
    kept = with_memory(embedder, tmp_path, "model").encode_audio(clips)
    np.testing.assert_allclose(kept, embedder.encode_audio(clips), atol=1e-6)
    # Means over windows of unit vectors are the model's, not the tower's.
    windows = as_embedder(audio_text_model, audio_text_processor, options=EmbedOptions(long_clips="mean"))
    assert isinstance(with_memory(windows, tmp_path, "model"), CachedEmbedder)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(BadItemError, match="no media"):  # a null at the start does not look like the end of the stream
        CachedEmbedder(Counting()).encode_image([None])
    with pytest.raises(ValueError, match="needs the model's identity"):
        CachedEmbedder(Counting(), tmp_path)
    with pytest.raises(ValueError, match="no image to embed"):
        CachedEmbedder(Counting()).encode_image([])
    with pytest.raises(ValueError, match="no audio encoder"):
        CachedEmbedder(Counting()).encode_audio([np.zeros(3)])

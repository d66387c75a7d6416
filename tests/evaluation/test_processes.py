"""How an evaluation is shared: every item once, in its place, in the batches that one process would make."""

import numpy as np
import pytest

from xmodal_hf.evaluation import Embedder
from xmodal_hf.evaluation.processes import SharedEmbedder, shared


class Numbers(Embedder):
    """Embeds numbers and texts as themselves, and remembers its batches."""

    logit_scale = 3.0
    max_seconds = 2.5  # of a clip: the window that is decoded

    def __init__(self):
        self.asked = []

    def encode_text(self, texts, normalize=True):
        self.asked.append(list(texts))
        return np.array([[len(text), float(normalize)] for text in texts], dtype=np.float32)

    def encode_image(self, images):
        items = list(images)
        self.asked.append(items)
        return np.array([[item, 1.0] for item in items], dtype=np.float32)


class State:
    num_processes = 3
    process_index = 0
    is_main_process = True


@pytest.fixture
def embedder(monkeypatch):
    """The three processes, one after the other; -> the shared embedder and what each was asked."""
    inner = Numbers()
    monkeypatch.setattr("xmodal_hf.evaluation.processes.broadcast_object_list", lambda question: None)

    def answers(self, modality, hands, normalize, of_text_tower):
        run = inner.encode_text if modality == "text" else inner.encode_items
        options = (normalize,) if modality == "text" else ()
        return [run(*(() if modality == "text" else (modality,)), hand, *options) if hand else None for hand in hands]

    monkeypatch.setattr(SharedEmbedder, "_answer", answers)
    return SharedEmbedder(inner, State, batch_size=4), inner


@pytest.mark.parametrize("count", [1, 3, 4, 5, 12, 31, 97, 200])
def test_every_item_once_in_its_place_and_in_whole_batches(embedder, count):
    shared_embedder, inner = embedder
    embeds = shared_embedder.encode_image(iter(range(count)))
    assert embeds[:, 0].tolist() == list(range(count))
    # Shares begin where one process would begin a batch.
    assert all(share[0] % 4 == 0 and share == list(range(share[0], share[-1] + 1)) for share in inner.asked)
    if count == 200:
        assert max(len(share) for share in inner.asked) == 32


@pytest.mark.parametrize("count", [1, 2, 7, 50])
def test_texts_keep_their_order(embedder, count):
    shared_embedder, inner = embedder
    texts = ["x" * ((7 * number) % 13 + 1) for number in range(count)]
    embeds = shared_embedder.encode_text(texts, normalize=False)
    assert embeds[:, 0].tolist() == [len(text) for text in texts] and not embeds[:, 1].any()
    assert sorted(text for share in inner.asked for text in share) == sorted(texts)
    assert max(map(len, inner.asked)) - min(map(len, inner.asked)) <= 1


def test_bad_input_and_errors_of_other_processes(embedder, monkeypatch):
    shared_embedder, _ = embedder
    with pytest.raises(ValueError, match="no image to embed"):
        shared_embedder.encode_image([])
    assert shared_embedder.logit_scale == 3.0 and shared_embedder.max_seconds == 2.5
    assert shared_embedder.text_tower is shared_embedder
    monkeypatch.setattr(SharedEmbedder, "_answer", lambda *_: [np.zeros((1, 2)), ValueError("the clip is damaged")])
    with pytest.raises(ValueError, match="the clip is damaged"):
        shared_embedder.encode_text(["a", "b"])


def test_one_process_shares_nothing():
    inner = Numbers()

    class Alone(State):
        num_processes = 1

    with shared(inner, Alone, 4) as embedder:
        assert embedder is inner

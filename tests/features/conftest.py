"""Small sets of pictures and sounds with captions, and the sides of tiny models that are embedded."""

import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from xmodal_hf.data.collators import PairCollator
from xmodal_hf.data.sampling import PairDataset
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.features.frozen import FrozenSide

NUM_PICTURES = 14
BAD_PICTURE = 5


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Fourteen pictures of random colours with one to three captions each; number 5 is cut off."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(NUM_PICTURES):
        pixels = generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        words = ["the dog barks", "rain", f"a red apple on a green table {number}"]
        rows.append({"image": f"{number}.png", "captions": words[: 1 + number % 3]})
    path = folder / f"{BAD_PICTURE}.png"
    path.write_bytes(path.read_bytes()[:60])
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return table


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    """Eight tones of half a second to two seconds at 8 kHz."""
    folder = tmp_path_factory.mktemp("sounds")
    rows = []
    for number in range(8):
        seconds = np.arange(4000 * (1 + number % 4)) / 8000
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.5 * np.sin(2 * np.pi * 200 * (number + 1) * seconds), 8000, format="WAV")
        (folder / f"{number}.wav").write_bytes(buffer.getvalue())
        rows.append({"audio": f"{number}.wav", "caption": "music plays softly"})
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return table


@pytest.fixture
def image_side(pictures, image_text_model, image_text_processor):
    """Give `image_side(**fields)`: the images of the pictures."""

    def build(table=None, model=image_text_model, side="image", **fields):
        rows = PairDataset(table or load_pairs(pictures), seed=0, min_image_size=16)
        return FrozenSide(side, model, rows, PairCollator(image_text_processor, max_length=12), **fields)

    return build


@pytest.fixture
def audio_side(sounds, audio_text_model, audio_text_processor):
    """The sounds, their first second."""
    rows = PairDataset(load_pairs(sounds, modality="audio"), seed=0, sampling_rate=8000, max_seconds=1.0)
    return FrozenSide(
        "audio", audio_text_model, rows, PairCollator(audio_text_processor, max_length=12, any_longer=False)
    )

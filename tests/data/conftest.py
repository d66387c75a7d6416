"""Small pictures, sounds, a tokenizer and processors, all made here; nothing of `datasets` is cached outside tmp."""

import os
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

from xmodal_hf.data.builtin.openmoji import load_openmoji
from xmodal_hf.models.processing_dual_encoder import ImageTextProcessor

REAL_DATA = Path(os.environ.get("XMODAL_HF_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """Point `datasets` at a fresh cache."""
    cache = tmp_path_factory.mktemp("datasets_cache")
    patch = pytest.MonkeyPatch()
    for name in ("HF_DATASETS_CACHE", "DOWNLOADED_DATASETS_PATH", "EXTRACTED_DATASETS_PATH"):
        patch.setattr(datasets.config, name, str(cache / name.lower()))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    patch.undo()


@pytest.fixture
def real_data():
    """The folder of real data sets; the test is skipped where it is absent."""
    if not REAL_DATA.is_dir():
        # The package must test itself where these data, which are not ours to give away, are absent.
        pytest.skip(f"no real data in {REAL_DATA} (set XMODAL_HF_DATA)")
    return REAL_DATA


@pytest.fixture(scope="session")
def openmoji():
    return {split: load_openmoji(split) for split in ("train", "test")}


@pytest.fixture(scope="session")
def tokenizer():
    words = ["[PAD]", "[UNK]", *(str(number) for number in range(200)), *["a", "picture", "of", "number", "sound"]]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")


@pytest.fixture(scope="session")
def image_processor():
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16, image_mean=[0, 0, 0], image_std=[1, 1, 1])


@pytest.fixture(scope="session")
def processor(image_processor, tokenizer):
    return ImageTextProcessor(image_processor, tokenizer)


class Samples:
    """Pictures that say which row they belong to, by their colour, and tones."""

    @staticmethod
    def image(number: int) -> Image.Image:
        return Image.new("RGB", (20, 24), (number, 255 - number, 7))

    @staticmethod
    def number_of(image: Image.Image) -> int:
        red, green, _ = image.getpixel((5, 5))
        assert red + green == 255
        return red

    @staticmethod
    def tone(seconds: float = 0.5, rate: int = 8000, hertz: float = 440.0) -> np.ndarray:
        return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture(scope="session")
def samples():
    return Samples


@pytest.fixture
def image_table(tmp_path):
    """Rows of a table with 12 PNG files beside it, "picture of number 7" for 7.png."""
    (tmp_path / "files").mkdir()
    for number in range(12):
        Samples.image(number).save(tmp_path / "files" / f"{number}.png")
    return [{"image": f"files/{number}.png", "caption": f"picture of number {number}"} for number in range(12)]

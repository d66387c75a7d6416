"""Processors: one call for both modalities, one folder, found again by the Auto classes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    PreTrainedTokenizerBase,
)

from xmodal_hf import (
    AudioTextDualEncoder,
    AudioTextProcessor,
    ImageTextDualEncoder,
    ImageTextProcessor,
    LogMelFeatureExtractor,
)

TEXTS = ["rain", "two small birds sing in the tall old tree"]


def test_images_and_texts(image_text_processor: ImageTextProcessor, images: list[Image.Image]) -> None:
    batch = image_text_processor(text=TEXTS, images=images, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values"}
    assert batch["pixel_values"].shape == (4, 3, 16, 16)
    # Padded to the longest, with [CLS] and [SEP].
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 11] and batch["input_ids"].shape == (2, 11)


def test_texts_only_and_images_only(image_text_processor: ImageTextProcessor, images: list[Image.Image]) -> None:
    both = image_text_processor(text=TEXTS, images=images, return_tensors="pt")
    texts = image_text_processor(text=TEXTS, return_tensors="pt")
    pixels = image_text_processor(images=images, return_tensors="pt")
    assert set(texts) == {"input_ids", "attention_mask"} and set(pixels) == {"pixel_values"}
    assert torch.equal(texts["input_ids"], both["input_ids"])
    assert torch.equal(pixels["pixel_values"], both["pixel_values"])
    assert image_text_processor(text="rain", return_tensors="pt")["input_ids"].shape == (1, 3)
    assert image_text_processor(images=images[0], return_tensors="pt")["pixel_values"].shape == (1, 3, 16, 16)


def test_audio_and_texts(audio_text_processor: AudioTextProcessor, clips: list[np.ndarray]) -> None:
    both = audio_text_processor(text=TEXTS, audio=clips, sampling_rate=8000, return_tensors="pt")
    assert set(both) == {"input_ids", "attention_mask", "input_features", "is_longer"}
    assert both["input_features"].shape == (4, 1, 65, 16)
    texts = audio_text_processor(text=TEXTS, return_tensors="pt")
    audio = audio_text_processor(audio=clips, sampling_rate=8000, return_tensors="pt")
    assert torch.equal(texts["input_ids"], both["input_ids"])
    assert torch.equal(audio["input_features"], both["input_features"])


def test_long_texts_are_cut_unless_the_call_says_otherwise(
    image_text_processor: ImageTextProcessor, audio_text_processor: AudioTextProcessor
) -> None:
    for processor in (image_text_processor, audio_text_processor):
        long = "the dog barks " * 20
        assert processor(text=[long], return_tensors="pt")["input_ids"].shape == (1, 24)
        assert processor(text=[long], max_length=6, return_tensors="pt")["input_ids"].shape == (1, 6)
        padded = processor(text=["rain"], padding="max_length", max_length=10, return_tensors="pt")
        assert padded["input_ids"].shape == (1, 10)


def test_wrong_sampling_rate_is_refused(audio_text_processor: AudioTextProcessor, clips: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="sampling rate of 8000"):
        audio_text_processor(audio=clips, sampling_rate=44100, return_tensors="pt")


def test_nothing_to_process(image_text_processor: ImageTextProcessor, audio_text_processor: AudioTextProcessor) -> None:
    with pytest.raises(ValueError, match="provide at least one input to call ImageTextProcessor"):
        image_text_processor(return_tensors="pt")
    with pytest.raises(ValueError, match="provide at least one input to call AudioTextProcessor"):
        audio_text_processor(return_tensors="pt")


def test_image_text_round_trip(
    image_text_folder: Path, image_text_processor: ImageTextProcessor, images: list[Image.Image]
) -> None:
    loaded = AutoProcessor.from_pretrained(image_text_folder)
    assert type(loaded) is ImageTextProcessor
    expected = image_text_processor(text=TEXTS, images=images, return_tensors="pt")
    batch = loaded(text=TEXTS, images=images, return_tensors="pt")
    assert set(batch) == set(expected) and all(torch.equal(batch[name], expected[name]) for name in expected)


def test_audio_text_round_trip(
    audio_text_folder: Path, audio_text_processor: AudioTextProcessor, clips: list[np.ndarray]
) -> None:
    loaded = AutoProcessor.from_pretrained(audio_text_folder)
    assert type(loaded) is AudioTextProcessor
    arguments = {"text": TEXTS, "audio": clips, "sampling_rate": 8000, "return_tensors": "pt"}
    expected, batch = audio_text_processor(**arguments), loaded(**arguments)
    assert set(batch) == set(expected) and all(torch.equal(batch[name], expected[name]) for name in expected)


def test_a_past_call_leaves_no_limit(
    tmp_path: Path, image_text_processor: ImageTextProcessor, audio_text_processor: AudioTextProcessor
) -> None:
    """A fast tokenizer saves the truncation of its last call."""
    long = ["the dog barks " * 20]
    for processor in (image_text_processor, audio_text_processor):
        processor(text=long, padding="max_length", max_length=5, return_tensors="pt")
        processor.save_pretrained(tmp_path)
        assert AutoTokenizer.from_pretrained(tmp_path).init_kwargs["max_length"] == 5
        assert AutoProcessor.from_pretrained(tmp_path)(text=long, return_tensors="pt")["input_ids"].shape == (1, 24)


def test_a_tokenizer_from_phase_1_goes_with_any_extractor(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, clips: list[np.ndarray]
) -> None:
    """Its saved padding options do not reach the feature extractor."""
    tokenizer(TEXTS, padding="longest", truncation=True, max_length=9)
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert "pad_to_multiple_of" in saved.init_kwargs
    processor = AudioTextProcessor(LogMelFeatureExtractor(sampling_rate=8000, frequency_max=4000.0), saved)
    batch = processor(text=TEXTS, audio=clips, sampling_rate=8000, return_tensors="pt")
    assert batch["input_features"].shape[0] == len(clips) and batch["input_ids"].shape[0] == len(TEXTS)


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_one_processor_config(kind: str, image_text_folder: Path, audio_text_folder: Path) -> None:
    folder = image_text_folder if kind == "image" else audio_text_folder
    names = {path.name for path in folder.iterdir() if path.suffix != ".py"}
    assert names == {
        "README.md",
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    saved = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    assert saved["processor_class"] == ("ImageTextProcessor" if kind == "image" else "AudioTextProcessor")


def test_parts_of_a_processor_folder(image_text_folder: Path, audio_text_folder: Path) -> None:
    """Pipelines load the parts, each through its own Auto class."""
    assert AutoTokenizer.from_pretrained(image_text_folder).model_max_length == 24
    assert AutoImageProcessor.from_pretrained(image_text_folder).size == {"height": 16, "width": 16}
    assert AutoFeatureExtractor.from_pretrained(audio_text_folder).sampling_rate == 8000


def test_other_parts(
    tmp_path: Path,
    bpe_tokenizer: PreTrainedTokenizerBase,
    images: list[Image.Image],
    clips: list[np.ndarray],
    make_image_text: Callable,
    make_audio_text: Callable,
) -> None:
    """CLIP's image processor, AST's feature extractor and byte pairs, through the models."""
    crop = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    ImageTextProcessor(crop, bpe_tokenizer).save_pretrained(tmp_path / "image")
    batch = AutoProcessor.from_pretrained(tmp_path / "image")(text=TEXTS, images=images, return_tensors="pt")
    model: ImageTextDualEncoder = make_image_text("clip_text", "clip_vision")
    assert model(**batch).logits_per_image.shape == (4, 2)

    extractor = ASTFeatureExtractor(sampling_rate=8000, num_mel_bins=16, max_length=32)
    AudioTextProcessor(extractor, bpe_tokenizer).save_pretrained(tmp_path / "audio")
    loaded = AutoProcessor.from_pretrained(tmp_path / "audio")
    batch = loaded(text=TEXTS, audio=clips, sampling_rate=8000, return_tensors="pt")
    model: AudioTextDualEncoder = make_audio_text("bert", "ast")
    assert set(batch) >= {"input_ids", "input_values"}
    output = model(**batch)
    assert output.logits_per_audio.shape == (4, 2)
    assert torch.equal(model(input_features=batch["input_values"]).audio_embeds, output.audio_embeds)
    assert model.get_audio_features(input_values=batch["input_values"]).pooler_output.shape == (4, 16)


def test_token_types_reach_the_model(
    tokenizer: PreTrainedTokenizerBase,
    images: list[Image.Image],
    image_text_processor: ImageTextProcessor,
    image_text_model: ImageTextDualEncoder,
) -> None:
    """Some tokenizers return token_type_ids: the model takes what the processor gives."""
    batch = image_text_processor(text=TEXTS, images=images, return_token_type_ids=True, return_tensors="pt")
    assert "token_type_ids" in batch
    assert image_text_model(**batch).logits_per_image.shape == (4, 2)


def test_items_that_a_processor_cannot_prepare_are_refused(image_text_processor, audio_text_processor):
    """`ProcessorMixin` leaves them out without a word."""
    with pytest.raises(ValueError, match="an ImageTextProcessor takes no audio: drop them, or use another model"):
        image_text_processor(text=["rain"], audio=[np.zeros(100)])
    with pytest.raises(ValueError, match="an AudioTextProcessor takes no images"):
        audio_text_processor(text=["rain"], images=[Image.new("RGB", (8, 8))])
    with pytest.raises(ValueError, match="takes no videos"):
        image_text_processor(videos=[np.zeros((2, 3, 8, 8))])
    assert set(image_text_processor(text=["rain"], images=None, audio=None)) >= {"input_ids"}

"""transformers' pipelines on saved folders: they read the models as they read CLIP and CLAP."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    ASTFeatureExtractor,
    AutoModelForZeroShotImageClassification,
    PreTrainedTokenizerBase,
    ViTImageProcessor,
    pipeline,
)

from xmodal_hf import (
    AudioTextDualEncoder,
    AudioTextProcessor,
    ImageTextDualEncoder,
    ImageTextProcessor,
    SentenceEncoder,
)

LABELS = ["rain", "the dog barks at night", "a red apple on a green table"]


def assert_scores(results: list[dict], logits: torch.Tensor) -> None:
    """Compare a pipeline's sorted results with the softmax of one item's logits (labels,)."""
    expected = dict(zip(LABELS, logits.softmax(dim=0).tolist(), strict=True))
    assert {result["label"]: result["score"] for result in results} == pytest.approx(expected, abs=1e-5)
    scores = [result["score"] for result in results]
    assert scores == sorted(scores, reverse=True) and scores[0] - scores[-1] > 1e-3


def test_zero_shot_image_classification(
    image_text_folder: Path,
    image_text_model: ImageTextDualEncoder,
    image_text_processor: ImageTextProcessor,
    images: list[Image.Image],
) -> None:
    classify = pipeline("zero-shot-image-classification", model=image_text_folder)
    assert type(classify.model) is ImageTextDualEncoder
    batch = image_text_processor(text=LABELS, images=images, return_tensors="pt")
    logits = image_text_model(**batch).logits_per_image
    results = classify(images, candidate_labels=LABELS, hypothesis_template="{}")
    for item, row in zip(results, logits, strict=True):
        assert_scores(item, row)


def test_auto_model_for_zero_shot_image_classification(image_text_folder: Path) -> None:
    loaded = AutoModelForZeroShotImageClassification.from_pretrained(image_text_folder)
    assert type(loaded) is ImageTextDualEncoder


def test_zero_shot_audio_classification(
    audio_text_folder: Path,
    audio_text_model: AudioTextDualEncoder,
    audio_text_processor: AudioTextProcessor,
    clips: list[np.ndarray],
) -> None:
    classify = pipeline("zero-shot-audio-classification", model=audio_text_folder)
    assert type(classify.model) is AudioTextDualEncoder
    batch = audio_text_processor(text=LABELS, audio=clips, sampling_rate=8000, return_tensors="pt")
    logits = audio_text_model(**batch).logits_per_audio
    results = classify(clips, candidate_labels=LABELS, hypothesis_template="{}")
    for item, row in zip(results, logits, strict=True):
        assert_scores(item, row)


def test_zero_shot_audio_classification_with_input_values(
    tmp_path: Path, make_audio_text: Callable, tokenizer: PreTrainedTokenizerBase, clips: list[np.ndarray]
) -> None:
    """The spectrogram transformer's extractor names its output otherwise."""
    model = make_audio_text("bert", "ast", logit_scale_init_value=5.0)
    processor = AudioTextProcessor(ASTFeatureExtractor(sampling_rate=8000, num_mel_bins=16, max_length=32), tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    classify = pipeline("zero-shot-audio-classification", model=tmp_path)
    batch = processor(text=LABELS, audio=clips[:1], sampling_rate=8000, return_tensors="pt")
    results = classify(clips[0], candidate_labels=LABELS, hypothesis_template="{}")
    assert_scores(results, model(**batch).logits_per_audio[0])


def test_zero_shot_classification_pads_texts_of_a_fixed_length(
    tmp_path: Path,
    make_image_text: Callable,
    tokenizer: PreTrainedTokenizerBase,
    images: list[Image.Image],
) -> None:
    """The pipeline pads labels to the longest of them; SigLIP's tower reads the last of all its positions."""
    model, tokenizer = make_image_text("siglip_text", "vit", text_pooling="pooler"), copy.deepcopy(tokenizer)
    model.adopt_tokenizer(tokenizer)
    processor = ImageTextProcessor(ViTImageProcessor(size={"height": 16, "width": 16}), tokenizer)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    batch = processor(text=LABELS, images=images[:1], return_tensors="pt")
    assert batch["input_ids"].shape == (3, 24)
    classify = pipeline("zero-shot-image-classification", model=tmp_path)
    results = classify(images[0], candidate_labels=LABELS, hypothesis_template="{}")
    assert_scores(results, model(**batch).logits_per_image[0])
    extract = pipeline("feature-extraction", model=tmp_path)
    torch.testing.assert_close(
        extract(LABELS[0], return_tensors=True), model(**batch).text_embeds[:1], atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("image", ["resnet", "vit"])
def test_zero_shot_image_classification_in_bfloat16(
    image: str,
    tmp_path: Path,
    make_image_text: Callable,
    image_text_processor: ImageTextProcessor,
    images: list[Image.Image],
) -> None:
    """The pipeline casts images to the model's precision, which is that of its towers."""
    model = make_image_text("bert", image)
    model.save_pretrained(tmp_path)
    image_text_processor.save_pretrained(tmp_path)
    classify = pipeline("zero-shot-image-classification", model=tmp_path, dtype=torch.bfloat16)
    assert classify.model.dtype == torch.bfloat16
    expected = model(**image_text_processor(text=LABELS, images=images[:1], return_tensors="pt")).logits_per_image[0]
    results = classify(images[0], candidate_labels=LABELS, hypothesis_template="{}")
    scores = {result["label"]: result["score"] for result in results}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert [scores[label] for label in LABELS] == pytest.approx(expected.softmax(dim=0).tolist(), abs=0.1)


def test_feature_extraction_of_a_dual_encoder(
    image_text_folder: Path, image_text_model: ImageTextDualEncoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    extract = pipeline("feature-extraction", model=image_text_folder)
    expected = image_text_model(**tokenizer(LABELS[1], return_tensors="pt")).text_embeds
    torch.testing.assert_close(extract(LABELS[1], return_tensors=True), expected, atol=1e-6, rtol=1e-5)


def test_feature_extraction_of_a_sentence_encoder(
    sentence_encoder_folder: Path, sentence_encoder: SentenceEncoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    extract = pipeline("feature-extraction", model=sentence_encoder_folder)
    assert type(extract.model) is SentenceEncoder
    expected = sentence_encoder(**tokenizer(LABELS[1], return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(extract(LABELS[1], return_tensors=True), expected, atol=1e-6, rtol=1e-5)


def test_image_feature_extraction(
    image_text_folder: Path,
    image_text_model: ImageTextDualEncoder,
    image_text_processor: ImageTextProcessor,
    images: list[Image.Image],
) -> None:
    extract = pipeline("image-feature-extraction", model=image_text_folder)
    pixel_values = image_text_processor(images=images[0], return_tensors="pt")["pixel_values"]
    expected = image_text_model(pixel_values=pixel_values).image_embeds
    torch.testing.assert_close(extract(images[0], return_tensors=True), expected, atol=1e-6, rtol=1e-5)


def test_pipelines_do_not_complain(
    image_text_folder: Path, audio_text_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline logs an error for models that are not registered for its task."""
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        pipeline("zero-shot-image-classification", model=image_text_folder)
        pipeline("zero-shot-audio-classification", model=audio_text_folder)
        pipeline("image-feature-extraction", model=image_text_folder)
        logger.warning("this is captured")
    assert set(caplog.messages) == {"this is captured"}

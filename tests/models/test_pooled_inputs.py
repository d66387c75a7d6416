"""Pooled vectors in the place of a tower's input give what the input gives."""

import pytest
import torch

EXACT = {"atol": 0, "rtol": 0}


def test_image_text_models_take_pooled_vectors(image_text_model, make_text_batch, make_images):
    inputs = {**make_text_batch(rows=3), "pixel_values": make_images(3)}
    full = image_text_model(**inputs, return_loss=True)
    image = full.image_model_output.pooler_output
    text = full.text_model_output.pooler_output
    texts_only = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    for given in (
        {"image_pooler_output": image, **texts_only},
        {"text_pooler_output": text, "pixel_values": inputs["pixel_values"]},
        {"text_pooler_output": text, "image_pooler_output": image},
    ):
        output = image_text_model(**given, return_loss=True)
        for name in ("loss", "logits_per_image", "text_embeds", "image_embeds"):
            torch.testing.assert_close(output[name], full[name], **EXACT)
    alone = image_text_model.get_image_features(image_pooler_output=image).pooler_output
    torch.testing.assert_close(alone, image_text_model.get_image_features(inputs["pixel_values"]).pooler_output)
    alone = image_text_model.get_text_features(text_pooler_output=text).pooler_output
    torch.testing.assert_close(alone, image_text_model.get_text_features(**texts_only).pooler_output)
    # Half precision, as a store keeps it, is brought to the model's.
    assert image_text_model(image_pooler_output=image.half()).image_embeds.dtype == torch.float32


def test_audio_text_models_take_pooled_vectors(audio_text_model, make_text_batch, make_audio):
    inputs = {**make_text_batch(rows=3), "input_features": make_audio(rows=3)}
    full = audio_text_model(**inputs)
    audio = full.audio_model_output.pooler_output
    text = full.text_model_output.pooler_output
    output = audio_text_model(audio_pooler_output=audio, text_pooler_output=text)
    torch.testing.assert_close(output.logits_per_audio, full.logits_per_audio, **EXACT)
    alone = audio_text_model.get_audio_features(audio_pooler_output=audio).pooler_output
    torch.testing.assert_close(alone, audio_text_model.get_audio_features(inputs["input_features"]).pooler_output)


@pytest.mark.parametrize("head", ["none", "mlp"])
def test_sentence_encoders_take_vectors_before_the_head(make_sentence_encoder, make_text_batch, head):
    model, texts = make_sentence_encoder(head=head), make_text_batch(rows=3)
    pooled = model.encode_text(model.config.pooling, texts).pooler_output
    output, full = model(text_pooler_output=pooled), model(**texts)
    torch.testing.assert_close(output.text_embeds, full.text_embeds, **EXACT)
    assert output.last_hidden_state is None and full.last_hidden_state is not None


def test_gradients_reach_the_projection_and_not_the_tower(image_text_model, make_text_batch, make_images):
    inputs = {**make_text_batch(rows=3), "pixel_values": make_images(3)}
    image_text_model.image_model.requires_grad_(False)
    image_text_model(**inputs, return_loss=True).loss.backward()
    expected = image_text_model.image_projection.weight.grad.clone()
    image_text_model.zero_grad()
    pooled = image_text_model(pixel_values=inputs.pop("pixel_values")).image_model_output.pooler_output.detach()
    image_text_model(**inputs, image_pooler_output=pooled, return_loss=True).loss.backward()
    assert expected.abs().max() > 0
    torch.testing.assert_close(image_text_model.image_projection.weight.grad, expected, **EXACT)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"pixel_values": torch.zeros(2, 3, 16, 16), "image_pooler_output": torch.zeros(2, 32)}, "not both"),
        ({"image_pooler_output": torch.zeros(2, 31)}, r"\(batch, 32\).*shape \(2, 31\)"),
        ({"image_pooler_output": torch.zeros(32)}, r"shape \(32,\)"),
        ({"text_pooler_output": torch.zeros(2, 32, dtype=torch.long)}, "text_pooler_output must be a floating-point"),
        ({}, "nothing to encode"),
    ],
)
def test_wrong_vectors_are_refused(image_text_model, given, message):
    with pytest.raises(ValueError, match=message):
        image_text_model(**given)

"""Programs of others on our models, as their users call them: Trainer, FAISS through datasets, torchao.

Tested elsewhere: pipelines (models/test_pipelines.py), sentence-transformers (hub/test_sentence_transformers.py),
torch.compile (models/test_dual_encoder.py), ONNX (hub/test_onnx_export.py), mteb (evaluation/test_mteb.py). What needs
a package that is not installed is skipped; `make test-peers` has them all.
"""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from PIL import Image

from xmodal_hf import AudioTextDualEncoder, ImageTextDualEncoder, ImageTextProcessor, SentenceEncoder
from xmodal_hf.losses import clip_loss

TEXTS = ["the cat sleeps", "rain", "a red apple on a green table", "music plays softly"]


def needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}")


@pytest.fixture
def batch(image_text_processor: ImageTextProcessor, images: list[Image.Image]) -> dict[str, torch.Tensor]:
    return dict(image_text_processor(text=TEXTS, images=images, padding=True, return_tensors="pt"))


def test_trainer(image_text_model: ImageTextDualEncoder, batch: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """transformers' Trainer minimises the model's own loss, that of CLIP, and its checkpoint loads again."""
    rows = [{name: value[row] for name, value in batch.items()} for row in range(len(TEXTS))]

    def collate(rows: list[dict]) -> dict:
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} | {"return_loss": True}

    arguments = transformers.TrainingArguments(
        output_dir=tmp_path,
        max_steps=4,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        remove_unused_columns=False,
    )
    model = copy.deepcopy(image_text_model).train()
    with torch.no_grad():
        outputs = image_text_model(**batch, return_loss=True)
        expected = clip_loss(outputs.image_embeds, outputs.text_embeds, outputs.logit_scale)
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0]
    trainer.save_model(str(tmp_path / "saved"))
    again = ImageTextDualEncoder.from_pretrained(tmp_path / "saved")
    trained = model.eval()(**batch).text_embeds
    assert torch.equal(again(**batch).text_embeds, trained)
    assert not torch.allclose(trained, outputs.text_embeds)


@needs("faiss")
def test_faiss_through_datasets(image_text_model: ImageTextDualEncoder, batch: dict[str, torch.Tensor]) -> None:
    """An index of `datasets` finds what the matrix of cosines does."""
    import faiss

    with torch.no_grad():
        outputs = image_text_model(**batch)
    gallery = Dataset.from_dict({"id": list("abcd"), "embeds": outputs.image_embeds.tolist()})
    gallery.add_faiss_index("embeds", metric_type=faiss.METRIC_INNER_PRODUCT)
    cosines = outputs.text_embeds @ outputs.image_embeds.T  # (texts, images)
    for row, query in enumerate(outputs.text_embeds.numpy()):
        scores, found = gallery.get_nearest_examples("embeds", query, k=4)
        expected, order = cosines[row].sort(descending=True)
        assert found["id"] == ["abcd"[index] for index in order.tolist()]
        torch.testing.assert_close(torch.from_numpy(scores), expected, atol=1e-6, rtol=0)


@needs("torchao")
@pytest.mark.parametrize("kind", ["weights", "weights and activations"])
def test_torchao_int8(kind: str, image_text_model: ImageTextDualEncoder, batch: dict[str, torch.Tensor]) -> None:
    """Linear layers in 8-bit integers: nearly the same embeddings, and not the very same."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    with torch.no_grad():
        expected = image_text_model(**batch)
        quantized = copy.deepcopy(image_text_model)
        quantize_(quantized, Int8WeightOnlyConfig() if kind == "weights" else Int8DynamicActivationInt8WeightConfig())
        found = quantized(**batch)
    for name in ("text_embeds", "image_embeds"):
        cosines = (found[name] * expected[name]).sum(dim=-1)
        assert cosines.min() > 0.99 and not torch.equal(found[name], expected[name])
    assert type(quantized.text_projection.weight).__name__ != "Parameter"


@needs("torchao")
def test_torchao_int8_of_other_models(
    audio_text_model: AudioTextDualEncoder, sentence_encoder: SentenceEncoder, tokenizer: object
) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    inputs = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
    for model in (audio_text_model, sentence_encoder):
        with torch.no_grad():
            expected = model(**inputs).text_embeds
            quantize_(model, Int8WeightOnlyConfig())
            assert ((model(**inputs).text_embeds * expected).sum(dim=-1) > 0.99).all()

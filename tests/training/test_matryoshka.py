"""Matryoshka: losses at nested prefixes against a plain sum, gradients included, and cached ones."""

import pytest
import torch
from accelerate import Accelerator
from torch.nn.functional import normalize

from xmodal_hf.losses import clip_loss, simcse_loss
from xmodal_hf.objectives import CrossModalObjective, JointObjective, MatryoshkaObjective, SentenceObjective
from xmodal_hf.options import parse_dims
from xmodal_hf.training.grad_cache import cached_backward


def prefixes(embeds, dims):
    return [normalize(embeds[:, :dim], dim=1) for dim in dims]


def test_pairs_equal_the_sum_over_prefixes():
    """float64, with gradients of both sides and of the scale."""
    generator = torch.Generator().manual_seed(0)
    raw = [torch.randn(6, 8, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    objective = MatryoshkaObjective(CrossModalObjective("clip"), [2, 4])

    def embeds():
        image, text = (normalize(rows, dim=1) for rows in raw)
        return {"modality_embeds": image, "text_embeds": text, "logit_scale": scale}

    output = objective.loss(embeds())
    found = torch.autograd.grad(output.loss, [*raw, scale])
    sides = zip(
        prefixes(embeds()["modality_embeds"], (8, 4, 2)), prefixes(embeds()["text_embeds"], (8, 4, 2)), strict=True
    )
    losses = [clip_loss(image, text, scale) for image, text in sides]
    expected = torch.autograd.grad(sum(losses), [*raw, scale])
    assert output.loss.item() == pytest.approx(sum(losses).item())
    assert output.logs["loss@2"].item() == pytest.approx(losses[2].item())
    assert all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True))


def test_sentences_equal_the_sum_and_masked_tokens_count_once(sentence_encoder, text_batch):
    model = sentence_encoder(0.0, mlm_head=True)
    batch = text_batch(12)
    batch |= {
        "mlm_input_ids": batch["input_ids"],
        "mlm_labels": batch["input_ids"].masked_fill(batch["input_ids"] % 3 > 0, -100),
    }
    inner = SentenceObjective(num_views=2, mlm_weight=0.1)
    embeds = inner.encode(model, batch)
    output = MatryoshkaObjective(inner, [16, 4]).loss(embeds)
    short = [prefixes(embeds[name], [4])[0] for name in ("anchor_embeds", "positive_embeds")]
    assert output.loss.item() == pytest.approx((inner.loss(embeds).loss + simcse_loss(*short)).item(), rel=1e-5)
    assert "loss@16" not in output.logs  # the whole width is counted once


@pytest.mark.parametrize("name", ["pairs", "joint"])
def test_gradient_caching_is_the_same(name, dual_encoder, pair_batch, text_batch):
    model, batch = dual_encoder(0.0), pair_batch(10)
    inner = CrossModalObjective("cyclip")
    if name == "joint":
        inner = JointObjective(inner, SentenceObjective(num_views=2), sentence_weight=0.5)
        batch = {"pairs": batch, "sentences": text_batch(14, seed=1)}
    objective = MatryoshkaObjective(inner, [6, 3])
    objective(model, batch).loss.backward()
    expected = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    cached_backward(Accelerator(cpu=True), objective, model, batch, 4)
    found = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    assert found.keys() == expected.keys()
    scale = max(value.abs().max() for value in expected.values())
    assert max((found[key] - expected[key]).abs().max() for key in found) < 1e-4 * scale


def test_widths_are_checked():
    assert parse_dims("512, 256") == [512, 256] and parse_dims(None) is None and parse_dims([8, "4,2"]) == [8, 4, 2]
    for wrong in ("512,", "a", "0", []):
        with pytest.raises(ValueError, match="takes integers of at least 1"):
            parse_dims(wrong)
    rows = normalize(torch.randn(3, 8), dim=1)
    embeds = {"modality_embeds": rows, "text_embeds": rows, "logit_scale": torch.tensor(1.0)}
    with pytest.raises(ValueError, match="a prefix of 16 dimensions needs embeddings of at least as many, got 8"):
        MatryoshkaObjective(CrossModalObjective("clip"), [16]).loss(embeds)

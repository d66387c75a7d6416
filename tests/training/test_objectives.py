"""Objectives compose model and losses; each is held against the formula written out on the model's outputs."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from xmodal_hf.objectives import CrossModalObjective, JointObjective, SentenceObjective


def encode(model, batch):
    inputs = {name: value for name, value in batch.items() if name not in ("group_ids", "ids")}
    return model(**inputs)


def clip_by_hand(output, groups):
    """CLIP's loss with soft targets over the pairs of one item (WavCaps)."""
    logits = output.logit_scale * output.image_embeds @ output.text_embeds.t()
    targets = (groups[:, None] == groups).float()
    targets = targets / targets.sum(dim=1, keepdim=True)
    return (cross_entropy(logits, targets) + cross_entropy(logits.t(), targets)) / 2


def cyclic_by_hand(output):
    image, text = output.image_embeds, output.text_embeds
    in_modal = (image @ image.t() - text @ text.t()).square().sum() / len(image)
    cross_modal = (image @ text.t() - text @ image.t()).square().sum() / len(image)
    return in_modal, cross_modal


def test_clip_and_cyclip(dual_encoder, pair_batch):
    model, batch = dual_encoder(0.0), pair_batch(8)
    output = encode(model, batch)
    contrastive = clip_by_hand(output, batch["group_ids"])
    in_modal, cross_modal = cyclic_by_hand(output)
    assert CrossModalObjective("clip")(model, batch).loss.item() == pytest.approx(contrastive.item(), rel=1e-5)
    expected = contrastive + 0.25 * in_modal + 0.5 * cross_modal
    got = CrossModalObjective("cyclip", in_modal_weight=0.25, cross_modal_weight=0.5)(model, batch)
    assert got.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert got.logs["contrastive_loss"].item() == pytest.approx(contrastive.item(), rel=1e-5)


def test_captions_of_one_item_are_no_negatives(dual_encoder, pair_batch):
    model, batch = dual_encoder(0.0), pair_batch(8)
    with_groups = CrossModalObjective("clip")(model, batch).loss
    without = CrossModalObjective("clip")(model, {**batch, "group_ids": torch.arange(8)}).loss
    assert abs(with_groups - without) > 1e-4


def test_siglip(dual_encoder, pair_batch):
    model, batch = dual_encoder(0.0, logit_bias_init_value=-10.0), pair_batch(8)
    output = encode(model, batch)
    logits = output.logit_scale * output.image_embeds @ output.text_embeds.t() + output.logit_bias
    signs = 2.0 * (batch["group_ids"][:, None] == batch["group_ids"]) - 1
    expected = -torch.nn.functional.logsigmoid(signs * logits).sum() / 8
    assert CrossModalObjective("siglip")(model, batch).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_siglip_without_bias_says_how_to_build_one(dual_encoder, pair_batch):
    with pytest.raises(ValueError, match="logit_bias_init_value"):
        CrossModalObjective("siglip")(dual_encoder(), pair_batch(4))


def test_unsupervised_simcse(sentence_encoder, text_batch):
    model, batch = sentence_encoder(0.1), text_batch(6)
    torch.manual_seed(3)
    both = model(**{name: torch.cat([value, value]) for name, value in batch.items()}).text_embeds
    first, second = both.chunk(2)
    assert not torch.equal(first, second)  # two dropout masks
    expected = cross_entropy(first @ second.t() / 0.05, torch.arange(6))
    torch.manual_seed(3)
    assert SentenceObjective()(model, batch).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_supervised_simcse(sentence_encoder, text_batch):
    model, batch = sentence_encoder(0.0), text_batch(18)
    anchor, positive, negative = model(**batch).text_embeds.chunk(3)
    logits = torch.cat([anchor @ positive.t(), anchor @ negative.t()], dim=1) / 0.05
    logits[:, 6:] += 0.7 * torch.eye(6)
    expected = cross_entropy(logits, torch.arange(6))
    got = SentenceObjective(num_views=3, hard_negative_weight=0.7)(model, batch)
    assert got.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_masked_language_modelling(sentence_encoder, text_batch):
    model, batch = sentence_encoder(0.0, mlm_head=True), text_batch(8)
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, 1] = batch["input_ids"][:, 1]
    masked = {"mlm_input_ids": torch.where(labels == -100, batch["input_ids"], 3), "mlm_labels": labels}
    hidden = model.text_model(masked["mlm_input_ids"], batch["attention_mask"]).last_hidden_state
    logits = model.mlm_head.transform(hidden) @ model.get_input_embeddings().weight.t()
    mlm_loss = cross_entropy(logits.flatten(0, 1), labels.flatten())
    plain = SentenceObjective(num_views=2)(model, batch).loss
    output = SentenceObjective(num_views=2, mlm_weight=0.1)(model, {**batch, **masked})
    assert output.loss.item() == pytest.approx((plain + 0.1 * mlm_loss).item(), rel=1e-5)
    assert output.logs["mlm_loss"].item() == pytest.approx(mlm_loss.item(), rel=1e-5)
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(ValueError, match="go together"):
        SentenceObjective(num_views=2, mlm_weight=0.1)(model, batch)
    with pytest.raises(ValueError, match="mlm_head=True"):
        SentenceObjective(num_views=2, mlm_weight=0.1)(sentence_encoder(), {**batch, **masked})


def test_joint_is_the_weighted_sum(dual_encoder, pair_batch, text_batch):
    model = dual_encoder(0.0)
    pairs, sentences = CrossModalObjective("clip"), SentenceObjective(num_views=2)
    batch = {"pairs": pair_batch(6), "sentences": text_batch(8, seed=2)}
    got = JointObjective(pairs, sentences, sentence_weight=0.3)(model, batch)
    expected = pairs(model, batch["pairs"]).loss + 0.3 * sentences(model, batch["sentences"]).loss
    assert got.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert {"loss", "logit_scale", "pairs/accuracy", "sentences/alignment"} <= got.logs.keys()


def test_less_padding_same_loss_and_gradients(dual_encoder, pair_batch):
    results = {}
    for parts in (1, 3):
        model = dual_encoder(0.0)
        output = CrossModalObjective("cyclip", text_sub_batches=parts)(model, pair_batch(12))
        output.loss.backward()
        results[parts] = output.loss, {name: p.grad for name, p in model.named_parameters()}
    assert results[3][0].item() == pytest.approx(results[1][0].item(), rel=1e-6)
    for name, expected in results[1][1].items():
        torch.testing.assert_close(results[3][1][name], expected, rtol=1e-4, atol=1e-6)


def test_logs_are_the_named_quantities(dual_encoder, pair_batch):
    model, batch = dual_encoder(0.0), pair_batch(8)
    output = encode(model, batch)
    logs = CrossModalObjective("clip")(model, batch).logs
    image, text = output.image_embeds, output.text_embeds
    assert logs["alignment"].item() == pytest.approx((image - text).square().sum(dim=1).mean().item(), rel=1e-5)
    distances = torch.cdist(text.double(), text.double()).square()
    off_diagonal = distances[~torch.eye(8, dtype=torch.bool)]
    assert logs["uniformity_text"].item() == pytest.approx((-2 * off_diagonal).exp().mean().log().item(), rel=1e-4)
    assert logs["logit_scale"].item() == pytest.approx(1 / 0.07, rel=1e-5)
    assert not any(value.requires_grad for value in logs.values())


def test_wrong_inputs_name_the_fix(sentence_encoder, dual_encoder, text_batch):
    with pytest.raises(ValueError, match="unknown loss_type 'clop': pass clip, cyclip or siglip"):
        CrossModalObjective("clop")
    with pytest.raises(ValueError, match="a batch of 3 views has 4 rows"):
        SentenceObjective(num_views=3)(sentence_encoder(), text_batch(4))
    with pytest.raises(ValueError, match="both modalities"):
        CrossModalObjective()(dual_encoder(), text_batch(4))

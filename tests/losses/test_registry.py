"""`LOSSES` and `SENTENCE_LOSSES` are the one place of a loss: one entry makes it an objective, an option, a card."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from xmodal_hf.losses import LOSSES, SENTENCE_LOSSES, Loss, SentenceLoss, Weight, clip_loss
from xmodal_hf.objectives import CrossModalObjective, SentenceObjective
from xmodal_hf.options import parse_arguments
from xmodal_hf.training.arguments import ContrastiveArguments, SentenceArguments
from xmodal_hf.training.loss_arguments import with_weights_of

BATCH, DIMENSION = 6, 5


def embeddings(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(BATCH, DIMENSION, generator=generator), dim=1)


def margin_loss(modality_embeds, text_embeds, logit_scale, *, margin, group_ids=None):
    """CLIP's loss plus what the cosines of pairs lack to 1 - `margin`."""
    cosines = (modality_embeds * text_embeds).sum(dim=1)
    lacking = (1 - margin - cosines).clamp(min=0).mean()
    return clip_loss(modality_embeds, text_embeds, logit_scale) + lacking, {"lacking": lacking.detach()}


MARGIN = Loss(
    margin_loss,
    description="CLIP's with a margin",
    card="A loss with a margin",
    weights={"margin": Weight(0.125, "Margin of the cosines.", label="margin")},
    citations=("@misc{margin}",),
    scale_bounds=(2.0, 4.0),
    initial_scale=3.0,
)


@pytest.fixture
def margin(monkeypatch):
    monkeypatch.setitem(LOSSES, "margin", MARGIN)


@pytest.mark.parametrize("entry", [*LOSSES.values(), *SENTENCE_LOSSES.values()], ids=[*LOSSES, *SENTENCE_LOSSES])
def test_every_entry_is_whole(entry):
    assert callable(entry.load()) and entry.description and entry.card
    assert all(citation.startswith("@") and citation.endswith("}") for citation in entry.citations) and entry.citations
    assert all(weight.description.endswith(".") for weight in entry.weights.values())


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_follows_the_contract(name):
    """The loss is 0-dim with gradient, for groups or without; what is logged has none."""
    loss = LOSSES[name]
    sides = [embeddings(seed).requires_grad_() for seed in (0, 1)]
    bias = {"logit_bias": torch.tensor(loss.initial_bias)} if loss.needs_bias else {}
    for groups in (None, torch.tensor([0, 0, 1, 2, 3, 4])):
        value, logs = loss.load()(*sides, torch.tensor(5.0), group_ids=groups, **bias, **loss.fill_weights({}))
        gradients = torch.autograd.grad(value, sides)
        assert value.ndim == 0 and all(gradient.abs().sum() > 0 for gradient in gradients)
        assert logs and all(number.ndim == 0 and not number.requires_grad for number in logs.values())


def test_the_dictionaries_cost_no_torch():
    code = "import sys; from xmodal_hf.losses import LOSSES; assert LOSSES; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_added_loss_is_an_objective(margin):
    embeds = {"modality_embeds": embeddings(0), "text_embeds": embeddings(1), "logit_scale": torch.tensor(3.0)}
    cosines = (embeds["modality_embeds"] * embeds["text_embeds"]).sum(dim=1)
    plain = clip_loss(embeddings(0), embeddings(1), 3.0)
    for weights, value in (({}, 0.125), ({"margin": 0.5}, 0.5)):
        objective = CrossModalObjective("margin", **weights)
        output = objective.loss(embeds)
        lacking = (1 - value - cosines).clamp(min=0).mean()
        assert lacking > 0.1
        torch.testing.assert_close(output.loss, plain + lacking)
        torch.testing.assert_close(output.logs["lacking"], lacking)
        assert objective.scale_bounds == (2.0, 4.0) and not objective.uses_logit_bias


def test_an_added_loss_is_a_choice_and_its_weight_an_option(margin, capsys):
    class_ = with_weights_of(ContrastiveArguments, LOSSES)
    (arguments,) = parse_arguments([class_], "", ["--objective", "margin", "--margin", "0.5"])
    assert (arguments.objective, arguments.margin) == ("margin", 0.5) and isinstance(arguments, ContrastiveArguments)
    assert with_weights_of(ContrastiveArguments, {"margin": LOSSES["clip"]}) is ContrastiveArguments
    with pytest.raises(SystemExit):
        parse_arguments([class_], "", ["--objective", "marjin"])
    error = capsys.readouterr().err
    assert "marjin" in error and all(name in error for name in LOSSES)
    with pytest.raises(SystemExit):
        parse_arguments([class_], "", ["--help"])
    assert "Margin of the cosines." in capsys.readouterr().out


def test_from_python_an_unknown_objective_names_the_choices():
    with pytest.raises(ValueError, match="--objective clop is unknown: pass clip, cyclip or siglip"):
        ContrastiveArguments(objective="clop")
    with pytest.raises(ValueError, match="--sentence_objective simsce is unknown: pass simcse"):
        SentenceArguments(sentence_objective="simsce")


def test_weights_that_a_loss_does_not_have_are_refused():
    with pytest.raises(ValueError, match="no weight 'in_modal_weight'; its weights are: none"):
        CrossModalObjective("clip", in_modal_weight=0.5)
    with pytest.raises(ValueError, match="no weight 'scale'; its weights are: temperature, hard_negative_weight"):
        SentenceObjective(scale=20.0)


def test_one_name_is_one_weight():
    other = dataclasses.replace(MARGIN, weights={"margin": Weight(0.5, "Another margin.")})
    with pytest.raises(ValueError, match="two losses have a weight 'margin' that differs"):
        with_weights_of(ContrastiveArguments, {"margin": MARGIN, "other": other})


def test_an_added_sentence_loss_is_an_objective(monkeypatch):
    def sums(anchor, positive, hard_negative, *, factor):
        return factor * (anchor * positive).sum(), {"has_negatives": torch.tensor(float(hard_negative is not None))}

    weights = {"factor": Weight(2.0, "Factor of the sum.")}
    monkeypatch.setitem(SENTENCE_LOSSES, "sums", SentenceLoss(sums, "a sum", "a sum", weights))
    embeds = {"anchor_embeds": embeddings(0), "positive_embeds": embeddings(1)}
    expected = (embeddings(0) * embeddings(1)).sum()
    output = SentenceObjective(loss_type="sums", factor=3.0).loss(embeds)
    torch.testing.assert_close(output.loss, 3 * expected)
    assert output.logs["has_negatives"] == 0
    output = SentenceObjective(3, loss_type="sums").loss({**embeds, "negative_embeds": embeddings(2)})
    torch.testing.assert_close(output.loss, 2 * expected)
    assert output.logs["has_negatives"] == 1

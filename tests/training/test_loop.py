"""The loop: it learns, logs what happened, repeats itself, and refuses data that give no batch."""

import json

import pytest
import torch
from torch.utils.data import Dataset

from xmodal_hf.objectives import CrossModalObjective
from xmodal_hf.training.arguments import TrainingArguments
from xmodal_hf.training.loop import LOG_NAME, build_accelerator, build_loader, run_phase


class Pairs(Dataset):
    """Rows of a fixed batch of pairs, addressed as the sampler does."""

    def __init__(self, batch):
        self.batch = {name: value for name, value in batch.items() if name != "ids"}

    def __len__(self):
        return len(self.batch["input_ids"])

    def __getitem__(self, position):
        return {name: value[position.index] for name, value in self.batch.items()}


def collate(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def train(model, pairs, folder, **options):
    arguments = TrainingArguments(output_dir=str(folder), report_to="none", warmup_steps=0.1, **options)
    loader = build_loader(Pairs(pairs), collate, arguments)
    result = run_phase(build_accelerator(arguments), model, CrossModalObjective("clip"), loader, arguments, "test")
    log = [json.loads(line) for line in (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()]
    return result, log


def test_learns_and_logs_every_step(dual_encoder, pair_batch, tmp_path):
    options = {"batch_size": 8, "num_epochs": 40, "learning_rate": 3e-3}
    result, log = train(dual_encoder(0.0), pair_batch(16), tmp_path, **options)
    assert result.steps == len(log) == 80 and result.items == 640
    assert [entry["step"] for entry in log] == list(range(1, 81))
    assert log[-1]["epoch"] == 39
    first, last = log[0]["loss"], sum(entry["loss"] for entry in log[-8:]) / 8
    assert last < first / 2
    assert {"loss", "accuracy", "alignment", "logit_scale", "grad_norm", "learning_rate"} <= log[0].keys()


def test_equal_seeds_give_equal_weights_and_logs(dual_encoder, pair_batch, tmp_path):
    runs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        (tmp_path / name).mkdir()
        model = dual_encoder(0.1)
        _, log = train(model, pair_batch(16), tmp_path / name, batch_size=4, max_steps=6, num_epochs=2, seed=seed)
        runs.append((model.state_dict(), log))
    assert runs[0][1] == runs[1][1] != runs[2][1]
    assert all(torch.equal(runs[0][0][name], runs[1][0][name]) for name in runs[0][0])


def test_gradient_caching_trains_the_same(dual_encoder, pair_batch, tmp_path):
    states = []
    for name, micro in (("plain", None), ("cached", 3)):
        (tmp_path / name).mkdir()
        model = dual_encoder(0.0)
        train(model, pair_batch(16), tmp_path / name, batch_size=8, max_steps=4, num_epochs=2, micro_batch_size=micro)
        states.append(model.state_dict())
    for name, expected in states[0].items():
        # AdamW divides by the root of squared gradients: where those vanish, rounding decides the step.
        torch.testing.assert_close(states[1][name], expected, rtol=1e-3, atol=2e-4)


def test_clipping_bounds_the_update_and_logs_the_norm_before(dual_encoder, pair_batch, tmp_path):
    _, log = train(dual_encoder(0.0), pair_batch(8), tmp_path, batch_size=8, max_steps=1, max_grad_norm=1e-3)
    assert log[0]["grad_norm"] > 1e-2


def test_too_few_items(dual_encoder, pair_batch, tmp_path):
    with pytest.raises(ValueError, match="4 items do not fill a batch of 8: lower --batch_size"):
        train(dual_encoder(), pair_batch(4), tmp_path, batch_size=8)

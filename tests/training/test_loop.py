"""The loop: it learns, logs what happened, repeats itself, and refuses data that give no batch."""

import json
import math
import multiprocessing
import os
import signal
from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator, DistributedType
from torch.utils.data import Dataset
from transformers import ResNetConfig

from xmodal_hf import ImageTextConfig, ImageTextDualEncoder
from xmodal_hf.objectives import CrossModalObjective
from xmodal_hf.training.arguments import TrainingArguments, ValidationArguments
from xmodal_hf.training.batches import build_loader
from xmodal_hf.training.faults import BadStepsError, StopSignals
from xmodal_hf.training.log import LOG_NAME, VALIDATION_LOG_NAME, StepLog
from xmodal_hf.training.loop import build_accelerator, run_phase
from xmodal_hf.training.towers import freeze_towers
from xmodal_hf.training.validation import Validation


class Pairs(Dataset):
    """Rows of a fixed batch of pairs, addressed as the sampler does."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch["input_ids"])

    def __getitem__(self, position):
        return {name: value[position.index] for name, value in self.batch.items()}


def collate(rows):
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "ids"}
    return batch | {"ids": [row["ids"] for row in rows]}


def train(model, pairs, folder, validate=None, objective="clip", **options):
    arguments = TrainingArguments(output_dir=str(folder), report_to="none", **{"warmup_steps": 0.1, **options})
    accelerator = build_accelerator(arguments)
    loader = build_loader(accelerator, Pairs(pairs), collate, arguments)
    validation = None if validate is None else validate(accelerator, folder)
    result = run_phase(
        accelerator, model, CrossModalObjective(objective), loader, arguments, "test", validation=validation
    )
    log = [json.loads(line) for line in (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()]
    return result, log


@pytest.mark.parametrize("there", ["whole", "gone", "short"])
def test_a_log_goes_on_in_another_folder(there, tmp_path, caplog):
    """It has the steps up to the state, of the run that saved it, and none of what was in the new folder."""
    earlier, folder = tmp_path / "earlier", tmp_path / "new"
    earlier.mkdir()
    folder.mkdir()
    lines = [json.dumps({"step": step}) + "\n" for step in range(4)]
    if there != "gone":
        (earlier / LOG_NAME).write_text("".join(lines if there == "whole" else lines[:1]), encoding="utf-8")
    (folder / LOG_NAME).write_text('{"step": 77}\n' * 9, encoding="utf-8")
    kept = sum(map(len, lines[:2]))
    with StepLog(Accelerator(cpu=True), folder, {LOG_NAME: kept}, earlier) as log:
        log.write_bad(2, 0, [])
        lengths = log.flush_to_disk()
    steps = [json.loads(line)["step"] for line in (folder / LOG_NAME).read_text(encoding="utf-8").splitlines()]
    assert steps == {"whole": [0, 1, 2], "gone": [2], "short": [0, 2]}[there]
    assert lengths[LOG_NAME] == (folder / LOG_NAME).stat().st_size
    assert ("its log has a gap" in caplog.text) == (there != "whole")


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


def test_a_loaded_model_is_trained_with_dropout_but_for_frozen_towers(dual_encoder, pair_batch, tmp_path):
    weights = []
    for name in ("as built", "as loaded"):
        model = dual_encoder(0.3)
        freeze_towers(model, ["image"])
        model.train(name == "as built")  # `from_pretrained` gives evaluation mode
        train(model, pair_batch(16), tmp_path / name, batch_size=8, max_steps=3, num_epochs=2)
        assert model.text_model.training and not model.image_model.training
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


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


@pytest.mark.parametrize("fails", [False, True])
def test_no_worker_outlives_the_run(fails, dual_encoder, pair_batch, tmp_path):
    """Workers ignore the signal that Python stops left-over children with, and would be waited for without end."""
    options = {"batch_size": 8, "num_workers": 2, "max_steps": 3, "num_epochs": 2, "max_bad_steps": 0}
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", **options)
    pairs = pair_batch(16)
    if fails:
        pairs["pixel_values"][:] = math.nan
    accelerator = build_accelerator(arguments)
    loader = build_loader(accelerator, Pairs(pairs), collate, arguments)
    with pytest.raises(BadStepsError) if fails else nullcontext():
        run_phase(accelerator, dual_encoder(), CrossModalObjective("clip"), loader, arguments, "test")
    assert multiprocessing.active_children() == []
    del loader  # was alive until here


class TestBadSteps:
    """The picture of row 5 holds a NaN; each row is met once an epoch."""

    @pytest.fixture
    def pairs(self, pair_batch):
        pairs = pair_batch(16)
        pairs["pixel_values"][5, 0, 0, 0] = math.nan
        return pairs

    def test_they_are_left_out_and_counted(self, dual_encoder, pairs, tmp_path):
        model = dual_encoder(0.0)
        result, log = train(model, pairs, tmp_path, batch_size=4, num_epochs=3, ema_decay=0.5, learning_rate=1e-2)
        bad = [entry for entry in log if "not_finite" in entry]
        assert result.bad_steps == len(bad) == 3 and [entry["epoch"] for entry in bad] == [0, 1, 2]
        assert all("5" in entry["ids"] and len(entry["ids"]) == 4 for entry in bad)
        good = [entry for entry in log if "not_finite" not in entry]
        assert len(good) == 9 and all(math.isfinite(entry["loss"]) for entry in good)
        assert all(value.isfinite().all() for value in model.state_dict().values())

    def test_they_leave_no_trace(self, dual_encoder, pairs, tmp_path):
        """With batch normalisation, whose running statistics the forward changes; one step, which is bad."""
        torch.manual_seed(0)
        image = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
        text = dual_encoder().config.text_config
        model = ImageTextDualEncoder(ImageTextConfig(text_config=text, image_config=image, projection_dim=8))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        pairs["pixel_values"] = torch.full((16, 3, 32, 32), math.inf)
        result, _ = train(model, pairs, tmp_path, batch_size=4, max_steps=1, warmup_steps=0)
        assert result.bad_steps == 1 and any("running_mean" in name for name in before)
        after = model.state_dict()
        # Not a number that an average could be off by: the count of batches is an integer.
        assert all(torch.equal(after[name], value) for name, value in before.items() if value.is_floating_point())

    def test_too_many_stop_the_run(self, dual_encoder, pairs, tmp_path):
        options = {"batch_size": 16, "num_epochs": 9, "max_bad_steps": 2, "checkpoint_steps": 2}
        with pytest.raises(BadStepsError) as error:
            train(dual_encoder(0.0), pairs, tmp_path, **options)
        message = str(error.value)
        assert message.startswith("step 3: the loss or its gradient is not finite; 3 such steps are more than")
        assert "--max_bad_steps 2. " in message
        assert "Ids of the batch: " in message and " 5" in message and "step_00000002" in message


class TestValidation:
    def validation(self, values, **options):
        """Build a validation that finds the given values, one after the other."""
        found = iter(values)

        def build(accelerator, folder):
            arguments = ValidationArguments(eval_steps=2, eval_sts="x", **options)
            return Validation(accelerator, lambda model: next(found), arguments, str(folder))

        return build

    def weights_after(self, steps, dual_encoder, pairs, folder):
        """The weights of a run of the same schedule that is looked at after some steps."""
        seen = []

        def look(accelerator, folder):
            def measure(model):
                seen.append({name: value.clone() for name, value in model.state_dict().items()})
                return {"task.number": 0.0}

            return Validation(accelerator, measure, ValidationArguments(eval_steps=2, eval_sts="x"), str(folder))

        train(dual_encoder(0.1), pairs, folder, look, batch_size=8, num_epochs=3)
        return seen[steps // 2 - 1]

    @pytest.mark.parametrize(
        ("metric", "values", "best_step"),
        [
            ("task.number", (1.0, 3.0, 2.0), 4),
            ("task.alignment", (3.0, 1.0, 1.0), 4),
            ("task.number", (5.0, 5.0, 4.0), 2),
        ],
    )
    def test_the_best_weights_are_released(self, metric, values, best_step, dual_encoder, pair_batch, tmp_path):
        model = dual_encoder(0.1)
        found = self.validation([{metric: value} for value in values], best_metric=metric)
        result, log = train(model, pair_batch(16), tmp_path, found, batch_size=8, num_epochs=3)
        assert result.best == {"step": best_step, "value": values[best_step // 2 - 1]} and len(log) == 6
        expected = self.weights_after(best_step, dual_encoder, pair_batch(16), tmp_path / "other")
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
        lines = (tmp_path / VALIDATION_LOG_NAME).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [
            {"step": 2 * number, metric: value} for number, value in enumerate(values, start=1)
        ]

    def test_it_changes_nothing(self, dual_encoder, pair_batch, tmp_path):
        def noisy(model):
            torch.rand(5)
            return {"task.number": 1.0}

        def build(accelerator, folder):
            return Validation(accelerator, noisy, ValidationArguments(eval_steps=1, eval_sts="x"), str(folder))

        weights = []
        for name, validate in (("with", build), ("without", None)):
            model = dual_encoder(0.1)
            train(model, pair_batch(16), tmp_path / name, validate, batch_size=8, num_epochs=2)
            weights.append(model.state_dict())
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    def test_the_best_weights_are_those_of_the_state_that_a_run_goes_on_from(self, dual_encoder, pair_batch, tmp_path):
        """Later ones were written, by a course that was killed; another --eval_steps does not measure there again."""
        values = {2: 1.0, 4: 3.0, 5: 9.0, 6: 2.0}
        weights = {}

        def run(eval_steps, max_steps, resume_from=None):
            options = {"batch_size": 8, "num_epochs": 3, "checkpoint_steps": 4, "keep_last": 9}
            arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", warmup_steps=0, **options)
            arguments.lr_schedule = "constant_with_warmup"  # of any length
            arguments.max_steps = max_steps
            accelerator = build_accelerator(arguments)
            steps = iter([6] if resume_from else [2, 4, 5])

            def measure(model):
                step = next(steps)
                weights[step] = {name: value.clone() for name, value in model.state_dict().items()}
                return {"task.number": values[step]}

            often = ValidationArguments(eval_steps=eval_steps, eval_sts="x", best_metric="task.number")
            validation = Validation(accelerator, measure, often, str(tmp_path))
            loader = build_loader(accelerator, Pairs(pair_batch(16)), collate, arguments)
            model = dual_encoder(0.1)
            objective = CrossModalObjective("clip")
            result = run_phase(
                *(accelerator, model, objective, loader, arguments, "test"),
                resume_from=resume_from,
                validation=validation,
            )
            return result, model

        assert run(2, 5)[0].best == {"step": 5, "value": 9.0}
        result, model = run(100, 6, tmp_path / "checkpoints" / "step_00000004")
        assert result.best == {"step": 4, "value": 3.0}
        assert all(torch.equal(value, weights[4][name]) for name, value in model.state_dict().items())
        assert not torch.equal(weights[4]["text_projection.weight"], weights[6]["text_projection.weight"])

    def test_a_measurement_that_failed_is_made_when_the_run_goes_on(self, dual_encoder, pair_batch, tmp_path):
        logs, weights = [], []
        for name in ("whole", "failed"):
            folder, fails = tmp_path / name, [name == "failed"]
            for resumes in (False, True) if fails[0] else (False,):
                arguments = TrainingArguments(
                    output_dir=str(folder), report_to="none", batch_size=8, num_epochs=3, checkpoint_steps=0
                )
                accelerator = build_accelerator(arguments)

                def measure(model, fails=fails):
                    if fails[0]:
                        fails[0] = False
                        raise OSError("the disk is away")
                    return {"task.number": 1.0}

                often = ValidationArguments(eval_steps=2, eval_sts="x")
                model = dual_encoder(0.1)
                loader = build_loader(accelerator, Pairs(pair_batch(16)), collate, arguments)
                with pytest.raises(OSError) if name == "failed" and not resumes else nullcontext():
                    run_phase(
                        *(accelerator, model, CrossModalObjective("clip"), loader, arguments, "test"),
                        resume_from=folder / "checkpoints" / "step_00000002" if resumes else None,
                        validation=Validation(accelerator, measure, often, str(folder)),
                    )
            logs.append([(folder / log).read_bytes() for log in (LOG_NAME, VALIDATION_LOG_NAME)])
            weights.append(model.state_dict())
        assert logs[0] == logs[1] and len(logs[0][1].splitlines()) == 3
        assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())

    def test_an_unknown_metric(self, dual_encoder, pair_batch, tmp_path):
        found = self.validation([{"task.number": 1.0}], best_metric="task.numbr")
        with pytest.raises(
            ValueError, match=r"--best_metric task\.numbr was not measured; the measured .* task\.number"
        ):
            train(dual_encoder(), pair_batch(16), tmp_path, found, batch_size=8)


def test_the_average_is_released(dual_encoder, pair_batch, tmp_path):
    models = []
    for name, decay in (("plain", None), ("averaged", 0.9)):
        model = dual_encoder(0.0)
        first = model.text_projection.weight.detach().clone()
        options = {"lr_schedule": "constant_with_warmup", "learning_rate": 1e-2, "ema_decay": decay}
        train(model, pair_batch(16), tmp_path / name, batch_size=8, num_epochs=3, **options)
        models.append((model.text_projection.weight - first).norm())
    assert 0 < models[1] < 0.97 * models[0]  # the average lags behind


def test_stop_signals_are_remembered_and_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(build_accelerator(TrainingArguments(report_to="none"))) as signals:
        assert signals.agreed() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.agreed() == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == before  # a second one acts at once
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("objective, bound", [("clip", math.log(100)), ("cyclip", math.log(100)), ("siglip", 9.0)])
def test_the_objective_decides_whether_the_scale_is_bounded(objective, bound, dual_encoder, pair_batch, tmp_path):
    """Published SigLIPs have scales above CLIP's bound."""
    model = dual_encoder(logit_bias_init_value=-10.0)
    model.logit_scale.data.fill_(9.0)
    train(model, pair_batch(8), tmp_path, objective=objective, batch_size=8, learning_rate=1e-6)
    assert model.logit_scale.item() == pytest.approx(bound, abs=1e-3)


def test_what_the_launcher_asks_for_and_this_loop_does_not_do(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.warns(UserWarning, match="the launcher asks for bf16, and the run uses --mixed_precision no"):
        build_accelerator(TrainingArguments(report_to="none"))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match="drop it, and pass --micro_batch_size"):
        build_accelerator(TrainingArguments(report_to="none"))


@pytest.mark.parametrize(
    "kind, option", [("FSDP", "ema_decay"), ("DEEPSPEED", "ema_decay"), ("DEEPSPEED", "micro_batch_size")]
)
def test_what_sharding_excludes(kind, option, monkeypatch):
    monkeypatch.setattr(Accelerator, "distributed_type", property(lambda self: DistributedType(kind)))
    with pytest.raises(ValueError, match=f"drop .*--{option}|--{option} .*drop"):
        build_accelerator(TrainingArguments(report_to="none", **{option: 0.5 if option == "ema_decay" else 4}))


def test_a_gradient_norm_may_be_a_number(dual_encoder, pair_batch, tmp_path, monkeypatch):
    """DeepSpeed's is."""
    clip = Accelerator.clip_grad_norm_
    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda self, *args: float(clip(self, *args)))
    result, log = train(dual_encoder(), pair_batch(16), tmp_path, batch_size=8, max_steps=2)
    assert result.bad_steps == 0 and log[1]["grad_norm"] > 0


def test_an_unknown_tracker():
    with pytest.raises(ValueError, match="--report_to tensorbord is unknown: pass one of"):
        build_accelerator(TrainingArguments(report_to="tensorbord"))


def test_processes_that_do_not_see_each_other(monkeypatch):
    """They would all write into one folder."""
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "2")
            with pytest.raises(
                ValueError, match=r"started 2 processes.* Accelerate sees 1: .* set ACCELERATE_USE_CPU=true"
            ):
                build_accelerator(TrainingArguments(report_to="none"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    build_accelerator(TrainingArguments(report_to="none"))
    monkeypatch.delenv("WORLD_SIZE")
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"):  # `accelerate launch --num_processes 2`
        monkeypatch.setenv(name, "no")
    with pytest.raises(ValueError, match=r"asked for several processes and has started one: .* torchrun"):
        build_accelerator(TrainingArguments(report_to="none"))

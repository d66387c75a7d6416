"""The one loop of all phases: they differ in objective, batches and model only."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, LoggerType, set_seed
from torch import nn
from tqdm.auto import tqdm

from ..objectives import Batch, Objective, ObjectiveOutput
from .arguments import TrainingArguments
from .averaging import WeightAverage
from .checkpoint import CheckpointManager, check_same_run, output_folder, read_state
from .faults import BadStepsError, BufferSnapshot, StopSignals, batch_ids, describe_ids, no_workers_left
from .grad_cache import cached_backward
from .log import StepLog, TrainingResult, progress_bar
from .optimization import build_optimizer, build_scheduler, clamp_logit_scale, clip_gradients
from .sharding import average_gradients, is_sharded, prepare_sharding
from .towers import compile_towers, set_training_mode

if TYPE_CHECKING:
    # The loop itself runs without the packages that data and evaluation need.
    from .batches import StatefulLoader
    from .validation import Validation

# Variables in which launchers write how many processes they have started, in Accelerate's order.
_WORLD_SIZE_NAMES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# Timeout of processes that wait for the one that validates; NCCL's default is ten minutes.
_TIMEOUT = timedelta(hours=1)
# Number of texts per sub-batch, measured on two cores (benchmarks/results/padding_cpu.json); on an accelerator, small
# sub-batches cost launches.
_CPU_TEXT_SUB_BATCHES = 4


def build_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Return the Accelerator of a run; the launcher's environment decides processes and devices."""
    # Buffers are not broadcast: between the two forwards of a joint objective, broadcasting batch-norm statistics would
    # change tensors that backward still needs.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    known = {"none", "all", *(tracker.value for tracker in LoggerType)}
    if arguments.report_to not in known:
        raise ValueError(f"--report_to {arguments.report_to} is unknown: pass one of {', '.join(sorted(known))}")
    # A dry run may count in any precision, and a CPU has no fp16. Weights in bfloat16 are computed in it.
    is_counted = arguments.dry_run and not torch.accelerator.is_available() and arguments.frozen_dtype == "float32"
    precision = "no" if is_counted else arguments.mixed_precision
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_dir=arguments.output_dir,
        kwargs_handlers=[ddp, InitProcessGroupKwargs(timeout=_TIMEOUT)],
    )
    _check_processes(accelerator)
    _check_launch(accelerator, arguments)
    # DeepSpeed would look for a loader that Accelerate has prepared, and the loaders here are not
    if accelerator.state.deepspeed_plugin is not None:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = arguments.batch_size
        config["gradient_clipping"] = float(arguments.max_grad_norm)  # DeepSpeed does this in its backward
    return accelerator


def _check_processes(accelerator: Accelerator) -> None:
    """Raise a ValueError if a launcher was asked for several processes and each of them runs as the only one.

    They would write into one folder. Accelerate takes processes without an accelerator for single ones, unless
    ACCELERATE_USE_CPU is set; `accelerate launch --cpu` starts one, and leaves an address for the others.
    """
    launched = next((os.environ[name] for name in _WORLD_SIZE_NAMES if name in os.environ), None)
    by_accelerate = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if launched is None and by_accelerate and accelerator.num_processes == 1:
        raise ValueError(
            "accelerate launch was asked for several processes and has started one: on a CPU, set "
            "ACCELERATE_USE_CPU=true and start them with torchrun --nproc_per_node <processes>; for one process, pass "
            "--num_processes 1 and unset MASTER_ADDR"
        )
    if launched is not None and launched != str(accelerator.num_processes):
        raise ValueError(
            f"the launcher started {launched} processes (WORLD_SIZE), and Accelerate sees {accelerator.num_processes}: "
            "on a machine without accelerators set ACCELERATE_USE_CPU=true; for one process, unset WORLD_SIZE"
        )


def _check_launch(accelerator: Accelerator, arguments: TrainingArguments) -> None:
    """Raise a ValueError for settings of the launcher that this loop does not support; warn of ignored ones."""
    if accelerator.gradient_accumulation_steps != 1:
        raise ValueError(
            "the launcher asks for gradient accumulation, which would weaken the loss over a batch: drop it, and pass "
            "--micro_batch_size to fit a large --batch_size into memory"
        )
    if is_sharded(accelerator) and arguments.ema_decay is not None:
        raise ValueError("--ema_decay averages models that every process holds whole: drop it under FSDP and DeepSpeed")
    if accelerator.distributed_type == DistributedType.DEEPSPEED and arguments.micro_batch_size is not None:
        raise ValueError("DeepSpeed takes its step in every backward pass: drop --micro_batch_size")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", arguments.mixed_precision) and accelerator.is_main_process:
        warnings.warn(
            f"the launcher asks for {launched}, and the run uses --mixed_precision {arguments.mixed_precision}",
            stacklevel=3,
        )


def text_sub_batches(arguments: TrainingArguments, accelerator: Accelerator) -> int:
    """Return into how many sub-batches of similar length the text side of a batch is cut."""
    if arguments.text_sub_batches is not None:
        return arguments.text_sub_batches
    return _CPU_TEXT_SUB_BATCHES if accelerator.device.type == "cpu" else 1


class TrainingStep:
    """One step: backward, clip, optimizer, schedule, average; left without trace where numbers are not finite.

    Args:
        accelerator: Accelerator of the run.
        model: Model as it was before `prepare`.
        objective: Objective that a step minimises.
        arguments: Options of the loop.
        total_steps: Number of steps of the schedule.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        objective: Objective,
        arguments: TrainingArguments,
        total_steps: int,
    ) -> None:
        self.accelerator = accelerator
        self.objective = objective
        self.arguments = arguments
        self.whole = prepare_sharding(accelerator, model)
        self.model, self.optimizer = accelerator.prepare(model, build_optimizer(model, arguments))
        self.scheduler = build_scheduler(self.optimizer, arguments, total_steps)
        set_training_mode(self.model)
        self.snapshot = BufferSnapshot(self.model)
        self.average: WeightAverage | None = None
        if arguments.ema_decay is not None:
            self.average = WeightAverage(self.model, arguments.ema_decay)

    def __call__(self, batch: Batch) -> tuple[ObjectiveOutput, dict[str, torch.Tensor | float], bool]:
        """Return the objective's output, what else to log, and whether the step was good."""
        self.snapshot.remember()
        output = self._backward(batch)
        average_gradients(self.accelerator, self.whole)
        learning_rate = self.scheduler.get_last_lr()[0]
        grad_norm = clip_gradients(self.accelerator, self.model, self.arguments.max_grad_norm)
        good = self._is_finite(output.loss, grad_norm)
        # The scaler of fp16 has already seen the gradients of this step, and does not change the weights.
        if good or self.accelerator.scaler is not None:
            self.optimizer.step()
            if self.objective.scale_bounds is not None:
                clamp_logit_scale(self.model, *self.objective.scale_bounds)
        if not good:
            self.snapshot.restore()
        elif self.average is not None:
            self.average.update()
        self.optimizer.zero_grad()
        with warnings.catch_warnings():
            # The schedule follows the number of steps, including the first ones that could not be taken.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step\\(\\)` before")
            self.scheduler.step()
        return output, {"grad_norm": grad_norm, "learning_rate": learning_rate}, good

    def _backward(self, batch: Batch) -> ObjectiveOutput:
        """Accumulate the gradients of one batch."""
        if self.arguments.micro_batch_size is not None:
            return cached_backward(self.accelerator, self.objective, self.model, batch, self.arguments.micro_batch_size)
        output = self.objective(self.model, batch)
        self.accelerator.backward(output.loss)
        return output

    def _is_finite(self, loss: torch.Tensor, grad_norm: torch.Tensor | float) -> bool:
        """Tell whether a step can be taken; the numbers are those of all processes, and so is the answer.

        fp16's gradients overflow now and then, which its scaler deals with: there the loss alone decides.
        """
        checked = loss.detach()
        if self.accelerator.scaler is None:
            checked = checked + torch.as_tensor(grad_norm, device=loss.device)  # DeepSpeed returns a float
        return bool(torch.isfinite(checked))


def run_phase(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    loader: StatefulLoader,
    arguments: TrainingArguments,
    description: str,
    *,
    resume_from: Path | None = None,
    options: Mapping[str, Any] | None = None,
    validation: Validation | None = None,
) -> TrainingResult:
    """Train `model` in place and log every step to `train_log.jsonl` (and the tracker) in the output folder.

    Args:
        accelerator: Accelerator of the run.
        model: Model on any device; `accelerator.prepare` moves and wraps it.
        objective: Objective that a step minimises.
        loader: Loader of the batches.
        arguments: Options of the loop.
        description: Description of the progress bar.
        resume_from: Training state from which the run goes on.
        options: Options of the whole run, which are kept in its states; a run with other options cannot be resumed from
            them.
        validation: Validation that measures the model at intervals and may choose the weights that it has in the end.

    Raises:
        BadStepsError: If more than `max_bad_steps` steps had a loss or gradient that is not finite.
        CheckpointError: If `resume_from` does not fit this run.
        OSError: If the disk has no room for training states.
        SystemExit: After SIGTERM or SIGINT, with status 128 plus the number of the signal; the state is saved.
    """
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    if arguments.torch_compile:
        compile_towers(model)
    total_steps = arguments.num_epochs * len(loader)
    if arguments.max_steps is not None:
        total_steps = min(total_steps, arguments.max_steps)
    take_step = TrainingStep(accelerator, model, objective, arguments, total_steps)
    checkpoints = CheckpointManager(
        accelerator, arguments.output_dir, arguments.keep_last, take_step.scheduler, take_step.average
    )
    checkpoints.check_room(model)
    if validation is not None:
        validation.check(model)
    set_seed(arguments.seed, device_specific=True)  # dropout differs between processes, the weights are equal by now
    identity = {"num_processes": accelerator.num_processes, "options": dict(options or {})}
    run = _Run(take_step, checkpoints, loader, identity, validation, total_steps, TrainingResult())
    log_bytes = {} if resume_from is None else run.restore(resume_from)
    folder = Path(arguments.output_dir)
    earlier_folder = folder if resume_from is None else output_folder(resume_from)
    with (
        no_workers_left(),
        StepLog(accelerator, folder, log_bytes, earlier_folder) as log,
        progress_bar(accelerator, description, total_steps * run.items_per_step, run.result.items) as bar,
        StopSignals(accelerator) as signals,
        closing(iter(loader)) as batches,
    ):
        run.go_on(model, batches, log, bar, signals)
    if take_step.average is not None:
        take_step.average.copy_to_model()
    if run.result.best is not None and validation is not None:
        validation.load_best(model)
    return run.result


@dataclass
class _Run:
    """Parts of a phase while it runs, and its progress.

    `total_steps` of the optimizer; `validates`: the last step's validation is still to come, since it failed or was
    left before the state was saved.
    """

    take_step: TrainingStep
    checkpoints: CheckpointManager
    loader: StatefulLoader
    identity: dict[str, Any]
    validation: Validation | None
    total_steps: int
    result: TrainingResult
    validates: bool = False
    started: float = field(default_factory=time.perf_counter)

    @property
    def items_per_step(self) -> int:
        """Number of items that all processes see in a step."""
        return self.take_step.arguments.batch_size * self.take_step.accelerator.num_processes

    def restore(self, path: Path) -> dict[str, int]:
        """Take everything from a training state; return the lengths that the logs had then."""
        check_same_run(read_state(path), self.identity)
        counters = self.checkpoints.load(path)
        self.loader.load_state_dict(counters["stream"])
        self.result = TrainingResult(**counters["result"])
        self.validates = counters.get("validates", False)
        self.started -= self.result.seconds
        if self.validation is not None:
            self.validation.restore_best(path, self.result.best, counters["log_bytes"])
        return counters["log_bytes"]

    def go_on(self, model: nn.Module, batches: Iterator[Batch], log: StepLog, bar: tqdm, signals: StopSignals) -> None:
        """Take the steps that are left."""
        every, result = self.take_step.arguments.checkpoint_steps, self.result
        if self.validates:
            self._validate(model, log, signals)
        while result.steps < self.total_steps:
            position = self.loader.state_dict()
            batch, stop = signals.next_batch(batches)
            if stop or batch is None:  # a batch that was loaded is not used up
                self._stop(stop, position, log)
            result.steps, result.items = result.steps + 1, result.items + self.items_per_step
            _logged_step(self.take_step, batch, self.loader.epoch, result, log, self.checkpoints)
            bar.set_postfix({"loss": f"{result.last_log.get('loss', math.nan):.3f}"}, refresh=False)
            bar.update(self.items_per_step)
            if self.validation is not None and self.validation.is_due(result.steps, self.total_steps):
                self._validate(model, log, signals)
            result.seconds = time.perf_counter() - self.started
            if every and result.steps % every == 0:
                self._save(self.loader.state_dict(), log)

    def _validate(self, model: nn.Module, log: StepLog, signals: StopSignals) -> None:
        """Measure the model; whatever that raises, the state is saved first."""
        assert self.validation is not None
        self.validates = True
        try:
            best = self.validation.measure(model, self.take_step.average, self.result, log, signals.interruptible)
        except BaseException:
            self._save(self.loader.state_dict(), log)
            if stop := signals.agreed():
                raise SystemExit(self._stopped(stop)) from None
            raise
        self.result.best, self.validates = best, False

    def _save(self, position: dict[str, Any], log: StepLog) -> None:
        self.result.seconds = time.perf_counter() - self.started
        counters = {"result": dataclasses.asdict(self.result), "stream": position, "validates": self.validates}
        best = None if self.validation is None or self.result.best is None else self.validation.best_path
        self.checkpoints.save(
            self.result.steps, {**self.identity, **counters, "log_bytes": log.flush_to_disk()}, best=best
        )

    def _stop(self, number: int, position: dict[str, Any], log: StepLog) -> NoReturn:
        self._save(position, log)
        raise SystemExit(self._stopped(number))

    def _stopped(self, number: int) -> int:
        """Say how to go on after a signal; return the exit status, 128 plus its number."""
        name, newest = signal.Signals(number).name, self.checkpoints.newest()
        self.take_step.accelerator.print(
            f"\n{name}: stopped after step {self.result.steps}; the training state is {newest or 'not saved'}. "
            "Go on with the same command and --resume auto",
            file=sys.stderr,
        )
        return 128 + number


def _logged_step(
    take_step: TrainingStep,
    batch: Batch,
    epoch: int,
    result: TrainingResult,
    log: StepLog,
    checkpoints: CheckpointManager,
) -> None:
    """Take a step and log it; stop the run where too many have been bad."""
    output, extra, good = take_step(batch)
    if good:
        result.last_log = log.write(result.steps, epoch, output, extra)
        return
    ids = batch_ids(take_step.accelerator, batch)
    log.write_bad(result.steps, epoch, ids)
    result.bad_steps += 1
    if result.bad_steps > take_step.arguments.max_bad_steps:
        raise BadStepsError(
            f"step {result.steps}: the loss or its gradient is not finite; {result.bad_steps} such steps are more than "
            f"--max_bad_steps {take_step.arguments.max_bad_steps}. Ids of the batch: {describe_ids(ids)}. Last good "
            f"training state: {checkpoints.newest() or 'none'}"
        )

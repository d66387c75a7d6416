"""The one loop of all phases: they differ in objective, batches and model only."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.sampling import EpochSampler
from ..objectives import Batch, Objective, ObjectiveOutput
from .arguments import TrainingArguments
from .grad_cache import cached_backward
from .optimization import build_optimizer, build_scheduler, clamp_logit_scale

LOG_NAME = "train_log.jsonl"
# Measured on two cores (benchmarks/results/padding_cpu.json); on an accelerator small parts cost launches.
_CPU_TEXT_SUB_BATCHES = 4


@dataclass(frozen=True)
class TrainingResult:
    """What a phase did: optimiser steps, items seen by all processes, seconds, and the log of the last step."""

    steps: int
    items: int
    seconds: float
    last_log: dict[str, float]


def build_accelerator(arguments: TrainingArguments) -> Accelerator:
    """Return the Accelerator of a run; the launcher's environment decides processes and devices."""
    # Buffers stay as they are between the two forwards of a joint objective: broadcasting batch-norm statistics in
    # between would change tensors that backward still needs.
    ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(
        mixed_precision=arguments.mixed_precision,
        log_with=None if arguments.report_to == "none" else arguments.report_to,
        project_dir=arguments.output_dir,
        kwargs_handlers=[ddp],
    )


def text_sub_batches(arguments: TrainingArguments, accelerator: Accelerator) -> int:
    """Return into how many parts of similar length the text side of a batch is cut."""
    if arguments.text_sub_batches is not None:
        return arguments.text_sub_batches
    return _CPU_TEXT_SUB_BATCHES if accelerator.device.type == "cpu" else 1


def build_loader(dataset: Dataset, collator: Callable[[list[Any]], Batch], arguments: TrainingArguments) -> DataLoader:
    """Return the training loader: an order that depends on (seed, epoch) only, incomplete batches dropped.

    Raises:
        ValueError: when the data do not fill one batch of all processes.
    """
    if len(dataset) < arguments.batch_size:  # type: ignore[arg-type]
        raise ValueError(
            f"{len(dataset)} items do not fill a batch of {arguments.batch_size}: lower --batch_size"  # type: ignore[arg-type]
        )
    return DataLoader(
        dataset,
        batch_size=arguments.batch_size,
        sampler=EpochSampler(len(dataset), seed=arguments.seed),  # type: ignore[arg-type]
        collate_fn=collator,
        drop_last=True,
        num_workers=arguments.num_workers,
        persistent_workers=arguments.num_workers > 0,
    )


def run_phase(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    loader: DataLoader,
    arguments: TrainingArguments,
    description: str,
) -> TrainingResult:
    """Train `model` in place and log every step to `train_log.jsonl` (and the tracker) in the output folder.

    Args:
        accelerator: of the run.
        model: on any device; `accelerator.prepare` moves and wraps it.
        objective: what a step minimises.
        loader: as `build_loader` returns it.
        arguments: of the loop.
        description: of the progress bar.
    """
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    optimizer = build_optimizer(model, arguments)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if len(loader) == 0:
        raise ValueError(
            f"the data do not fill a batch of {arguments.batch_size} in each of {accelerator.num_processes} processes: "
            "lower --batch_size"
        )
    total_steps = arguments.num_epochs * len(loader)
    if arguments.max_steps is not None:
        total_steps = min(total_steps, arguments.max_steps)
    scheduler = build_scheduler(optimizer, arguments, total_steps)
    set_seed(arguments.seed, device_specific=True)  # dropout differs between processes, the weights are equal by now
    items_per_step = arguments.batch_size * accelerator.num_processes

    model.train()
    started = time.perf_counter()
    log: dict[str, float] = {}
    with StepLog(accelerator, Path(arguments.output_dir), total_steps, items_per_step, description) as step_log:
        for step, (epoch, batch) in zip(range(1, total_steps + 1), _endless(loader), strict=False):
            output = _backward(accelerator, objective, model, batch, arguments.micro_batch_size)
            learning_rate = scheduler.get_last_lr()[0]
            max_norm = arguments.max_grad_norm or float("inf")
            grad_norm = accelerator.clip_grad_norm_(model.parameters(), max_norm)
            optimizer.step()
            if not accelerator.optimizer_step_was_skipped:
                scheduler.step()
            optimizer.zero_grad()
            clamp_logit_scale(model)
            log = step_log.write(step, epoch, output, {"grad_norm": grad_norm, "learning_rate": learning_rate})
    return TrainingResult(total_steps, total_steps * items_per_step, time.perf_counter() - started, log)


def _backward(
    accelerator: Accelerator, objective: Objective, model: nn.Module, batch: Batch, micro_batch_size: int | None
) -> ObjectiveOutput:
    """Accumulate the gradients of one batch."""
    if micro_batch_size is not None:
        return cached_backward(accelerator, objective, model, batch, micro_batch_size)
    output = objective(model, batch)
    accelerator.backward(output.loss)
    return output


def _endless(loader: DataLoader) -> Iterator[tuple[int, Batch]]:
    """Yield (epoch, batch) without end; the prepared loader counts its passes and reseeds the sampler by them."""
    epoch = 0
    while True:
        for batch in loader:
            yield epoch, batch
        epoch += 1


class StepLog:
    """Writes each step's numbers to a JSONL file and the tracker, and shows them in a progress bar.

    Only the main process writes. The file holds no times, so that equal runs give equal files.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, total_steps: int, items_per_step: int, description: str
    ) -> None:
        self.accelerator = accelerator
        self.path = folder / LOG_NAME
        self.items_per_step = items_per_step
        self.bar = tqdm(
            total=total_steps * items_per_step,
            desc=description,
            unit=" items",
            disable=not accelerator.is_main_process,
        )

    def __enter__(self) -> StepLog:
        if self.accelerator.is_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()
        if self.accelerator.is_main_process:
            self.file.close()

    def write(
        self, step: int, epoch: int, output: ObjectiveOutput, extra: dict[str, torch.Tensor | float]
    ) -> dict[str, float]:
        """Log one step; return its numbers."""
        values = {**output.logs, **extra}
        # One transfer for all numbers: each would wait for the accelerator.
        stacked = torch.stack([torch.as_tensor(value, device=output.loss.device).float() for value in values.values()])
        log = {"step": step, "epoch": epoch, **dict(zip(values, stacked.tolist(), strict=True))}
        if self.accelerator.is_main_process:
            self.file.write(json.dumps(log) + "\n")
            self.file.flush()
        if self.accelerator.trackers:
            self.accelerator.log({name: log[name] for name in values}, step=step)
        self.bar.set_postfix({"loss": f"{log['loss']:.3f}"}, refresh=False)
        self.bar.update(self.items_per_step)
        return log

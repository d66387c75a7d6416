"""What can go wrong in a long run: numbers that are not finite, and being told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..objectives import Batch

# How many ids of a batch an error message shows.
_SHOWN_IDS = 20


class BadStepsError(RuntimeError):
    """More steps than tolerated had a loss or gradient that is not finite."""


class BufferGuard:
    """Copies of a model's floating-point buffers, so that a bad batch leaves no trace in running statistics."""

    def __init__(self, model: nn.Module) -> None:
        self.buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.copies = [buffer.clone() for buffer in self.buffers]

    def remember(self) -> None:
        """Take the copies; before the forward of a step."""
        if self.buffers:
            torch._foreach_copy_(self.copies, self.buffers)

    def restore(self) -> None:
        """Undo what the step did to the buffers."""
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.copies)


def batch_ids(accelerator: Accelerator, batch: Batch) -> list[str]:
    """Return the ids of a batch in all processes; those of both parts of a joint batch."""
    parts = [batch["pairs"], batch["sentences"]] if "pairs" in batch else [batch]
    own = [item for part in parts for item in part.get("ids", [])]
    return gather_object(own) if accelerator.num_processes > 1 else own


def describe_ids(ids: list[str]) -> str:
    """Return the first ids in words."""
    more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
    return ", ".join(ids[:_SHOWN_IDS]) + more


class StopSignals:
    """While entered, SIGTERM and SIGINT ask the run to stop after the present step; a second one acts as usual.

    Args:
        accelerator: of the run; processes agree on stopping, whichever of them was told.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received = 0
        self.previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            for number in self.SIGNALS:
                self.previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, self.previous[number])

    def agreed(self) -> int:
        """Return the signal that some process has received, the same in all of them; 0 for none."""
        if self.accelerator.num_processes == 1:
            return self.received
        received = torch.tensor([self.received], device=self.accelerator.device)
        return int(self.accelerator.gather(received).max())


def ignore_stop_signals(_: int) -> None:
    """For the workers of a loader: a stop that is sent to the whole process group is the main process's business."""
    for number in StopSignals.SIGNALS:
        signal.signal(number, signal.SIG_IGN)

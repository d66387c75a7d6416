"""The processes that a launcher started: their number, and what one of them does for the others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

# Maximum time to wait while another process measures or writes.
_TIMEOUT = timedelta(hours=6)

T = TypeVar("T")


class Processes(Protocol):
    """Interface of `Accelerator` and `PartialState` to the processes of a run."""

    @property
    def is_main_process(self) -> bool:
        """Whether this is the main process."""

    @property
    def num_processes(self) -> int:
        """The number of processes."""


class OtherProcessError(RuntimeError):
    """Another process of the run has failed; its own message says why."""


def launched_processes(cpu: bool = False) -> PartialState:
    """The processes of `accelerate launch` or torchrun, one without a launcher, whose waits may take hours.

    Args:
        cpu: Whether to use the CPU although there is an accelerator.
    """
    return PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=_TIMEOUT)


def on_main_process(processes: Processes, function: Callable[[], T]) -> T:
    """Call a function in the main process alone; return its result in every process.

    Raises:
        BaseException: In the main process, whatever the function raised.
        OtherProcessError: In the other processes, if the function raised.
    """
    error: BaseException | None = None
    outcome: list[Any] = [None, None]
    if processes.is_main_process:
        try:
            outcome[0] = function()
        except BaseException as caught:  # the other processes wait for an answer, whatever the function raised
            error, outcome[1] = caught, f"{type(caught).__name__}: {caught}"
    if processes.num_processes > 1:
        broadcast_object_list(outcome)
    if error is not None:
        raise error
    if outcome[1] is not None:
        raise OtherProcessError(f"the main process failed: {outcome[1]}")
    return outcome[0]


def main_process_first(processes: Processes, function: Callable[[], T]) -> T:
    """Call a function in the main process, then in the others, which find the caches that it has filled.

    Raises:
        BaseException: Whatever the function raised in this process.
        OtherProcessError: In the other processes, if the function raised in the main process.
    """
    results: list[T] = []
    on_main_process(processes, lambda: results.append(function()))
    return results[0] if results else function()

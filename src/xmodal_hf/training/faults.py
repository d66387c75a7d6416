"""Faults of long runs: numbers that are not finite, signals to stop, workers that do not answer."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from ..features.processes import OtherProcessError
from ..objectives import Batch

# Number of ids of a batch that an error message shows.
_SHOWN_IDS = 20
# Maximum time in seconds to wait for the end of a killed process: one that hangs in the kernel (a dead network mount)
# cannot be ended at all.
_JOIN_SECONDS = 2.0
# Maximum time in seconds for which a failing process waits until the others know of it; a step may have to end first.
_TELL_SECONDS = 10.0
# Option of Linux's prctl for the signal that a process gets when its parent has died (PR_SET_PDEATHSIG in
# linux/prctl.h).
_PR_SET_PDEATHSIG = 1
# Number that a failed process sends to the others; it is above the numbers of all signals.
_FAILED = 1000

T = TypeVar("T")


class BadStepsError(RuntimeError):
    """More steps than tolerated had a loss or gradient that is not finite."""


class StopRequested(BaseException):
    """A signal asked the run to stop while it did nothing that has to be finished; no error, like KeyboardInterrupt."""


class BufferSnapshot:
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

    What can be left at any moment, such as waiting for data or measuring the model, is left at once.

    Args:
        accelerator: Accelerator of the run. The processes agree on stopping, whichever of them got the signal.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.received = 0
        self.previous: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
        self._process_id = os.getpid()
        self._interrupts = False

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only in the main thread
            for number in self.SIGNALS:
                self.previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process_id:  # a worker that has just been forked
            return
        self.received = number
        signal.signal(number, self.previous[number])
        if self._interrupts:
            self._interrupts = False
            raise StopRequested

    def agreed(self, failed: bool = False) -> int:
        """Return the signal that some process has received, the same in all of them; 0 for none.

        Args:
            failed: Whether this process cannot go on.

        Raises:
            OtherProcessError: If another process has failed, and this one has not.
        """
        if self.accelerator.num_processes == 1:
            return self.received
        own = torch.tensor([_FAILED if failed else self.received], device=self.accelerator.device)
        worst = int(self.accelerator.gather(own).max())
        if worst == _FAILED and not failed:
            raise OtherProcessError("another process of this run has failed; its own message says why")
        return worst

    def interruptible(self, function: Callable[[], T]) -> T:
        """Call a function that may be left at any moment.

        Raises:
            StopRequested: If the run is asked to stop before or during the call.
        """
        self._interrupts = True
        try:
            if self.received:
                raise StopRequested
            return function()
        finally:
            self._interrupts = False

    def next_batch(self, batches: Iterator[Batch]) -> tuple[Batch | None, int]:
        """Wait for the next batch, in every process at the same time; a reader that hangs does not prevent a stop.

        Returns:
            Batch, and the signal for which the processes agreed to stop (0: take the step).

        Raises:
            OtherProcessError: If another process cannot go on. An exception of the reader in this process is raised as
                it is.
        """
        batch = None
        try:
            batch = self.interruptible(lambda: next(batches))
        except StopRequested:
            pass
        except Exception:
            self._tell_failure()
            raise
        return batch, self.agreed()

    def _tell_failure(self) -> None:
        """Tell the other processes that this one fails; those whose readers hang do not listen, and the launcher will.

        In a thread, since nothing in PyTorch leaves a collective that waits for another process.
        """

        def tell() -> None:
            with suppress(RuntimeError):  # the others may be gone
                self.agreed(failed=True)

        if self.accelerator.num_processes > 1:
            telling = threading.Thread(target=tell, daemon=True)
            telling.start()
            telling.join(_TELL_SECONDS)


def prepare_worker(_: int) -> None:
    """Prepare a worker of a loader: it leaves stop signals to the main process, and ends with it.

    A stop may be sent to the whole process group. A worker that hangs in reading would outlive a killed main process.
    """
    for number in StopSignals.SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def end_workers(loader: DataLoader) -> None:
    """Kill the persistent workers of a loader, whatever they are doing, and forget them.

    They only read, so nothing is lost. The loader's own way waits for each of them, then sends the SIGTERM that they
    ignore, and comes only when nothing refers to its iterator: the traceback of an exception does.
    """
    iterator: Any = loader._iterator
    loader._iterator = None
    if not hasattr(iterator, "_workers") or iterator._shutdown:
        return
    iterator._shutdown = True
    signal_handling._remove_worker_pids(id(iterator))  # from here on, a killed worker is no error
    iterator._worker_pids_set = False
    _kill(iterator._workers)
    if hasattr(iterator, "_pin_memory_thread"):
        iterator._pin_memory_thread_done_event.set()
        iterator._worker_result_queue.cancel_join_thread()  # a killed worker may hold its lock
        iterator._worker_result_queue.put((None, None))
        iterator._pin_memory_thread.join(_JOIN_SECONDS)


@contextmanager
def no_workers_left() -> Iterator[None]:
    """Kill the daemonic processes that the body has started and not ended; Python would wait for them at its exit."""
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        with suppress(RuntimeError):  # the loader was interrupted while it started its workers
            _kill([child for child in multiprocessing.active_children() if child.daemon and child not in before])


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join(_JOIN_SECONDS)
        if process.is_alive():
            # The process hangs in the kernel, and Python must not wait for it when it exits.
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]

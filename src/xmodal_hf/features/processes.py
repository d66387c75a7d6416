"""The processes that a launcher started, for work that is no training."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

# While one process measures or writes, the others wait for it.
_TIMEOUT = timedelta(hours=6)


def launched_processes(cpu: bool = False) -> PartialState:
    """The processes of `accelerate launch` or torchrun, one without a launcher, whose waits may take hours.

    Args:
        cpu: Whether to use the CPU although there is an accelerator.
    """
    return PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=_TIMEOUT)

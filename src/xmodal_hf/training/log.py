"""Reports of a phase: the log of its steps and validations, its result, its progress bar."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from accelerate import Accelerator
from tqdm import tqdm

from .. import messages
from ..features.processes import on_main_process
from ..objectives import ObjectiveOutput

logger = logging.getLogger(__name__)

LOG_NAME = "train_log.jsonl"
VALIDATION_LOG_NAME = "validation_log.jsonl"


@dataclass
class TrainingResult:
    """Progress of a phase, which its training states hold too.

    `steps` of the optimizer, of which `bad_steps` changed nothing; `items` seen by all processes; `seconds`, those
    before a resumption included; the log of the last good step; the best validation, {"step", "value"}, where one
    chooses the weights.
    """

    steps: int = 0
    items: int = 0
    seconds: float = 0.0
    last_log: dict[str, float] = field(default_factory=dict)
    bad_steps: int = 0
    best: dict[str, float] | None = None


def inform(accelerator: Accelerator, message: str) -> None:
    """Log a line of the training, in the main process alone."""
    if accelerator.is_main_process:
        logger.info(message)


def progress_bar(accelerator: Accelerator, description: str, total: int, done: int) -> tqdm:
    """Return the bar of the main process; those of the others are silent."""
    silent = not accelerator.is_main_process
    return messages.progress_bar(total=total, initial=done, desc=description, unit=" items", silent=silent)


class StepLog:
    """Writes each step's numbers to a JSONL file and the tracker, and validations to another.

    Only the main process writes. The files hold no times, so that equal runs give equal files.

    Args:
        accelerator: Accelerator of the run.
        folder: Folder of the files.
        kept_bytes: Number of bytes of each file that a resumed run keeps; files that are not named start empty.
        earlier_folder: Folder of the run that is resumed, whose files are copied to that length if it is not `folder`.
            If None, `folder`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        kept_bytes: Mapping[str, int],
        earlier_folder: Path | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.folder = folder
        self.kept_bytes = kept_bytes
        self.earlier_folder = earlier_folder or folder
        self.files: dict[str, TextIO] = {}

    def __enter__(self) -> StepLog:
        on_main_process(self.accelerator, self._open)
        return self

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (LOG_NAME, VALIDATION_LOG_NAME):
            kept = self._earlier_bytes(name)
            if self.earlier_folder.resolve() != self.folder.resolve():
                (self.folder / name).write_bytes(kept)
            file = (self.folder / name).open("a", encoding="utf-8")
            file.truncate(len(kept))
            self.files[name] = file

    def _earlier_bytes(self, name: str) -> bytes:
        """Return the bytes of a file that a resumed run keeps: fewer if the file is missing or has become shorter."""
        path, length = self.earlier_folder / name, self.kept_bytes.get(name, 0)
        kept = path.read_bytes()[:length] if length and path.is_file() else b""
        if len(kept) < length:
            logger.warning("%s does not reach to the state that is resumed: its log has a gap", path)
        return kept

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def write(
        self, step: int, epoch: int, output: ObjectiveOutput, extra: Mapping[str, torch.Tensor | float]
    ) -> dict[str, float]:
        """Log one step; return its numbers."""
        values = {**output.logs, **extra}
        # All numbers are transferred at once, because each transfer waits for the accelerator.
        stacked = torch.stack([torch.as_tensor(value, device=output.loss.device).float() for value in values.values()])
        numbers = dict(zip(values, stacked.tolist(), strict=True))
        log = {"step": step, "epoch": epoch, **numbers}
        self._write(LOG_NAME, log)
        self.accelerator.log(numbers, step=step)
        return log

    def write_bad(self, step: int, epoch: int, ids: list[str]) -> None:
        """Log a step that was left out, with the ids of its batch."""
        self._write(LOG_NAME, {"step": step, "epoch": epoch, "not_finite": True, "ids": ids})

    def write_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Log a validation."""
        self._write(VALIDATION_LOG_NAME, {"step": step, **values})
        self.accelerator.log({f"validation/{name}": value for name, value in values.items()}, step=step)

    def flush_to_disk(self) -> dict[str, int]:
        """Return the length of each file in bytes, all of them on the disk."""
        for file in self.files.values():
            os.fsync(file.fileno())
        return {name: file.tell() for name, file in self.files.items()}

    def _write(self, name: str, entry: Mapping[str, Any]) -> None:
        if name in self.files:
            self.files[name].write(json.dumps(entry) + "\n")
            self.files[name].flush()

"""Training states: written whole or not at all, so that a run killed at any moment goes on from the newest one.

A state is a folder `checkpoints/step_00001000` of the output folder: Accelerate's files (weights that change,
optimizer, scheduler, scaler, random states) and `state.json`, our own counters. It is written under a temporary name,
flushed to the disk and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .sharding import is_sharded

STATE_FOLDER = "checkpoints"
_STATE_NAME = "state.json"
_WEIGHTS_NAME = "model.safetensors"
_TEMPORARY = ".tmp"
# Weights, and AdamW's two moments of them.
_COPIES_IN_A_STATE = 3
# How Python, torch and safetensors report a full disk.
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
# Options that may differ between a run and its resumption: they change no weight.
_FREE_OPTIONS = frozenset(
    (
        *("output_dir", "num_workers", "report_to", "checkpoint_steps", "keep_last", "resume", "max_bad_steps"),
        *("dry_run", "eval_steps"),
    )
)


class CheckpointError(RuntimeError):
    """A training state cannot be used, or there is none where one was asked for."""


def find_states(output_dir: str | os.PathLike) -> list[Path]:
    """Return the complete training states of an output folder, the oldest first."""
    return sorted(path for path in (Path(output_dir) / STATE_FOLDER).glob("step_*") if path.suffix != _TEMPORARY)


def find_resumed(output_dir: str | os.PathLike, resume: str | None) -> Path | None:
    """Return the state that `--resume` names; None when it is not given, or is `auto` and there is none yet.

    Raises:
        CheckpointError: when the named folder is no complete state.
    """
    if resume is None:
        return None
    if resume == "auto":
        states = find_states(output_dir)
        return states[-1] if states else None
    path = Path(resume)
    if not (path / _STATE_NAME).is_file():
        raise CheckpointError(f"--resume {resume} is no training state: pass a folder {STATE_FOLDER}/step_..., or auto")
    return path


def read_state(path: Path) -> dict[str, Any]:
    """Return the counters of a state."""
    return json.loads((path / _STATE_NAME).read_text(encoding="utf-8"))


def check_same_run(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise a CheckpointError when a run (`num_processes`, `options`) would not go on as the one that saved a state."""
    if state["num_processes"] != identity["num_processes"]:
        raise CheckpointError(
            f"the state was saved by {state['num_processes']} processes, this run has {identity['num_processes']}: "
            "batches and random states would differ; launch as many"
        )
    saved, options = state["options"], identity["options"]
    changed = [
        f"--{name} was {saved.get(name)!r}, is {options.get(name)!r}"
        for name in sorted({*saved, *options} - _FREE_OPTIONS)
        if saved.get(name) != options.get(name)
    ]
    if changed:
        raise CheckpointError(
            "this is not the run that saved the state: " + "; ".join(changed) + ". Resume with the same options, or "
            "start anew in another --output_dir"
        )


class StateKeeper:
    """Saves, rotates and loads the training states of one run.

    Args:
        accelerator: of the run, with model and optimizer prepared and the rest registered.
        output_dir: of the run.
        keep_last: states to keep.
    """

    def __init__(self, accelerator: Accelerator, output_dir: str | os.PathLike, keep_last: int) -> None:
        self.accelerator = accelerator
        self.folder = Path(output_dir) / STATE_FOLDER
        self.keep_last = keep_last
        if not is_sharded(accelerator):  # else weights are saved in a way of their own
            accelerator.register_save_state_pre_hook(_keep_changing_weights)
            accelerator.register_load_state_pre_hook(_load_changing_weights)

    def newest(self) -> Path | None:
        """Return the newest state of the run, if there is one."""
        states = find_states(self.folder.parent)
        return states[-1] if states else None

    def check_room(self, model: nn.Module) -> None:
        """Raise an OSError when the disk has no room for one state, or the folder cannot be written to."""
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(f"*{_TEMPORARY}"):  # of a run that was killed
                shutil.rmtree(leftover)
            needed = _COPIES_IN_A_STATE * sum(tensor.nbytes for _, tensor in changing_weights(model))
            free = shutil.disk_usage(self.folder).free
            if needed > free:
                raise OSError(
                    f"a training state takes {needed / 1e9:.1f} GB, {self.folder} has {free / 1e9:.1f} GB free: make "
                    "room, or choose another --output_dir"
                )

    def save(self, step: int, counters: Mapping[str, Any]) -> Path | None:
        """Write a state, then remove the oldest ones, and those of later steps.

        Returns:
            Its folder; None, with a warning, when writing failed in any process: what was there is still there.
        """
        final = self.folder / f"step_{step:08d}"
        temporary = final.with_suffix(_TEMPORARY)
        error: Exception | None = None
        try:
            self.accelerator.save_state(str(temporary))
        except _WRITE_ERRORS as caught:
            error = caught
        failed = self.accelerator.reduce(torch.tensor(float(error is not None), device=self.accelerator.device))
        if self.accelerator.is_main_process and not failed:
            try:
                (temporary / _STATE_NAME).write_text(json.dumps({"step": step, **counters}), encoding="utf-8")
                _publish(temporary, final)
                states = find_states(self.folder.parent)
                # Later ones are of a course that was given up, when the run went back to an earlier state.
                earlier, later = states[: states.index(final) + 1], states[states.index(final) + 1 :]
                for old in earlier[: -self.keep_last] + later:
                    shutil.rmtree(old)
            except OSError as caught:
                error = caught
        if self.accelerator.is_main_process and (failed or error is not None):
            shutil.rmtree(temporary, ignore_errors=True)
            warnings.warn(
                f"the training state of step {step} could not be saved ({error or 'in another process'}); the last "
                f"good one is {self.newest() or 'none'}; training goes on",
                stacklevel=2,
            )
        self.accelerator.wait_for_everyone()
        return final if final.is_dir() else None

    def load(self, path: Path) -> dict[str, Any]:
        """Put model, optimizer, scheduler and random states back; return the counters."""
        self.accelerator.load_state(str(path))
        return read_state(path)


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the changing weights to a safetensors file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(_TEMPORARY)
    save_file({name: tensor.detach().cpu().clone() for name, tensor in changing_weights(model)}, temporary)
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote.

    Raises:
        CheckpointError: when the file holds other weights than the model has.
    """
    weights = load_file(path)
    expected = {name for name, _ in changing_weights(model)}
    if weights.keys() != expected:
        differing = ", ".join(sorted(weights.keys() ^ expected)[:5])
        raise CheckpointError(f"{path} does not fit the model, which differs in {differing}")
    model.load_state_dict(weights, strict=False)


def changing_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what training changes: trainable parameters and saved buffers, a shared tensor once.

    A frozen tower, or the base of an adapter, is where it was loaded from; states without it are small.
    """
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    frozen = {name for name, parameter in model.named_parameters(remove_duplicate=False)} - trainable
    for name, tensor in model.state_dict().items():
        if name not in frozen:
            yield name, tensor


def _keep_changing_weights(models: list[nn.Module], weights: list[dict[str, Tensor]], folder: str) -> None:
    """Accelerate's hook before saving: of each state dict, keep what training changes."""
    weights[:] = [dict(changing_weights(extract_model_from_parallel(model))) for model in models]


def _load_changing_weights(models: list[nn.Module], folder: str) -> None:
    """Accelerate's hook before loading: load the weights ourselves, then leave it none to load."""
    for model in models:
        load_weights(extract_model_from_parallel(model), Path(folder) / _WEIGHTS_NAME)
    models.clear()


def _publish(temporary: Path, final: Path) -> None:
    """Flush a folder to the disk, then give it its name."""
    for path in temporary.rglob("*"):
        _flush(path)
    _flush(temporary)
    if final.exists():  # the same step, saved before a resumption
        shutil.rmtree(final)
    temporary.rename(final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Training states: written whole or not at all, so that a run killed at any moment goes on from the newest one.

A state is a folder `checkpoints/step_00001000` of the output folder:

- Accelerate's files: `model.safetensors` (weights that change), `optimizer.bin`, `random_states_<process>.pkl`, under
  fp16 `scaler.pt`. Those that are pickles are loaded as tensors and numbers only (`weights_only`). Under FSDP and
  DeepSpeed, model and optimizer are in folders of their formats, which those libraries load as they do.
- `schedule.json`, the scheduler's state; `average.safetensors`, that of `--ema_decay`; `best.safetensors`, the weights
  that `--best_metric` had chosen by then.
- `state.json`, our own counters.
- `SHA256SUMS`, a checksum of every other file, which `sha256sum --check` reads too.

It is written under a temporary name, flushed to the disk and renamed, and checked before it is loaded. States of older
versions have pickles named `custom_checkpoint_<n>.pkl` in place of the second group, and no checksums.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from accelerate.utils import load as load_numbers
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ..commands import format_size
from ..features.processes import on_main_process
from .arguments import options_without_effect
from .averaging import WeightAverage
from .sharding import is_sharded

STATE_FOLDER = "checkpoints"
BEST_NAME = "best.safetensors"
SUMS_NAME = "SHA256SUMS"
_STATE_NAME = "state.json"
_WEIGHTS_NAME = "model.safetensors"
_SCHEDULE_NAME = "schedule.json"
_AVERAGE_NAME = "average.safetensors"
_RANDOM_NAME = "random_states_{}.pkl"
_OLD_PART_NAME = "custom_checkpoint_{}.pkl"
_TEMPORARY = ".tmp"
# Endings of files that are loaded from a state: such a file without a checksum does not belong to the state.
_LOADED_SUFFIXES = frozenset((".bin", ".distcp", ".json", ".pkl", ".pt", ".safetensors"))
_BLOCK_BYTES = 2**20
# Number of copies of the weights in a state: the weights and AdamW's two moments.
_COPIES_IN_A_STATE = 3
# Errors with which Python, torch and safetensors report a full disk.
_WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
# Errors with which they report a file that is missing, cut or changed, or does not hold numbers only.
_READ_ERRORS = (
    *(OSError, RuntimeError, SafetensorError, ValueError, KeyError, TypeError, AttributeError),
    *(EOFError, IndexError, pickle.UnpicklingError, zipfile.BadZipFile),
)
# Options that may differ between a run and its resumption, because they do not change the weights.
_FREE_OPTIONS = frozenset(
    (
        *("output_dir", "num_workers", "report_to", "checkpoint_steps", "keep_last", "resume", "max_bad_steps"),
        *("dry_run", "eval_steps", "tracker_project"),
    )
)
# Options that states of earlier releases do not name, with the values that describe what those releases did.
_BEFORE: dict[str, Any] = {
    "features": "off",
    "feature_views": 1,
    "feature_dtype": None,
    "train_modality": False,
    "lora_dropout": 0.0,
    "lora_merge": False,
    "sentence_objective": "simcse",
    "bidirectional_attention": False,
    "captions_per_item": 1,
    "negative_text_weight": 0.0,
    "projection_dropout": 0.0,
    "projection_num_layers": 2,
    "frozen_dtype": "float32",
}
# Options that states of earlier releases do not name, where what those did depended on the data: without
# `require_negatives`, rows of NLI without a hard negative were left out and those of triplets were not. Any value goes
# on from such a state, and the number of rows tells whether it is the right one.
_OPEN_BEFORE = frozenset(("require_negatives",))
# Rates that may be null in earlier states, where `learning_rate` applied.
_RATES = ("text_learning_rate", "modality_learning_rate")
# Earlier defaults of options that have none now; a run with them is the same run.
_FORMER_DEFAULTS = {"max_seconds": 10.0}


class CheckpointError(RuntimeError):
    """A training state cannot be used, or there is none where one was asked for."""


def find_states(output_dir: str | os.PathLike) -> list[Path]:
    """Return the complete training states of an output folder, the oldest first."""
    return sorted(path for path in (Path(output_dir) / STATE_FOLDER).glob("step_*") if path.suffix != _TEMPORARY)


def find_resumed(output_dir: str | os.PathLike, resume: str | None) -> Path | None:
    """Return the state that `--resume` names; None when it is not given, or is `auto` and there is none yet.

    `auto` passes over states that are damaged, with a warning, for the newest whole one.

    Raises:
        CheckpointError: If the named folder is not a training state or is damaged, or all states are damaged.
    """
    if resume is None:
        return None
    if resume == "auto":
        return _newest_whole(find_states(output_dir))
    path = Path(resume)
    if not (path / _STATE_NAME).is_file():
        raise CheckpointError(f"--resume {resume} is no training state: pass a folder {STATE_FOLDER}/step_..., or auto")
    check_whole(path)
    return path


def output_folder(state: Path) -> Path:
    """Return the output folder of the run that saved a training state."""
    return state.resolve().parents[1]


def goes_on(output_dir: str | os.PathLike, resume: str | None) -> bool:
    """Tell whether `--resume` names a state; `find_resumed` also checks it."""
    return resume is not None and (resume != "auto" or bool(find_states(output_dir)))


def _newest_whole(states: list[Path]) -> Path | None:
    damages = []
    for path in reversed(states):
        try:
            check_whole(path)
        except CheckpointError as error:
            damages.append(str(error))
            continue
        for damage in damages:
            warnings.warn(f"{damage}. The run goes on from {path.name}", stacklevel=3)
        return path
    if damages:
        raise CheckpointError(
            f"no training state is whole: {'; '.join(damages)}. Bring the files back, or remove {states[0].parent} to "
            "start anew"
        )
    return None


def check_whole(path: Path) -> None:
    """Raise a CheckpointError when something in a state is missing, cut, changed or foreign."""
    try:
        state = read_state(path)
        if (path / SUMS_NAME).exists():
            _check_sums(path)
        else:
            _check_old_state(path, state)
    except CheckpointError as error:
        raise CheckpointError(f"the training state {path} is damaged: {error}") from error
    except _READ_ERRORS as error:
        raise CheckpointError(f"the training state {path} is damaged: {type(error).__name__}: {error}") from error


def _check_sums(path: Path) -> None:
    """Compare the files of a state with its checksums."""
    sums = _read_sums(path / SUMS_NAME)
    found = {name for name, file in _files(path).items() if file.suffix in _LOADED_SUFFIXES}
    for name in sorted(found - sums.keys()):
        raise CheckpointError(f"{name} was not written with it")
    for name, expected in sums.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{name} is missing")
        if checksum(path / name) != expected:
            raise CheckpointError(f"{name} is not as it was written")


def _read_sums(path: Path) -> dict[str, str]:
    """Return the checksums by name; the file is as `sha256sum` writes it."""
    lines = path.read_bytes().decode("utf-8").split("\n")
    matches = [re.fullmatch("([0-9a-f]{64})  (.+)", line) for line in lines[:-1]]
    sums: dict[str, str] = {match[2]: match[1] for match in matches if match is not None}
    if lines[-1] or len(sums) < len(matches) or _STATE_NAME not in sums:
        raise CheckpointError(f"{path.name} is cut or changed")
    return sums


def _write_sums(path: Path) -> None:
    lines = [f"{checksum(file)}  {name}\n" for name, file in sorted(_files(path).items())]
    (path / SUMS_NAME).write_text("".join(lines), encoding="utf-8")


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _files(path: Path) -> dict[str, Path]:
    """Return the files of a state but for its checksums, by their names within it."""
    found = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    found.pop(SUMS_NAME, None)
    return found


def _check_old_state(path: Path, state: Mapping[str, Any]) -> None:
    """Check what can be checked of a state without checksums: that its files are there and can be read."""
    options, processes = state["options"], range(state["num_processes"])
    num_parts = 1 if options.get("ema_decay") is None else 2  # the scheduler and the average
    numbers = [_RANDOM_NAME.format(index) for index in processes]
    for name in numbers + [_OLD_PART_NAME.format(index) for index in range(num_parts)]:
        load_numbers(path / name, map_location="cpu")
    if (path / _WEIGHTS_NAME).exists():  # otherwise the optimizer is a sharded one
        with safe_open(path / _WEIGHTS_NAME, framework="pt") as weights:
            list(weights.keys())
        with zipfile.ZipFile(path / "optimizer.bin") as archive:
            if (changed := archive.testzip()) is not None:
                raise CheckpointError(f"optimizer.bin is not as it was written, in {changed}")
    elif not any((path / name).is_dir() for name in ("pytorch_model_fsdp_0", "pytorch_model")):
        raise CheckpointError(f"{_WEIGHTS_NAME} is missing")


def read_state(path: Path) -> dict[str, Any]:
    """Return the counters of a state."""
    return json.loads((path / _STATE_NAME).read_text(encoding="utf-8"))


def check_same_run(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise a CheckpointError when a run (`num_processes`, `options`) would not go on as the one that saved a state.

    Options that an earlier release did not have count with the value that describes what it did, and those that it
    took without effect do not count.
    """
    if state["num_processes"] != identity["num_processes"]:
        raise CheckpointError(
            f"the state was saved by {state['num_processes']} processes, this run has {identity['num_processes']}: "
            "batches and random states would differ; launch as many"
        )
    options = _completed(identity["options"], identity["options"])
    saved = _completed(state["options"], options)
    free = _FREE_OPTIONS | (_OPEN_BEFORE - state["options"].keys()) | options_without_effect(options).keys()
    changed = [
        f"--{name} was {saved.get(name)!r}, is {options.get(name)!r}"
        for name in sorted({*saved, *options} - free)
        if _option(saved, name) != _option(options, name)
    ]
    if changed:
        raise CheckpointError(
            "this is not the run that saved the state: " + "; ".join(changed) + ". Resume with the same options, or "
            "start anew in another --output_dir"
        )


def _completed(options: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return options with those of `names` that they lack as earlier releases had them, and without open rates."""
    before = {name: value for name, value in _BEFORE.items() if name in names and name not in options}
    rates = {name: options.get("learning_rate") for name in _RATES if name in options and options[name] is None}
    return {**options, **before, **rates}


def _option(options: Mapping[str, Any], name: str) -> Any:
    value = options.get(name)
    return _FORMER_DEFAULTS.get(name) if value is None else value


class CheckpointManager:
    """Saves, rotates and loads the training states of one run.

    Args:
        accelerator: Accelerator of the run, with model and optimizer prepared.
        output_dir: Output folder of the run.
        keep_last: Number of states to keep.
        scheduler: Scheduler of the optimizer.
        average: Moving average of the weights.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output_dir: str | os.PathLike,
        keep_last: int,
        scheduler: LRScheduler | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.folder = Path(output_dir) / STATE_FOLDER
        self.keep_last = keep_last
        self.scheduler = scheduler
        self.average = average
        if not is_sharded(accelerator):  # sharded weights are saved in another way
            accelerator.register_save_state_pre_hook(_keep_changing_weights)
            accelerator.register_load_state_pre_hook(_load_changing_weights)

    def newest(self) -> Path | None:
        """Return the newest state of the run, if there is one."""
        states = find_states(self.folder.parent)
        return states[-1] if states else None

    def check_room(self, model: nn.Module) -> None:
        """Raise an OSError when the disk has no room for one state, or the folder cannot be written to.

        Raises:
            OtherProcessError: In the other processes, if the main process raises.
        """
        on_main_process(self.accelerator, lambda: self._check_room(model))

    def _check_room(self, model: nn.Module) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in list(self.folder.glob(f"*{_TEMPORARY}")):  # the folder is that of a run that was killed
            _remove(leftover)
        needed = _COPIES_IN_A_STATE * sum(tensor.nbytes for _, tensor in changing_weights(model))
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"a training state takes {format_size(needed / 1e9)}, {self.folder} has "
                f"{format_size(free / 1e9)} free: make room, or choose another --output_dir"
            )

    def save(self, step: int, counters: Mapping[str, Any], best: Path | None = None) -> Path | None:
        """Write a state, then remove the oldest ones, and those of later steps.

        Args:
            step: Step of the optimizer.
            counters: Counters that `load` returns.
            best: File of the best weights so far, of which the state gets a copy.

        Returns:
            Folder of the state; None, with a warning, if writing failed in any process. Earlier states are then kept.
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
                self._write_own_files(temporary, {"step": step, **counters}, best)
                _publish(temporary, final)
                states = find_states(self.folder.parent)
                # If the run was resumed from an earlier state, states of later steps belong to an abandoned run.
                earlier, later = states[: states.index(final) + 1], states[states.index(final) + 1 :]
                for old in earlier[: -self.keep_last] + later:
                    _remove(old)
            except _WRITE_ERRORS as caught:
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

    def _write_own_files(self, folder: Path, counters: Mapping[str, Any], best: Path | None) -> None:
        """Write what Accelerate does not, and the checksums of everything."""
        if self.scheduler is not None:
            (folder / _SCHEDULE_NAME).write_text(json.dumps(self.scheduler.state_dict()), encoding="utf-8")
        if self.average is not None:
            tensors, metadata = self.average.to_tensors()
            save_file(tensors, folder / _AVERAGE_NAME, metadata)
        if best is not None:
            shutil.copyfile(best, folder / BEST_NAME)
        (folder / _STATE_NAME).write_text(json.dumps(counters), encoding="utf-8")
        _write_sums(folder)

    def load(self, path: Path) -> dict[str, Any]:
        """Put model, optimizer, scheduler, average and random states back; return the counters.

        Raises:
            CheckpointError: If the state does not fit the run, or cannot be read.
        """
        try:
            if (path / SUMS_NAME).exists():
                self.accelerator.load_state(str(path))
                self._load_own_files(path)
            else:
                self._load_old_state(path)
            _load_random_state(path / _RANDOM_NAME.format(self.accelerator.process_index), self.accelerator.device)
        except _READ_ERRORS as error:
            raise CheckpointError(f"the training state {path} cannot be loaded: {error}") from error
        return read_state(path)

    def _load_own_files(self, path: Path) -> None:
        if self.scheduler is not None:
            self.scheduler.load_state_dict(json.loads((path / _SCHEDULE_NAME).read_text(encoding="utf-8")))
        if self.average is not None:
            with safe_open(path / _AVERAGE_NAME, framework="pt") as file:
                self.average.load_tensors(load_file(path / _AVERAGE_NAME), file.metadata())

    def _load_old_state(self, path: Path) -> None:
        """Load a state whose scheduler and average are pickles."""
        parts = [part for part in (self.scheduler, self.average) if part is not None]
        for index in range(len(parts)):
            # this raises if a file holds anything but numbers
            load_numbers(path / _OLD_PART_NAME.format(index), map_location="cpu")
        # They are read before, because Accelerate itself would run the code in them.
        self.accelerator.register_for_checkpointing(*parts)
        try:
            self.accelerator.load_state(str(path))
        finally:
            self.accelerator._custom_objects.clear()


def _load_random_state(path: Path, device: torch.device) -> None:
    """Set the random states of this process and its GPU; Accelerate goes on without a word when it cannot.

    A state holds those of all GPUs that its process saw; the one that this process uses is what dropout draws from. One
    of a machine without it can be resumed, and a warning says that dropout will differ.
    """
    states = load_numbers(path)
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        of_gpus = states.get("torch_cuda_manual_seed", [])
        if number < len(of_gpus):
            torch.cuda.set_rng_state(of_gpus[number], device)
        else:
            warnings.warn(
                f"the training state {path.parent} was saved by a process without GPU {number}: the run goes on, but "
                "its dropout is not that of a run that was not interrupted",
                stacklevel=2,
            )


def save_weights(model: nn.Module, path: Path) -> str:
    """Write the changing weights to a safetensors file, whole or not at all; return its checksum."""
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in changing_weights(model)
    }
    return _write_whole(path, lambda temporary: save_file(weights, temporary))


def copy_file(source: Path, path: Path) -> str:
    """Copy a file, whole or not at all; return its checksum."""
    return _write_whole(path, lambda temporary: shutil.copyfile(source, temporary))


def _write_whole(path: Path, write: Callable[[Path], Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(_TEMPORARY)
    _remove(temporary)  # a run that was killed at this point left the file
    write(temporary)
    _flush(temporary)
    temporary.replace(path)
    _flush(path.parent)
    return checksum(path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load what `save_weights` wrote.

    Raises:
        CheckpointError: If the file does not hold exactly the weights of the model.
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
    _remove(final)  # the same step was saved before a resumption
    temporary.rename(final)
    _flush(final.parent)


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there; of a state that is removed half, nothing keeps its name."""
    if path.is_dir() and not path.is_symlink():
        gone = path.with_suffix(f".gone{_TEMPORARY}")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

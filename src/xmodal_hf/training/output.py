"""Files that a run writes into its output folder, beside the logs of the loop."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shlex
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from .. import __version__
from ..data.bad_items import BAD_ITEMS_NAME, count_bad_items, sort_bad_items
from ..evaluation.plots import loss_curves
from ..features.processes import on_main_process
from ..models.hub_files import card_title
from ..models.sentence_transformers_files import write_prefix
from ..models.text_format import text_prefix
from ..options import local_models, local_sources, save_recipe
from ..shipped import IS_CHECKOUT
from .adapters import save_adapter
from .arguments import LoraArguments, TrainingArguments
from .checkpoint import check_same_run, find_resumed, find_states, read_state
from .faults import BadStepsError
from .log import LOG_NAME, TrainingResult
from .sharding import whole_weights
from .towers import restore_frozen_weights

RECIPE_NAME = "recipe.yaml"
RUN_NAME = "run.json"
LOCK_NAME = "run.lock"
# Open lock files of this process; closing one of them anywhere in the process would release the lock.
_LOCKS: dict[Path, TextIO] = {}
_PACKAGES = ("torch", "torchaudio", "transformers", "accelerate", "datasets", "peft", "tokenizers")


def options_of(*arguments: Any) -> dict[str, Any]:
    """Return all options by name."""
    return {name: value for part in arguments for name, value in dataclasses.asdict(part).items()}


def start_output(accelerator: Accelerator, training: TrainingArguments, *arguments: Any) -> Path | None:
    """Make the output folder, write the resolved recipe and the circumstances of the run, start the tracker.

    The folder is locked until `finish_output` or the end of the process, whichever comes first.

    Returns:
        Training state to go on from, if `--resume` finds one.

    Raises:
        CheckpointError: If `--resume` names no training state, a damaged one, or one of another run.
        ValueError: If the folder cannot be written to, another run is using it, or it holds states of a run that this
            one does not go on with.
        OtherProcessError: In the other processes, if the main process raises one of these.
    """
    resume_from = on_main_process(accelerator, lambda: _start_folder(accelerator, training, *arguments))
    if training.report_to != "none":
        # Trackers take plain values only; TensorBoard hides the steps that a resumption repeats.
        options = {name: str(value) for name, value in options_of(training, *arguments).items()}
        repeated = {} if resume_from is None else {"purge_step": read_state(resume_from)["step"] + 1}
        run = Path(training.output_dir).resolve().name
        names = {"wandb": {"name": run}, "trackio": {"name": run}, "mlflow": {"run_name": run}}
        # The project of TensorBoard is a folder below the output folder.
        project = "tracker" if training.report_to == "tensorboard" else training.tracker_project
        accelerator.init_trackers(project, options, {"tensorboard": repeated, **names})
    return resume_from


def _start_folder(accelerator: Accelerator, training: TrainingArguments, *arguments: Any) -> Path | None:
    """Do the part of `start_output` for the main process."""
    folder = Path(training.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _lock(folder)
        resume_from = find_resumed(folder, training.resume)
        if resume_from is not None:
            identity = {"num_processes": accelerator.num_processes, "options": options_of(training, *arguments)}
            check_same_run(read_state(resume_from), identity)  # before any file of that run is overwritten
        elif training.resume is None and (states := find_states(folder)):
            raise ValueError(
                f"{states[-1]} is a training state of an earlier run: pass --resume auto to go on with it, or remove "
                f"{states[-1].parent} or choose another --output_dir to start anew"
            )
        save_recipe(folder / RECIPE_NAME, training, *arguments)
        # Later, or on another machine, a name such as data/pairs may be a folder or a data set of the Hub.
        titles = {name: card_title(path) for name, path in local_models(*arguments).items()}
        local = {
            "local_sources": local_sources(training, *arguments),
            "titles": {name: title for name, title in titles.items() if title is not None},
        }
        _write_json(folder / RUN_NAME, _circumstances(accelerator) | local)
    except OSError as error:
        raise ValueError(f"cannot write to --output_dir {folder}: {error}") from error
    return resume_from


def _lock(folder: Path) -> None:
    """Take the lock of an output folder, a file that names this process.

    It is one of POSIX's record locks: the kernel releases it when the process is gone, and loader workers, which are
    forked from it, do not share it.

    Raises:
        ValueError: If another process has the lock.
    """
    path = (folder / LOCK_NAME).resolve()
    while path not in _LOCKS:  # otherwise an earlier run of this process failed
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                warnings.warn(f"{folder} cannot be locked against a second run ({error})", stacklevel=2)
                return
            raise ValueError(
                f"process {path.read_text(encoding='utf-8').strip()} is running in {folder}: wait for it, stop it, or "
                "choose another --output_dir"
            ) from error
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.close()  # the owner has just finished and removed the file
            continue
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        _LOCKS[path] = file


def _unlock(folder: Path) -> None:
    """Remove the lock, if this process has it."""
    path = (folder / LOCK_NAME).resolve()
    if path in _LOCKS:
        path.unlink(missing_ok=True)
        _LOCKS.pop(path).close()


def finish_output(
    accelerator: Accelerator,
    training: TrainingArguments,
    result: TrainingResult,
    model: nn.Module,
    processor: PreTrainedTokenizerBase | ProcessorMixin,
    lora: LoraArguments | None = None,
    base: str | None = None,
) -> None:
    """Save the model, its tokenizer or processor, the loss curve and a summary of the run.

    Args:
        accelerator: Accelerator of the run.
        training: Options of the loop.
        result: Result of the loop.
        model: Model as it was trained; sharded weights are gathered.
        processor: Processor of the model.
        lora: Options of the adapter, if the model is one: whether to release it merged.
        base: Base model that the adapter belongs to.

    Raises:
        BadStepsError: If no step could be taken, so that the model is as it was before.
        OSError: In the main process, if the folder cannot be written to.
        OtherProcessError: In the other processes, if the main process raises, so that they do not wait for it in vain.
    """
    if result.steps and result.bad_steps == result.steps:
        raise BadStepsError(
            f"none of the {result.steps} steps had a finite loss and gradient: nothing was learned, and no model is "
            f"saved; {Path(training.output_dir) / LOG_NAME} has the ids of the batches. Look for values that are not "
            "finite in the data and in the weights, or drop --mixed_precision"
        )
    accelerator.wait_for_everyone()
    restore_frozen_weights(model)
    weights = whole_weights(accelerator, model)
    if isinstance(model, PeftModel) and lora is not None and lora.lora_merge:
        model = model.merge_and_unload()
    folder = Path(training.output_dir)
    facts = _facts_of(model)

    def finish() -> None:
        _save_model(folder, model, processor, weights, base)
        _summarise(folder, result, facts)
        _unlock(folder)

    on_main_process(accelerator, finish)
    accelerator.end_training()


def _save_model(
    folder: Path,
    model: nn.Module,
    processor: PreTrainedTokenizerBase | ProcessorMixin,
    weights: dict[str, Tensor] | None,
    base: str | None,
) -> None:
    """Write a model or an adapter, with its tokenizer or processor."""
    if isinstance(model, PeftModel):
        save_adapter(model, folder, base)
    else:
        model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
    if isinstance(processor, PreTrainedTokenizerBase):
        _forget_processor(processor)
    processor.save_pretrained(folder)
    write_prefix(folder, text_prefix(getattr(processor, "tokenizer", processor)))


def _facts_of(model: nn.Module) -> dict[str, Any]:
    """Return what a run did to the model that its options do not say."""
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    tower: Any = getattr(whole, "text_model", None)
    old = getattr(tower, "stretched_from", None)
    return {} if old is None else {"stretched_positions": f"{old} to {tower.config.max_position_embeddings}"}


def _summarise(folder: Path, result: TrainingResult, facts: dict[str, Any]) -> None:
    """Write the loss curve, the list of bad items in order and the summary of a run, and print the latter in short."""
    loss_curves({folder.name: folder / LOG_NAME}).savefig(folder / "loss_curve.png")
    circumstances = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
    sort_bad_items(folder / BAD_ITEMS_NAME)
    skipped = dict(count_bad_items(folder / BAD_ITEMS_NAME))
    _write_json(folder / RUN_NAME, circumstances | dataclasses.asdict(result) | {"skipped_items": skipped} | facts)
    rate = result.items / result.seconds
    print(f"{result.steps} steps, {rate:.0f} items/s, last loss {result.last_log['loss']:.3f}; saved in {folder}")
    if skipped:
        print(f"skipped items, listed in {folder / BAD_ITEMS_NAME}: {skipped}")


def _forget_processor(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make a tokenizer of a dual encoder independent: readers would look for the processor that its file names."""
    tokenizer._processor_class = None
    for name in ("processor_class", "auto_map"):
        tokenizer.init_kwargs.pop(name, None)


def _circumstances(accelerator: Accelerator) -> dict[str, Any]:
    """Return the circumstances of a run: command, code, packages, machine."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, shlex.join(sys.argv[1:])]),
        "git_commit": _git_commit(),
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "versions": {"xmodal_hf": __version__} | {name: version(name) for name in _PACKAGES},
    }


def _git_commit() -> str | None:
    """Return the commit of this package's checkout, with `-dirty` for uncommitted changes; None when installed."""
    if not IS_CHECKOUT:  # git would find a repository of the user around the environment
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match", ""]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

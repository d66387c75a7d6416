"""What a run leaves in its output folder, beside the logs that the loop writes."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..data.bad_items import BAD_ITEMS_NAME, count_bad_items, sort_bad_items
from ..evaluation.plots import loss_curves
from .adapters import save_adapter
from .arguments import LoraArguments, TrainingArguments, save_recipe
from .checkpoint import check_same_run, find_resumed, find_states, read_state
from .loop import LOG_NAME, TrainingResult
from .sharding import whole_weights

RECIPE_NAME = "recipe.yaml"
RUN_NAME = "run.json"
_PACKAGES = ("xmodal_hf", "torch", "torchaudio", "transformers", "accelerate", "datasets", "peft", "tokenizers")


def options_of(*arguments: Any) -> dict[str, Any]:
    """Return all options by name."""
    return {name: value for part in arguments for name, value in dataclasses.asdict(part).items()}


def start_output(accelerator: Accelerator, training: TrainingArguments, *arguments: Any) -> Path | None:
    """Make the output folder, write the resolved recipe and the circumstances of the run, start the tracker.

    Returns:
        The training state to go on from, where `--resume` finds one.

    Raises:
        CheckpointError: `--resume` names no training state, or one of another run.
        ValueError: the folder cannot be written to, or holds states of a run that this one does not go on with.
    """
    folder = Path(training.output_dir)
    resume_from = find_resumed(folder, training.resume)
    if resume_from is not None:
        identity = {"num_processes": accelerator.num_processes, "options": options_of(training, *arguments)}
        check_same_run(read_state(resume_from), identity)  # before anything of that run is overwritten
    elif training.resume is None and (states := find_states(folder)):
        raise ValueError(
            f"{states[-1]} is a training state of an earlier run: pass --resume auto to go on with it, or remove "
            f"{states[-1].parent} or choose another --output_dir to start anew"
        )
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_recipe(folder / RECIPE_NAME, training, *arguments)
            _write_json(folder / RUN_NAME, _circumstances(accelerator))
        except OSError as error:
            raise ValueError(f"cannot write to --output_dir {folder}: {error}") from error
    if training.report_to != "none":
        # Trackers take plain values only; TensorBoard hides the steps that a resumption repeats.
        options = {name: str(value) for name, value in options_of(training, *arguments).items()}
        repeated = {} if resume_from is None else {"purge_step": read_state(resume_from)["step"] + 1}
        run = folder.resolve().name
        names = {"wandb": {"name": run}, "trackio": {"name": run}, "mlflow": {"run_name": run}}
        # TensorBoard's project is a folder below the output.
        project = "tracker" if training.report_to == "tensorboard" else training.tracker_project
        accelerator.init_trackers(project, options, {"tensorboard": repeated, **names})
    return resume_from


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
        accelerator: of the run.
        training: options of the loop.
        result: of the loop.
        model: as it was trained; sharded weights are gathered.
        processor: of the model.
        lora: where the model is an adapter: whether to release it merged.
        base: what the adapter belongs to.
    """
    accelerator.wait_for_everyone()
    weights = whole_weights(accelerator, model)
    folder = Path(training.output_dir)
    if isinstance(model, PeftModel) and lora is not None and lora.lora_merge:
        model = model.merge_and_unload()
    if accelerator.is_main_process:
        if isinstance(model, PeftModel):
            save_adapter(model, folder, base)
        else:
            model.save_pretrained(folder, state_dict=weights)  # type: ignore[operator]
        if isinstance(processor, PreTrainedTokenizerBase):
            _forget_processor(processor)
        processor.save_pretrained(folder)
        loss_curves({folder.name: folder / LOG_NAME}).savefig(folder / "loss_curve.png")
        circumstances = json.loads((folder / RUN_NAME).read_text(encoding="utf-8"))
        sort_bad_items(folder / BAD_ITEMS_NAME)
        skipped = dict(count_bad_items(folder / BAD_ITEMS_NAME))
        _write_json(folder / RUN_NAME, circumstances | dataclasses.asdict(result) | {"skipped_items": skipped})
        rate = result.items / result.seconds
        print(f"{result.steps} steps, {rate:.0f} items/s, last loss {result.last_log['loss']:.3f}; saved in {folder}")
        if skipped:
            print(f"skipped items, listed in {folder / BAD_ITEMS_NAME}: {skipped}")
    accelerator.end_training()


def _forget_processor(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer that came with a dual encoder stand alone: readers look for the processor that its file names."""
    tokenizer._processor_class = None
    for name in ("processor_class", "auto_map"):
        tokenizer.init_kwargs.pop(name, None)


def _circumstances(accelerator: Accelerator) -> dict[str, Any]:
    """Return what a run was done with: command, code, packages, machine."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": _git_commit(),
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        "mixed_precision": accelerator.mixed_precision,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _git_commit() -> str | None:
    """Return the commit of this package's checkout, with `-dirty` for uncommitted changes; None when installed."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match", ""]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

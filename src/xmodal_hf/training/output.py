"""What a run leaves in its output folder, beside the log that the loop writes."""

from __future__ import annotations

import dataclasses
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ..evaluation.plots import loss_curves
from .arguments import TrainingArguments, save_recipe
from .loop import LOG_NAME, TrainingResult

RECIPE_NAME = "recipe.yaml"
RUN_NAME = "run.json"
_PACKAGES = ("xmodal_hf", "torch", "transformers", "accelerate", "datasets", "tokenizers")


def start_output(accelerator: Accelerator, training: TrainingArguments, *arguments: Any) -> None:
    """Make the output folder, write the resolved recipe and start the tracker.

    Raises:
        ValueError: when the folder cannot be written to.
    """
    folder = Path(training.output_dir)
    if accelerator.is_main_process:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            save_recipe(folder / RECIPE_NAME, training, *arguments)
        except OSError as error:
            raise ValueError(f"cannot write to --output_dir {folder}: {error}") from error
    if training.report_to != "none":
        options = {name: value for part in (training, *arguments) for name, value in dataclasses.asdict(part).items()}
        # TensorBoard's table of options takes plain values only.
        accelerator.init_trackers("tracker", {name: str(value) for name, value in options.items()})


def finish_output(
    accelerator: Accelerator,
    training: TrainingArguments,
    result: TrainingResult,
    model: nn.Module,
    processor: PreTrainedTokenizerBase | ProcessorMixin,
) -> None:
    """Save the model, its tokenizer or processor, the loss curve and a summary of the run."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        folder = Path(training.output_dir)
        accelerator.unwrap_model(model).save_pretrained(folder)
        processor.save_pretrained(folder)
        loss_curves({folder.name: folder / LOG_NAME}).savefig(folder / "loss_curve.png")
        summary = {
            **dataclasses.asdict(result),
            "processes": accelerator.num_processes,
            "device": accelerator.device.type,
            "versions": {name: version(name) for name in _PACKAGES},
        }
        (folder / RUN_NAME).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        rate = result.items / result.seconds
        print(f"{result.steps} steps, {rate:.0f} items/s, last loss {result.last_log['loss']:.3f}; saved in {folder}")
    accelerator.end_training()

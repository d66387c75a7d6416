"""Measurements during training, and the choice of the weights that did best."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import PeftModel
from torch import nn

from ..data.mixing import undecoded
from ..data.sources import load_pairs
from ..data.splits import with_default_split
from ..data.tables import load_table
from ..evaluation.embed import as_embedder, embed_pairs
from ..evaluation.representation import evaluate_representation
from ..evaluation.retrieval import evaluate_retrieval
from ..evaluation.sts import evaluate_sts
from .arguments import PairArguments, TrainingArguments, ValidationArguments
from .averaging import WeightAverage
from .checkpoint import STATE_FOLDER, load_weights, save_weights
from .sharding import is_sharded

if TYPE_CHECKING:
    from .loop import StepLog, TrainingResult

_BEST_NAME = "best.safetensors"
_SHOWN = ("spearman", "recall@10", ".alignment", "uniformity")  # beside the progress bar; the log has them all
# Metrics of which less is better, by the end of their names (`modality_gap` and the like have no better side).
_LOWER_IS_BETTER = ("alignment", "uniformity", "median_rank")


class Validator(Protocol):
    """Measures a model."""

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return numbers by `<task>.<metric>`."""


class Validation:
    """Calls the validator when it is due, and keeps the weights that did best.

    The main process measures, the others wait.

    Args:
        accelerator: of the run.
        validator: what to call.
        arguments: when, and which number chooses the weights.
        output_dir: of the run.

    Raises:
        ValueError: under FSDP or DeepSpeed, where one process does not hold the whole model.
    """

    def __init__(
        self, accelerator: Accelerator, validator: Validator, arguments: ValidationArguments, output_dir: str
    ) -> None:
        if is_sharded(accelerator):
            raise ValueError("--eval_steps does not work with a sharded model: evaluate what it saved instead")
        self.accelerator = accelerator
        self.validator = validator
        self.arguments = arguments
        self.best_path = Path(output_dir) / STATE_FOLDER / _BEST_NAME

    def is_due(self, step: int, total_steps: int) -> bool:
        """Tell whether to measure after a step."""
        every = self.arguments.eval_steps
        return every is not None and (step % every == 0 or step == total_steps)

    def measure(
        self, model: nn.Module, average: WeightAverage | None, result: TrainingResult, log: StepLog
    ) -> dict[str, float] | None:
        """Measure the model, or the average of its weights; return the best measurement so far.

        Raises:
            ValueError: when `--best_metric` names no number that was measured.
        """
        best: list[Any] = [result.best]
        # Whatever a validator draws, training goes on as if it had not been called.
        devices = [] if self.accelerator.device.type == "cpu" else [self.accelerator.device]
        with (
            torch.random.fork_rng(devices, device_type=self.accelerator.device.type if devices else "cuda"),
            nullcontext() if average is None else average.applied(),
        ):
            if self.accelerator.is_main_process:
                values = self.validator(model)
                log.write_validation(result.steps, values)
                self.accelerator.print(f"\nstep {result.steps}: " + _in_words(values))
                best = [self._better(result, values)]
                if best[0] is not result.best:
                    save_weights(model, self.best_path)
        broadcast_object_list(best)
        return best[0]

    def load_best(self, model: nn.Module) -> None:
        """Give the model the weights that did best."""
        load_weights(model, self.best_path)

    def _better(self, result: TrainingResult, values: Mapping[str, float]) -> dict[str, float] | None:
        """Return the best measurement with a new one taken in; an equal one does not replace it."""
        name = self.arguments.best_metric
        if name is None:
            return None
        if name not in values:
            raise ValueError(f"--best_metric {name} was not measured; there are {', '.join(values)}")
        sign = -1 if name.endswith(_LOWER_IS_BETTER) else 1
        if result.best is not None and sign * values[name] <= sign * result.best["value"]:
            return result.best
        return {"step": result.steps, "value": values[name]}


class TaskValidator:
    """Measures semantic textual similarity, retrieval both ways and the geometry of held-out pairs.

    Args:
        processor: of the model; the tokenizer of a text model.
        sts: rows of `sentence1`, `sentence2`, `score`.
        pairs: in canonical columns.
        modality: of the pairs.
    """

    def __init__(
        self, processor: Any, *, sts: Dataset | None = None, pairs: Dataset | None = None, modality: str = "image"
    ) -> None:
        self.processor = processor
        self.sts = sts
        self.pairs = pairs
        self.modality = modality

    def __call__(self, model: nn.Module) -> dict[str, float]:
        # peft's wrapper is no PreTrainedModel; the model inside it has the adapter's layers.
        embedder = as_embedder(model.get_base_model() if isinstance(model, PeftModel) else model, self.processor)
        values: dict[str, float] = {}
        if self.sts is not None:
            results = evaluate_sts(embedder, {"spearman": self.sts}, num_resamples=0)
            values["sts_dev.spearman"] = results["spearman"]
        if self.pairs is not None:
            pairs = embed_pairs(embedder, self.pairs, self.modality)
            embeds = (pairs.modality_embeds, pairs.text_embeds, pairs.text_to_item)
            tasks = {
                "retrieval": evaluate_retrieval(*embeds, modality=self.modality, num_resamples=0),
                "representation": evaluate_representation(*embeds, modality=self.modality, num_resamples=0),
            }
            values |= {f"{task}.{name}": value for task, found in tasks.items() for name, value in found.items()}
        return values


def build_validation(
    accelerator: Accelerator,
    training: TrainingArguments,
    arguments: ValidationArguments,
    processor: Any,
    pairs: PairArguments | None = None,
) -> Validation | None:
    """Return the validation that the options ask for, its data loaded; None where they ask for none.

    Raises:
        ValueError: pairs for a text model, or data without the columns that are needed.
    """
    if arguments.eval_steps is None:
        return None
    sts = None if arguments.eval_sts is None else _load_sts(arguments.eval_sts)
    if sts is not None and not {"sentence1", "sentence2", "score"} <= set(sts.column_names):
        raise ValueError(f"--eval_sts needs the columns sentence1, sentence2, score, not {', '.join(sts.column_names)}")
    held_out = None
    if arguments.eval_dataset is not None or arguments.eval_split is not None:
        if pairs is None:
            raise ValueError("--eval_dataset and --eval_split are for training on pairs: pass --eval_sts")
        held_out = _load_held_out(arguments, pairs)
    modality = "image" if pairs is None else pairs.modality
    validator = TaskValidator(processor, sts=sts, pairs=held_out, modality=modality)
    return Validation(accelerator, validator, arguments, training.output_dir)


def _load_sts(source: str) -> Dataset:
    """The rows of a similarity set: of its split "validation", or all of a file without splits."""
    table, _ = with_default_split(lambda split: load_table(source, split=split), None, "validation", source)
    return table


def _load_held_out(arguments: ValidationArguments, pairs: PairArguments) -> Dataset:
    """The held-out pairs, undecoded.

    A data set that is trained on must have the split that is asked for: its rows without one are the training rows.
    Another one that has no splits is taken whole, unless `--eval_split` asks for one.
    """
    source = arguments.eval_dataset or pairs.dataset[0]

    def load(split: str) -> Dataset:
        return load_pairs(
            source,
            modality=pairs.modality,
            split=split,
            image_column=pairs.image_column,
            audio_column=pairs.audio_column,
            text_column=pairs.text_column,
            id_column=pairs.id_column,
            max_samples=arguments.eval_max_samples,
        )

    if source in pairs.dataset:
        return undecoded(load(arguments.eval_split or "validation"))
    table, _ = with_default_split(load, arguments.eval_split, "validation", source)
    return undecoded(table)


def _in_words(values: Mapping[str, float]) -> str:
    shown = {name.partition(".")[2]: value for name, value in values.items() if name.endswith(_SHOWN)}
    return ", ".join(f"{name} {value:.3f}" for name, value in shown.items())

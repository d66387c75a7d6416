"""Measurements during training, and the choice of the weights that did best."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from peft import PeftModel
from torch import nn

from ..data.bad_items import check_share
from ..data.formats import Modality
from ..data.mixing import undecoded
from ..data.modalities import modality_of_columns
from ..data.sources import load_pairs
from ..data.splits import with_default_split
from ..data.tables import load_table
from ..evaluation.embed import (
    DualEncoderEmbedder,
    Embedder,
    EmbedOptions,
    OnBadItem,
    PairEmbeddings,
    as_embedder,
    embed_pairs,
)
from ..evaluation.frozen import FrozenTowersEmbedder, unit_rows
from ..evaluation.representation import evaluate_representation
from ..evaluation.retrieval import evaluate_retrieval
from ..evaluation.sts import evaluate_sts
from ..evaluation.tasks import better_side
from ..features.processes import main_process_first, on_main_process
from .arguments import PairArguments, TrainingArguments, ValidationArguments
from .averaging import WeightAverage
from .checkpoint import (
    BEST_NAME,
    STATE_FOLDER,
    CheckpointError,
    checksum,
    copy_file,
    load_weights,
    save_weights,
)
from .features import FOLDER_NAME, frozen_sides
from .log import VALIDATION_LOG_NAME, StepLog, TrainingResult, inform
from .sharding import is_sharded
from .towers import has_halved_weights

# Name of the folder of the held-out items' vectors, in the folder of feature stores.
_VALIDATION_FOLDER = "validation"
# Number of pairs that are embedded before the first step, to see that it works.
_CHECKED_ITEMS = 8
# numbers beside the progress bar; the log has all numbers
_SHOWN = ("spearman", "recall@10", ".alignment", "uniformity")


class Validator(Protocol):
    """Measures a model."""

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return numbers by `<task>.<metric>`."""


class Validation:
    """Calls the validator when it is due, and keeps the weights that did best.

    The main process measures, the others wait.

    Args:
        accelerator: Accelerator of the run.
        validator: Validator that is called.
        arguments: Options: when to measure, and which number chooses the weights.
        output_dir: Output folder of the run.

    Raises:
        ValueError: If the run uses FSDP or DeepSpeed, where no process holds the whole model.
    """

    def __init__(
        self, accelerator: Accelerator, validator: Validator, arguments: ValidationArguments, output_dir: str
    ) -> None:
        if is_sharded(accelerator):
            raise ValueError("--eval_steps does not work with a sharded model: evaluate what it saved instead")
        self.accelerator = accelerator
        self.validator = validator
        self.arguments = arguments
        self.best_path = Path(output_dir) / STATE_FOLDER / BEST_NAME
        self._best_sum: str | None = None  # checksum of that file

    def is_due(self, step: int, total_steps: int) -> bool:
        """Tell whether to measure after a step."""
        every = self.arguments.eval_steps
        return every is not None and (step % every == 0 or step == total_steps)

    def check(self, model: nn.Module) -> None:
        """Let the validator check its data and the model before the first step, where it has a method `check`.

        Raises:
            ValueError: If the data cannot be measured on, or `--best_metric` names no number that will be measured.
        """
        check = getattr(self.validator, "check", None)
        if check is not None:
            on_main_process(self.accelerator, lambda: check(model, self.arguments.best_metric))

    def measure(
        self,
        model: nn.Module,
        average: WeightAverage | None,
        result: TrainingResult,
        log: StepLog,
        interruptible: Callable[[Callable[[], Any]], Any] = lambda function: function(),
    ) -> dict[str, float] | None:
        """Measure the model, or the average of its weights; return the best measurement so far.

        Args:
            model: Model on its device.
            average: Moving average of the model's weights.
            result: Result of the phase so far.
            log: Log to which the measurement is written.
            interruptible: Function that calls another one, which may be left at any moment
                (`StopSignals.interruptible`).

        Raises:
            ValueError: If `--best_metric` names no number that was measured.
            BaseException: In the main process, whatever the validator raises; in the other processes,
                `OtherProcessError`.
        """

        def measure() -> dict[str, float] | None:
            values = interruptible(lambda: self.validator(model))
            best = self._better(result, values)
            if best is not result.best:
                self._best_sum = save_weights(model, self.best_path)
            inform(self.accelerator, f"step {result.steps}: {_in_words(values)}")
            log.write_validation(result.steps, values)  # this is last, so that a step in the log has been measured
            return best

        # The random state is restored, so that training goes on as if the validator had not been called.
        devices = [] if self.accelerator.device.type == "cpu" else [self.accelerator.device]
        with (
            torch.random.fork_rng(devices, device_type=self.accelerator.device.type if devices else "cuda"),
            nullcontext() if average is None else average.applied(),
        ):
            return on_main_process(self.accelerator, measure)

    def restore_best(self, state: Path, best: Mapping[str, float] | None, log_bytes: Mapping[str, int]) -> None:
        """Bring back the best weights as they were when a training state was saved; those of later steps go.

        Args:
            state: Training state from which the run goes on.
            best: Best measurement up to that state.
            log_bytes: Lengths of the logs at that state, in bytes.

        Raises:
            CheckpointError: If the state is of an older version and its best weights have been overwritten since.
            OtherProcessError: In the other processes, if the main process has failed.
        """

        def restore() -> None:
            if best is None:
                self.best_path.unlink(missing_ok=True)
            elif (state / BEST_NAME).exists():
                self._best_sum = copy_file(state / BEST_NAME, self.best_path)
            else:
                self._check_old_best(state, best, log_bytes.get(VALIDATION_LOG_NAME, 0))

        on_main_process(self.accelerator, restore)

    def _check_old_best(self, state: Path, best: Mapping[str, float], logged: int) -> None:
        """Raise a CheckpointError unless the one file of best weights is as old as a state that has none itself."""
        log = self.best_path.parents[1] / VALIDATION_LOG_NAME
        later = log.read_bytes()[logged:].splitlines() if log.exists() else []
        improved = any(self._better_than(best, json.loads(line)) for line in later)
        is_there = self.best_path.exists()
        if not is_there or improved or self.best_path.stat().st_mtime > (state / "state.json").stat().st_mtime:
            raise CheckpointError(
                f"{state} was saved by an older version, which kept the best weights (of step {best['step']}) in one "
                f"file, and {self.best_path} {'is of a later step' if is_there else 'is missing'}: start anew in "
                "another --output_dir"
            )

    def load_best(self, model: nn.Module) -> None:
        """Give the model the weights that did best.

        Raises:
            CheckpointError: If the file has changed since it was written.
            OtherProcessError: In the other processes, if the main process has failed.
        """
        on_main_process(self.accelerator, self._check_best)
        load_weights(model, self.best_path)

    def _check_best(self) -> None:
        if self._best_sum not in (None, checksum(self.best_path)):
            raise CheckpointError(f"{self.best_path} is not as it was written: resume from a training state")

    def _better(self, result: TrainingResult, values: Mapping[str, float]) -> dict[str, float] | None:
        """Return the best measurement with a new one taken in; an equal one does not replace it, nor does NaN."""
        name = self.arguments.best_metric
        if name is None:
            return None
        if name not in values:
            raise ValueError(f"--best_metric {name} was not measured; the measured metrics are {', '.join(values)}")
        if math.isnan(values[name]) or (result.best is not None and not self._better_than(result.best, values)):
            return result.best
        return {"step": result.steps, "value": values[name]}

    def _better_than(self, best: Mapping[str, float], values: Mapping[str, float]) -> bool:
        name = self.arguments.best_metric or ""
        sign = -1 if better_side(name) == "lower" else 1
        return name in values and sign * values[name] > sign * best["value"]


class TaskValidator:
    """Measures semantic textual similarity, retrieval both ways and the geometry of held-out pairs.

    Args:
        processor: Processor of the model, or the tokenizer of a text model.
        sts: Rows of `sentence1`, `sentence2`, `score`.
        pairs: Pairs in canonical columns.
        modality: Modality of the pairs. If None, that of their columns.
        on_bad_item: Treatment of pairs that cannot be used, as in `embed_pairs`.
        max_bad_fraction: Largest share of the pairs that may be left out, as in training.
        keeps_frozen: Whether frozen towers run once per item: later validations read the pooled vectors, and decode no
            image or audio clip.
        folder: Folder in which those vectors are kept for other runs. None keeps them in memory only.
    """

    def __init__(
        self,
        processor: Any,
        *,
        sts: Dataset | None = None,
        pairs: Dataset | None = None,
        modality: Modality | None = None,
        on_bad_item: OnBadItem = "skip",
        max_bad_fraction: float = 0.01,
        keeps_frozen: bool = False,
        folder: Path | None = None,
    ) -> None:
        self.processor = processor
        self.keeps_frozen = keeps_frozen
        self.folder = folder
        self._frozen: FrozenTowersEmbedder | None = None
        # embeddings of the held-out pairs, and the pooled vectors (N, H) of the items
        self._embedded: tuple[PairEmbeddings, np.ndarray] | None = None
        self.sts = sts
        self.pairs = pairs
        if modality is None and pairs is not None:
            modality = modality_of_columns(pairs.column_names)
        self.modality: Any = modality  # None without pairs: then no number belongs to a modality
        self.on_bad_item = on_bad_item
        self.max_bad_fraction = max_bad_fraction

    def check(self, model: nn.Module, best_metric: str | None) -> None:
        """Check the data, embed some of them, and check the name of the number that chooses the weights.

        Raises:
            ValueError: If the data cannot be measured on, or `--best_metric` names no number that will be measured.
        """
        with _computing_with(model):
            self._check(model)
        if best_metric is not None:
            check_best_metric(best_metric, self.names())

    def _check(self, model: nn.Module) -> None:
        embedder = self._embedder(model)
        if self.sts is not None:
            # This makes all checks of the scores and sentences, with vectors that need no model.
            evaluate_sts(_made_up_embeds, {"spearman": self.sts}, num_resamples=0)
            embedder.encode_text([row["sentence1"] for row in islice(self.sts, _CHECKED_ITEMS)])
        if self.pairs is not None:
            if len(set(self.pairs["id"])) < 2:
                raise ValueError(f"a validation on pairs needs two items, the data have {len(self.pairs)} rows")
            rows = np.unique(np.linspace(0, len(self.pairs) - 1, _CHECKED_ITEMS).astype(int))
            embed_pairs(embedder, self.pairs.select(rows.tolist()), self.modality, on_bad_item=self.on_bad_item)

    def names(self) -> list[str]:
        """Return the names of the numbers that will be measured, which do not depend on the data but for captions."""
        names = [] if self.sts is None else ["sts_dev.spearman"]
        if self.pairs is not None:
            captions = [text if isinstance(text, list) else [text] for text in self.pairs["text"]]
            several = sum(map(len, captions)) > len(set(self.pairs["id"]))
            embeds = (np.eye(2), np.eye(2)[[0, 1, 1]], [0, 1, 1]) if several else (np.eye(2), np.eye(2), None)
            names += list(self._pair_values(embeds, [str(number) for number in range(len(embeds[1]))]))
        return names

    def __call__(self, model: nn.Module) -> dict[str, float]:
        with _computing_with(model):
            return self._measured(model)

    def _measured(self, model: nn.Module) -> dict[str, float]:
        embedder = self._embedder(model)
        values: dict[str, float] = {}
        if self.sts is not None:
            results = evaluate_sts(embedder, {"spearman": self.sts}, num_resamples=0)
            values["sts_dev.spearman"] = results["spearman"]
        if self.pairs is not None:
            pairs = self._embed_pairs(embedder, self.pairs)
            values |= self._pair_values((pairs.modality_embeds, pairs.text_embeds, pairs.text_to_item), pairs.texts)
            if pairs.bad_items:
                values["pairs.num_bad_items"] = len(pairs.bad_items)
        return values

    def _embed_pairs(self, embedder: Embedder, table: Any) -> PairEmbeddings:
        """Embed the held-out pairs; from the second time on, pooled vectors of a frozen tower are projected alone."""
        if self._embedded is not None and isinstance(embedder, FrozenTowersEmbedder):
            pairs, pooled = self._embedded
            items = unit_rows(embedder.project(self.modality, pooled))
            return dataclasses.replace(pairs, modality_embeds=items, text_embeds=embedder.encode_text(pairs.texts))
        pairs = embed_pairs(embedder, table, self.modality, on_bad_item=self.on_bad_item)
        check_share(pairs.bad_items, len(table), self.max_bad_fraction)
        if isinstance(embedder, FrozenTowersEmbedder) and embedder.latest is not None:
            self._embedded = pairs, embedder.latest
        return pairs

    def _embedder(self, model: nn.Module) -> Embedder:
        # peft's wrapper is not a PreTrainedModel; the model inside it has the adapter's layers.
        whole = model.get_base_model() if isinstance(model, PeftModel) else model
        options = EmbedOptions(dtype=torch.bfloat16) if has_halved_weights(model) else None
        embedder = as_embedder(whole, self.processor, options=options)
        if self._frozen is None and self.keeps_frozen and isinstance(embedder, DualEncoderEmbedder):
            sides = frozen_sides(model)
            self._frozen = FrozenTowersEmbedder(embedder, sides, self.folder) if sides else None
        return self._frozen or embedder

    def _pair_values(self, embeds: tuple[Any, Any, Any], texts: Sequence[str]) -> dict[str, float]:
        tasks = {
            "retrieval": evaluate_retrieval(*embeds, texts=texts, modality=self.modality, num_resamples=0),
            "representation": evaluate_representation(*embeds, modality=self.modality, num_resamples=0),
        }
        return {f"{task}.{name}": value for task, found in tasks.items() for name, value in found.items()}


def _computing_with(model: nn.Module) -> torch.autocast:
    """Context in which a model runs: frozen weights in bfloat16 need autocast."""
    device = next(model.parameters()).device
    return torch.autocast(device.type, torch.bfloat16, enabled=has_halved_weights(model))


def check_best_metric(name: str, measured: Sequence[str]) -> None:
    """Raise a ValueError for a number that is not measured, or of which neither more nor less is better."""
    usable = [other for other in measured if better_side(other) is not None]
    if name in usable:
        return
    if name in measured:
        raise ValueError(f"--best_metric {name}: neither more nor less of it is better; there are {', '.join(usable)}")
    nearest = difflib.get_close_matches(name, usable, n=1, cutoff=0)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise ValueError(f"--best_metric {name} will not be measured: {hint}There are {', '.join(usable)}")


def _made_up_embeds(texts: Sequence[str]) -> np.ndarray:
    """(n, 8) random rows in place of embeddings.

    Raises:
        ValueError: If an entry is not a text.
    """
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(f"--eval_sts has a sentence that is no text: {text!r}")
    return np.random.default_rng(0).standard_normal((len(texts), 8))


def build_validation(
    accelerator: Accelerator,
    training: TrainingArguments,
    arguments: ValidationArguments,
    processor: Any,
    pairs: PairArguments | None = None,
) -> Validation | None:
    """Return the validation that the options ask for, its data loaded; None where they ask for none.

    Raises:
        ValueError: If pairs are given for a text model, or the data lack a column that is needed.
    """
    if arguments.eval_steps is None:
        return None
    sts, held_out = main_process_first(accelerator, lambda: _load_data(arguments, pairs))
    policy: OnBadItem = "skip" if pairs is None else pairs.on_bad_item
    tolerated = {} if pairs is None else {"max_bad_fraction": pairs.max_bad_fraction}
    keeps = pairs is not None and pairs.features != "off"
    folder = Path(training.output_dir).absolute().parent / FOLDER_NAME / _VALIDATION_FOLDER
    validator = TaskValidator(
        processor,
        sts=sts,
        pairs=held_out,
        modality=None if pairs is None else pairs.modality,
        on_bad_item=policy,
        **tolerated,
        keeps_frozen=keeps,
        folder=folder if keeps and not training.dry_run else None,
    )
    return Validation(accelerator, validator, arguments, training.output_dir)


def _load_data(arguments: ValidationArguments, pairs: PairArguments | None) -> tuple[Dataset | None, Dataset | None]:
    sts = None if arguments.eval_sts is None else _load_sts(arguments.eval_sts)
    if sts is not None and not {"sentence1", "sentence2", "score"} <= set(sts.column_names):
        raise ValueError(f"--eval_sts needs the columns sentence1, sentence2, score, not {', '.join(sts.column_names)}")
    held_out = None
    if arguments.eval_dataset is not None or arguments.eval_split is not None:
        if pairs is None:
            raise ValueError("--eval_dataset and --eval_split are for training on pairs: pass --eval_sts")
        held_out = _load_held_out(arguments, pairs)
    return sts, held_out


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

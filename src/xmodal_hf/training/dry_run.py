"""Estimate of what a run needs, from one small step: for any recipe, also without data, weights or a network.

Operations and memory for activations grow with the number of items and are scaled from a few of them to the batch; the
loss itself, a product of two (N, D) matrices, is left out (0.1 % of the towers' operations at N = 4096, ViT-B/32).

Rule: only what cannot be reached is made up, which is a file or folder that is not there, a name that the Hub does not
have, and a Hub that does not answer. Data that are there are read as the run reads them: a column or split that they do
not have, a file that cannot be read and an item that cannot be used (by `--on_bad_item` and `--max_bad_fraction`) end a
dry run with the error that would end the run. Nothing is written into the output folder.
"""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from datasets.data_files import EmptyDatasetError
from datasets.exceptions import DataFilesNotFoundError
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from PIL import Image as PillowImage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoTokenizer

from ..commands import check_sources, format_size, one_line
from ..data.bad_items import BAD_ITEMS_NAME, count_bad_items
from ..data.builtin import BUILT_IN
from ..data.exclusion import evaluation_keys
from ..data.mixing import undecoded
from ..data.modalities import MODALITIES, cell_feature
from ..objectives import Batch
from .arguments import (
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    ValidationArguments,
)
from .batches import load_pair_table, load_sentence_table
from .defaults import resolve_pair_defaults, resolve_sentence_defaults
from .loop import TrainingStep
from .phases import Phase, build_pair_phase, build_sentence_phase
from .validation import build_validation

# Number of items of the measured step: enough that weights and launches do not dominate, and few enough for two cores.
DRY_RUN_ITEMS = 4
_MADE_UP_ROWS = 64
_CAPTION_WORDS = 10  # about the mean of CC3M's captions (Sharma et al. 2018, table 1: 10.3 tokens)
_SOUND_SECONDS, _SOUND_HZ = 10.0, 48_000  # AudioSet's clips, LAION-CLAP's rate
_IMAGE_PIXELS = 256
# Bytes per parameter of fp32 weights, gradients and AdamW's two moments.
_BYTES_TRAINED = 16
# Errors of readers for an address or a repository that does not answer. Local sources are looked for before.
_NOT_ANSWERED = (OSError, HTTPError, HfHubHTTPError)
_NO_DATA = (DataFilesNotFoundError, EmptyDatasetError)  # the repository exists
_MADE_UP_DATA = "the data cannot be reached"
# Architectures that the recipes name, for machines that cannot reach the Hub, from their published configs. Fields that
# are missing here have the defaults of transformers.
_KNOWN_CONFIGS: dict[str, dict[str, Any]] = {
    "google-bert/bert-base-uncased": {"model_type": "bert", "vocab_size": 30522, "max_position_embeddings": 512},
    "FacebookAI/roberta-base": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
    "sentence-transformers/all-MiniLM-L6-v2": {
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
    },
    "HuggingFaceTB/SmolLM2-135M": {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
    },
    "laion/clap-htsat-unfused": {"model_type": "clap_audio_model"},
    "MIT/ast-finetuned-audioset-10-10-0.4593": {"model_type": "audio-spectrogram-transformer"},
    "microsoft/resnet-50": {"model_type": "resnet"},
}
_CLIP_TEXT = {
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
}
_CLIP_IMAGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
# The same for the text and image towers of whole models.
_KNOWN_MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "openai/clip-vit-base-patch32": (_CLIP_TEXT, _CLIP_IMAGE | {"patch_size": 32}),
    "openai/clip-vit-base-patch16": (_CLIP_TEXT, _CLIP_IMAGE | {"patch_size": 16}),
}


@dataclasses.dataclass(frozen=True)
class DryRun:
    """Estimate of what a run needs. Seconds are those of this machine, at the measured step."""

    parameters: int
    trained_parameters: int
    total_steps: int
    items_per_step: int
    tokens_per_item: float
    flops_per_step: float
    state_gb: float
    activation_gb: float
    held_items: int
    items_per_second: float
    hours: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(
            [
                f"parameters        {self.parameters:,}, of which {self.trained_parameters:,} are trained",
                f"steps             {self.total_steps:,}, each with {self.items_per_step:,} items over all processes",
                f"operations        {_tflop(self.flops_per_step)} per step, "
                f"{_tflop(self.flops_per_step * self.total_steps)} in total",
                f"memory            {format_size(self.state_gb)} for weights, gradients and optimizer (trained weights "
                f"in fp32); {format_size(self.activation_gb)} for the activations of {self.held_items:,} items",
                f"rate              {self.items_per_second:,.1f} items/s, "
                f"{self.items_per_second * self.tokens_per_item:,.0f} tokens/s on this machine",
                f"time              {format_hours(self.hours)} on this machine",
                *(f"note              {note}" for note in self.notes),
            ]
        )


def _tflop(operations: float) -> str:
    """Return a number of floating-point operations in 10^12, with three digits where it is small."""
    number = operations / 1e12
    return f"{number:,.0f} TFLOP" if number >= 100 else f"{number:.3g} TFLOP"


def format_hours(hours: float) -> str:
    """Return a duration for people, in hours, minutes or seconds.

    Args:
        hours: Duration in hours.

    Example:
        >>> format_hours(30.25), format_hours(0.5), format_hours(0.001)
        ('30.2 hours', '30.0 minutes', '3.6 seconds')
    """
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.1f} seconds"


def estimate_sentences(
    accelerator: Accelerator,
    training: TrainingArguments,
    text: TextModelArguments,
    sentence: SentenceArguments,
    validation: ValidationArguments | None = None,
    lora: LoraArguments | None = None,
) -> DryRun:
    """Measure a step of phase 1.

    Args:
        accelerator, training, text, sentence: Accelerator and options of the run.
        validation: Measurements during the run, whose data are loaded and checked if they can be reached.
        lora: Options of an adapter. If None, all weights are trained.

    Raises:
        ValueError: If the data do not hold what the options say, as in the run.
    """
    notes: list[str] = []
    text, _ = placeholders(text, None, notes)
    training = _without_unreachable_exclusions(training, notes)
    training, text = resolve_sentence_defaults(training, text, lora)
    table = _sentences(sentence, training, notes)
    num_items = _num_items(table, training, notes)
    with _own_folder(small_options(training)) as small:
        phase = build_sentence_phase(accelerator, small, text, sentence, table, lora)
        _check_validation(accelerator, small, validation, phase, None, notes)
        return measure_step(accelerator, phase, training, num_items, notes)


def estimate_pairs(
    accelerator: Accelerator,
    training: TrainingArguments,
    text: TextModelArguments,
    pairs: PairArguments,
    contrastive: ContrastiveArguments,
    sentence: SentenceArguments,
    lora: LoraArguments,
    validation: ValidationArguments | None = None,
) -> DryRun:
    """Measure a step of phase 2, alone or joint.

    Args:
        accelerator, training, text, pairs, contrastive, sentence, lora: Accelerator and options of the run.
        validation: Measurements during the run, as in `estimate_sentences`.

    Raises:
        ValueError: If the data do not hold what the options say, as in the run.
        BadItemError: If an item of the step cannot be used, with `--on_bad_item error`.
        TooManyBadItemsError: If more items than `--max_bad_fraction` of the data cannot be used.
    """
    notes: list[str] = []
    text, placeholder = placeholders(text, contrastive, notes)
    assert placeholder is not None
    training = _without_unreachable_exclusions(training, notes)
    training, text = resolve_pair_defaults(training, text, placeholder, lora, pairs.modality)
    table = _pairs(pairs, training, notes)
    num_items = _num_items(table, training, notes)
    if isinstance(table, Dataset) and len(pairs.dataset) > 1:  # made-up data are a single table
        pairs = dataclasses.replace(pairs, dataset=pairs.dataset[:1], dataset_weights=None)
    if placeholder.sentence_batch_size is not None:  # scaled in proportion
        items = small_options(training).batch_size * placeholder.sentence_batch_size / training.batch_size
        placeholder = dataclasses.replace(placeholder, sentence_batch_size=max(1, round(items)))
    least = max(_MADE_UP_ROWS, placeholder.sentence_batch_size or 0)
    sentences = _sentences(sentence, training, notes, least) if sentence.is_given else None
    with _own_folder(small_options(training)) as small:
        phase = build_pair_phase(
            accelerator, small, text, pairs, placeholder, sentence, lora, table=table, sentences=sentences
        )
        _check_validation(accelerator, small, validation, phase, pairs, notes)
        report = measure_step(accelerator, phase, training, num_items, notes)
        return dataclasses.replace(report, notes=(*report.notes, *_skipped_items(Path(small.output_dir))))


@contextmanager
def _own_folder(training: TrainingArguments) -> Iterator[TrainingArguments]:
    """Give the options with an output folder that is removed afterwards: for the list of unusable items."""
    with tempfile.TemporaryDirectory() as folder:
        yield dataclasses.replace(training, output_dir=folder, resume=None)


def _skipped_items(folder: Path) -> list[str]:
    reasons = count_bad_items(folder / BAD_ITEMS_NAME)
    if not reasons:
        return []
    shown = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return [f"items of the measured step that cannot be used, and that the run will skip: {shown}"]


def _check_validation(
    accelerator: Accelerator,
    training: TrainingArguments,
    validation: ValidationArguments | None,
    phase: Phase,
    pairs: PairArguments | None,
    notes: list[str],
) -> None:
    """Check the data of the measurements, as the run does before its first step; what is out of reach is noted."""
    if validation is None or validation.eval_steps is None:
        return
    sources = {"--eval_sts": validation.eval_sts, "--eval_dataset": validation.eval_dataset}
    if pairs is not None and validation.eval_split is not None and validation.eval_dataset is None:
        sources["--dataset"] = pairs.dataset[0]
    measurements, note = _reached(
        lambda: build_validation(accelerator, training, validation, phase.processor, pairs),
        [(option, source) for option, source in sources.items() if source is not None],
    )
    if measurements is None:
        notes.append(f"the data of the measurements cannot be reached ({note}): they are not checked")
    else:
        measurements.check(phase.model)


def small_options(training: TrainingArguments) -> TrainingArguments:
    """Return the options of the measured step: a few items, loaded in the main process, no compilation."""
    items = min(DRY_RUN_ITEMS, training.batch_size)
    return dataclasses.replace(
        training, batch_size=items, micro_batch_size=None, num_workers=0, torch_compile=False, max_steps=None
    )


def measure_step(
    accelerator: Accelerator, phase: Phase, training: TrainingArguments, num_items: int, notes: list[str]
) -> DryRun:
    """Take two small steps, the second one timed, and scale them to the run.

    Args:
        accelerator: Accelerator of the run.
        phase: Phase that was built under `small_options(training)`; its model is changed.
        training: Options of the whole run.
        num_items: Number of rows in the dataset.
        notes: Notes about data that had to be made up.
    """
    small, model, objective = small_options(training), phase.model, phase.objective
    parameters = [parameter.numel() for parameter in model.parameters()]
    trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    frozen_bytes = sum(parameter.nbytes for parameter in model.parameters() if not parameter.requires_grad)
    take_step = TrainingStep(accelerator, model, objective, small, total_steps=2)
    batch = next(iter(phase.loader))
    activations = _activation_bytes(lambda: objective(take_step.model, batch))
    with FlopCounterMode(display=False) as counter:
        take_step(batch)
    started = time.perf_counter()
    take_step(batch)
    seconds = time.perf_counter() - started
    scale = training.batch_size / small.batch_size
    items_per_step = training.batch_size * accelerator.num_processes
    total_steps = training.num_epochs * (num_items // items_per_step)
    held_items = min(training.micro_batch_size or training.batch_size, training.batch_size)
    return DryRun(
        parameters=sum(parameters),
        trained_parameters=sum(trained),
        total_steps=min(total_steps, training.max_steps or total_steps),
        items_per_step=items_per_step,
        tokens_per_item=_tokens(batch) / small.batch_size,
        flops_per_step=counter.get_total_flops() * scale * accelerator.num_processes,
        state_gb=(_BYTES_TRAINED * sum(trained) + frozen_bytes) / 1e9,
        activation_gb=activations * held_items / small.batch_size / 1e9,
        held_items=held_items,
        items_per_second=small.batch_size * accelerator.num_processes / seconds,
        hours=min(total_steps, training.max_steps or total_steps) * seconds * scale / 3600,
        notes=tuple(notes),
    )


def placeholders(
    text: TextModelArguments, contrastive: ContrastiveArguments | None, notes: list[str]
) -> tuple[TextModelArguments, ContrastiveArguments | None]:
    """Replace pretrained towers that cannot be reached by random ones of the same architecture.

    Raises:
        ValueError: If the architecture of a tower that cannot be reached is unknown here.
        OSError: If `--model` cannot be reached: nothing can stand in for its towers, projections and processor.
    """
    if text.text_model is not None and not _is_reachable(text.text_model):
        text = dataclasses.replace(text, text_model=None, text_config=_known_config(text.text_model, "text", notes))
    if text.tokenizer is not None and not _is_reachable(text.tokenizer, AutoTokenizer):
        notes.append(f"tokenizer {text.tokenizer} cannot be reached: one trained on the texts at hand stands in")
        text = dataclasses.replace(text, tokenizer=None)
    if contrastive is None:
        return text, None
    if contrastive.model in _KNOWN_MODELS and not _is_reachable(contrastive.model):
        return _known_model(text, contrastive, contrastive.model, notes)
    check_sources([("--model", "model", contrastive.model)])
    for kind in MODALITIES:
        source = getattr(contrastive, f"{kind}_model")
        if source is not None and not _is_reachable(source):
            config = _known_config(source, kind, notes)
            changes: dict[str, Any] = {f"{kind}_model": None, f"{kind}_config": config}
            if kind == "audio":  # of the features that it takes
                changes["audio_preset"] = "clap" if "clap" in config else "ast"
            contrastive = dataclasses.replace(contrastive, **changes)
    return text, contrastive


def load_or_make(
    load: Callable[[], Any],
    sources: Sequence[tuple[str, str]],
    kind: Literal["image", "audio", "sentences", "triplets", "paraphrases"],
    notes: list[str],
    num_rows: int = _MADE_UP_ROWS,
) -> Any:
    """Return what `load` returns; where a source cannot be reached, made-up rows of the same shape.

    Args:
        load: Function that reads the data as the run does. Errors of data that can be reached are raised.
        sources: Options and the names that they give: files, folders, addresses or Hub ids.
        kind: Noun for the rows, such as "pairs".
        notes: List to which a line is added if rows are made up.
        num_rows: Number of rows to make up.
    """
    table, note = _reached(load, sources)
    if note is None:
        return table
    notes.append(f"{_MADE_UP_DATA} ({note}): made-up {kind} stand in")
    return _made_up_table(kind, num_rows)


def _reached(load: Callable[[], Any], sources: Sequence[tuple[str, str]]) -> tuple[Any, str | None]:
    """Return what `load` returns and None; or None, and why one of the sources cannot be reached."""
    try:
        check_sources((option, "dataset", source) for option, source in sources)
    except OSError as error:
        return None, one_line(str(error))
    try:
        return load(), None
    except _NOT_ANSWERED as error:
        is_here = all(_is_on_this_machine(source) for _, source in sources)
        if is_here or isinstance(error, _NO_DATA):
            raise
        return None, one_line(str(error))


def _is_on_this_machine(source: str) -> bool:
    return source in BUILT_IN or Path(source).expanduser().exists()


def _made_up_table(kind: Literal["image", "audio", "sentences", "triplets", "paraphrases"], num_rows: int) -> Dataset:
    generator = np.random.default_rng(0)
    texts = [_made_up_text(generator) for _ in range(3 * num_rows)]
    if kind == "sentences":
        return Dataset.from_dict({"anchor": texts})
    if kind == "paraphrases":
        return Dataset.from_dict({"paraphrases": [texts[row : row + 2] for row in range(num_rows)]})
    if kind == "triplets":
        return Dataset.from_dict({"anchor": texts[0::3], "positive": texts[1::3], "negative": texts[2::3]})
    make = {"image": _made_up_image, "audio": _made_up_sound}[kind]
    rows = [
        {"id": str(row), "text": texts[row], kind: {"bytes": make(generator), "path": f"{row}.{kind}"}}
        for row in range(num_rows)
    ]
    return undecoded(Dataset.from_list(rows).cast_column(kind, cell_feature(kind)))


def _pairs(pairs: PairArguments, training: TrainingArguments, notes: list[str]) -> Any:
    """The pairs; where one of several sources cannot be reached, made-up ones, after the others have been read."""
    sources = [("--dataset", source) for source in pairs.dataset]
    reachable = [source for source in sources if _reached(lambda: None, [source])[1] is None]
    if 0 < len(reachable) < len(sources):
        for _, source in reachable:
            one = dataclasses.replace(pairs, dataset=[source], dataset_weights=None)
            _reached(partial(load_pair_table, one, training.exclude_texts), [("--dataset", source)])
    return load_or_make(lambda: load_pair_table(pairs, training.exclude_texts), sources, pairs.modality, notes)


def _sentences(
    sentence: SentenceArguments, training: TrainingArguments, notes: list[str], num_rows: int = _MADE_UP_ROWS
) -> Dataset:
    options: tuple[Literal["sentences", "triplets", "paraphrases"], ...] = ("sentences", "triplets", "paraphrases")
    option = next(name for name in options if getattr(sentence, name) is not None)

    def load() -> Dataset:
        return load_sentence_table(sentence, training.seed, training.exclude_texts)

    return load_or_make(load, [(f"--{option}", getattr(sentence, option))], option, notes, num_rows)


def _without_unreachable_exclusions(training: TrainingArguments, notes: list[str]) -> TrainingArguments:
    kept = []
    for source in training.exclude_texts:
        _, note = _reached(partial(evaluation_keys, [source]), [("--exclude_texts", source)])
        if note is None:
            kept.append(source)
        else:
            notes.append(f"the texts to leave out cannot be reached ({note}): those of {source} are not left out")
    return dataclasses.replace(training, exclude_texts=kept)


def _num_items(table: Any, training: TrainingArguments, notes: list[str]) -> int:
    """Return the rows of the whole run: those of the data, or what is expected where they are made up."""
    if not notes or not notes[-1].startswith(_MADE_UP_DATA):
        return len(table)
    if training.expected_items is None:
        notes.append(f"without --expected_items, the run is taken to have the {len(table)} made-up rows")
    return training.expected_items or len(table)


def _known_model(
    text: TextModelArguments, contrastive: ContrastiveArguments, source: str, notes: list[str]
) -> tuple[TextModelArguments, ContrastiveArguments]:
    """The options of a random model of the architecture of one that cannot be reached."""
    notes.append(f"model {source} cannot be reached: a random one of its architecture stands in")
    text_config, image_config = _KNOWN_MODELS[source]
    positions = max(text.max_length or 0, text_config["max_position_embeddings"])
    text = dataclasses.replace(text, text_config=json.dumps(text_config | {"max_position_embeddings": positions}))
    config = json.dumps(image_config)
    return text, dataclasses.replace(contrastive, model=None, image_config=config, image_size=224, projection_dim=512)


def _known_config(source: str, kind: str, notes: list[str]) -> str:
    if source not in _KNOWN_CONFIGS:
        raise ValueError(
            f"{kind} model {source} cannot be reached, and its architecture is not among {', '.join(_KNOWN_CONFIGS)}: "
            f"pass --{kind}_config for a dry run"
        )
    notes.append(f"{kind} model {source} cannot be reached: a random one of its architecture stands in")
    return json.dumps(_KNOWN_CONFIGS[source])


def _is_reachable(source: str, kind: Any = AutoConfig) -> bool:
    """Whether a model or tokenizer is there; what is wrong with one that is shows when it is loaded."""
    try:
        check_sources([("", "model", source)])
        if not _is_on_this_machine(source):
            kind.from_pretrained(source)
    except _NOT_ANSWERED:
        return False
    except ValueError:  # the Hub has answered, and the loader reports the error better
        return True
    return True


def _activation_bytes(forward: Callable[[], Any]) -> int:
    """Return the bytes that a forward keeps for backward, each tensor once, without the weights."""
    kept: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def _tokens(batch: Batch) -> int:
    parts = [batch["pairs"], batch["sentences"]] if "pairs" in batch else [batch]
    masks = [part.get("attention_mask", torch.ones_like(part["input_ids"])) for part in parts]
    return int(sum(mask.sum() for mask in masks))


def _made_up_text(generator: np.random.Generator) -> str:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(generator.choice(list(letters), size=4)) for _ in range(_CAPTION_WORDS)]
    return " ".join(words)


def _made_up_image(generator: np.random.Generator) -> bytes:
    pixels = generator.integers(0, 256, (_IMAGE_PIXELS, _IMAGE_PIXELS, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def _made_up_sound(generator: np.random.Generator) -> bytes:
    import soundfile

    buffer = io.BytesIO()
    wave = 0.1 * generator.standard_normal(int(_SOUND_SECONDS * _SOUND_HZ)).astype(np.float32)
    soundfile.write(buffer, wave, _SOUND_HZ, format="WAV")
    return buffer.getvalue()

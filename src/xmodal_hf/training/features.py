"""Pooled vectors of frozen towers in training: which sides have them, where they lie, and when they are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import ProcessorMixin

from ..data.clips import clip_seconds
from ..data.collators import PairCollator
from ..data.mixing import PairTable
from ..data.modalities import MODALITIES, modality_of_columns
from ..data.sampling import PairDataset
from ..features.extraction import ExtractionOptions, extract
from ..features.frozen import SIDES, FrozenSide, Side
from ..features.identity import short_name
from ..features.manifest import MANIFEST_NAME, UNFINISHED_NAME, Manifest
from ..features.store import FeatureStore
from .arguments import PairArguments, TextModelArguments, TrainingArguments
from .batches import pair_rows, text_lengths
from .log import inform
from .sharding import is_sharded

# Name of the folder beside the outputs where vectors are kept by default.
FOLDER_NAME = "features"
# Number of pictures or sounds per batch. It is no option, so that stores do not depend on options.
_BATCH_SIZE = 64
# Seed of the augmented views. It is not that of the run, so that runs with other seeds share the views.
_VIEW_SEED = 0
DEFAULT_DTYPE = "float16"
# Arguments of `load_pairs` that are kept in the store, so that a search finds the pictures again.
_SOURCE_OPTIONS = ("dataset", "split", "image_column", "audio_column", "text_column", "id_column", "max_samples")


def frozen_sides(model: nn.Module) -> list[Side]:
    """Return the sides of a dual encoder whose towers have no trainable parameter."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    towers = {side: getattr(whole, f"{side}_model", None) for side in SIDES}
    return [
        side
        for side, tower in towers.items()
        if tower is not None and not any(parameter.requires_grad for parameter in tower.parameters())
    ]


def changing_input(side: Side, pairs: PairArguments, processor: ProcessorMixin) -> str | None:
    """Return the option that changes the input of a tower in each epoch; None if the input stays the same."""
    changes: dict[Side, Callable[[PairArguments, ProcessorMixin], str | None]] = {
        "image": _changes_of_images,
        "audio": _changes_of_sounds,
        "text": lambda pairs, processor: None,
    }
    return changes[side](pairs, processor)


def _changes_of_images(pairs: PairArguments, processor: ProcessorMixin) -> str | None:
    return "--augment" if pairs.augment else None


def _changes_of_sounds(pairs: PairArguments, processor: ProcessorMixin) -> str | None:
    if pairs.spec_augment:
        return "--spec_augment"
    extractor = processor.feature_extractor
    if getattr(extractor, "truncation", None) == "fusion":
        return "the random crops of fused CLAP"
    has_windows = clip_seconds(extractor) is not None or pairs.clip_seconds is not None
    return "--audio_window random" if pairs.audio_window == "random" and has_windows else None


def open_features(
    accelerator: Accelerator,
    model: nn.Module,
    table: PairTable,
    processor: ProcessorMixin,
    training: TrainingArguments,
    text: TextModelArguments,
    pairs: PairArguments,
) -> dict[str, FeatureStore]:
    """Return the pooled vectors that training reads, by side, computed where they are not there yet.

    What is decided by `--features auto` is printed, one line a side.

    Args:
        accelerator: Accelerator of the run; all its processes share the work.
        model: Model with its towers frozen and an adapter added, before `accelerator.prepare`.
        table: Table of the pairs.
        processor: Processor of the model.
        training, text, pairs: Options of training, of the text tower and of the pairs.

    Raises:
        FeatureError: If `--features` names vectors of another tower, processor or data set. The message says what
            differs.
        ValueError: If `--features` names a folder, or `--feature_views` is given, and there is nothing to keep.
    """
    sides = frozen_sides(model)
    if pairs.features == "off":
        return {}
    kept = [side for side in sides if _is_kept(accelerator, side, pairs, processor)]
    if not kept and (pairs.features != "auto" or pairs.feature_views > 1):
        raise ValueError(_nothing_to_keep(sides, pairs, processor))
    stores: dict[str, FeatureStore] = {}
    for side in kept:
        store = _open_side(accelerator, model, side, table, processor, training, text, pairs, len(kept) == 1)
        if store is not None:
            stores[side] = store
    return stores


def _is_kept(accelerator: Accelerator, side: Side, pairs: PairArguments, processor: ProcessorMixin) -> bool:
    changing = changing_input(side, pairs, processor)
    if changing is None or pairs.feature_views > 1:
        return True
    if pairs.features == "auto":
        inform(
            accelerator,
            f"features: the {side} tower is frozen and runs in each step, because {changing} gives it another input "
            "in each epoch; --feature_views K would keep K of them",
        )
    return False


def _nothing_to_keep(sides: list[Side], pairs: PairArguments, processor: ProcessorMixin) -> str:
    """Return what is wrong with `--features FOLDER` or `--feature_views`."""
    option = "--feature_views" if pairs.feature_views > 1 else "--features"
    if not sides:
        return f"{option} keeps vectors of frozen towers, and all towers are trained: pass --freeze, or drop it"
    changing = changing_input(sides[0], pairs, processor)
    return (
        f"{option}: {changing} gives the {sides[0]} tower another input in each epoch: drop it, or pass --feature_views"
    )


def _open_side(
    accelerator: Accelerator,
    model: nn.Module,
    side: Side,
    table: PairTable,
    processor: ProcessorMixin,
    training: TrainingArguments,
    text: TextModelArguments,
    pairs: PairArguments,
    is_only_one: bool,
) -> FeatureStore | None:
    """Open or write the store of a side; None where `auto` leaves it alone."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    frozen = build_frozen_side(whole, side, table, processor, text, pairs, accelerator.mixed_precision)
    folder, dtype = _place(frozen, training, pairs, is_only_one)
    is_complete = (folder / MANIFEST_NAME).is_file()
    if not is_complete and pairs.features == "auto":
        reason = _not_worth_it(accelerator, training, len(table))
        if reason is not None:
            inform(accelerator, f"features: the {side} tower is frozen and runs in each step, because {reason}")
            return None
    options = ExtractionOptions(
        dtype=dtype,
        batch_size=_BATCH_SIZE,
        num_workers=training.num_workers,
        max_bad_fraction=pairs.max_bad_fraction,
        on_bad_item=pairs.on_bad_item,
    )
    if not is_complete:
        whole.to(accelerator.device)
    store = extract(folder, frozen, options)
    done = "read from" if is_complete else "kept in"
    inform(accelerator, f"features: {len(store):,} vectors of the frozen {side} tower, {done} {folder}")
    return store


def _place(
    frozen: FrozenSide, training: TrainingArguments, pairs: PairArguments, is_only_one: bool
) -> tuple[Path, str]:
    """Return the folder of a side's store, and the precision of its vectors."""
    dtype = pairs.feature_dtype or DEFAULT_DTYPE
    if pairs.features == "auto":
        parent = Path(training.output_dir).absolute().parent / FOLDER_NAME
        return parent / short_name(frozen.identity, dtype), dtype
    folder = Path(pairs.features)
    found = _manifest_in(folder)
    is_of_this_side = found is not None and found.identity["side"] == frozen.side
    if not is_of_this_side and (not is_only_one or (folder / frozen.side).is_dir()):
        folder = folder / frozen.side
        found = _manifest_in(folder)
    if pairs.feature_dtype is None and found is not None:
        dtype = found.dtype
    return folder, dtype


def _manifest_in(folder: Path) -> Manifest | None:
    """Return the manifest of a store, complete or not; None where there is none."""
    names = [name for name in (MANIFEST_NAME, UNFINISHED_NAME) if (folder / name).is_file()]
    return Manifest.read(folder / names[0]) if names else None


def build_frozen_side(
    model: nn.Module,
    side: Side,
    table: PairTable,
    processor: ProcessorMixin,
    text: TextModelArguments,
    pairs: PairArguments,
    compute: str,
) -> FrozenSide:
    """Return a side as training sees it; its augmented views are those of a seed of their own.

    Args:
        model: Dual encoder, or a `SentenceEncoder` for the text side.
        side: Side: image, audio or text.
        table: Table of the pairs.
        processor: Processor of the model.
        text, pairs: Options of the text tower and of the pairs.
        compute: Precision of the computation: no, bf16 or fp16.
    """
    if side == "text":
        # `PairDataset` requires the rate of sounds, although none is decoded.
        rate = 1 if MODALITIES[modality_of_columns(table.column_names)].is_sampled else None
        rows = PairDataset(table, seed=_VIEW_SEED, sampling_rate=rate)
        collator = PairCollator(processor, **text_lengths(processor.tokenizer, text))
    else:
        rows, collator = pair_rows(table, processor, text, pairs, _VIEW_SEED, any_longer=False)
    changes = changing_input(side, pairs, processor) is not None
    return FrozenSide(
        side,
        model,
        rows,
        collator,
        compute=compute,
        num_views=pairs.feature_views if changes else 1,
        augment=_augmentation(pairs),
        source=_source(pairs),
    )


def _source(pairs: PairArguments) -> dict[str, Any]:
    """Return where the data are, so that a search from any folder finds them again."""
    source = {name: getattr(pairs, name) for name in (*_SOURCE_OPTIONS, "modality")}
    names = [str(Path(name).absolute()) if Path(name).exists() else name for name in pairs.dataset]
    joined = {"captions_per_item": pairs.captions_per_item} if pairs.captions_per_item > 1 else {}
    return source | {"dataset": names} | joined


def _augmentation(pairs: PairArguments) -> dict[str, Any]:
    """Return the options by which the views differ."""
    names = ("augment", "spec_augment", "audio_window")
    return {name: value for name, value in dataclasses.asdict(pairs).items() if name in names} | {"seed": _VIEW_SEED}


def _not_worth_it(accelerator: Accelerator, training: TrainingArguments, items: int) -> str | None:
    """Return why `auto` does not fill a store; None where it does."""
    if is_sharded(accelerator):
        return "the model is sharded; extract_features.py writes vectors beforehand"
    per_epoch = items // (training.batch_size * accelerator.num_processes)
    if training.max_steps is not None and training.max_steps < per_epoch:
        return f"{training.max_steps} steps see less than the data once; --features FOLDER computes all vectors first"
    return None

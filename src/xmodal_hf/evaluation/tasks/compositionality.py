"""Composition: right captions against wrong ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_hf.data.bad_items import BadItem, summary
from xmodal_hf.data.composition import CompositionSet, load_composition

from ..arguments import EvaluationArguments, EvaluationDataArguments
from ..bootstrap import keep_resamples, with_interval
from ..compositionality import evaluate_compositionality, evaluate_winoground
from ..embed import Embedder, SizedIterable, usable_items
from ..provenance import describe_source, texts_checksum
from .context import Outcome, Run, TaskContext, count_bad_items


def load_compositionality_task(context: TaskContext) -> Run:
    """Open the sets of right and wrong captions."""
    embedder, arguments, data = context.embedder, context.arguments, context.data
    modality = context.modality
    options: dict[str, Any] = {
        "modality": modality,
        "split": data.composition_split,
        "media_folder": data.composition_media,
        "text_column": data.text_column,
        "negative_text_column": data.negative_text_column,
    }
    sources = list(data.composition_data or ())
    sets = _by_name(one for source in sources for one in load_composition(source, **options))
    described = [describe_source(source) for source in sources]
    texts = ([one.right, one.wrong] for one in sets.values())
    meta: dict[str, Any] = {
        "dataset": ", ".join(source["dataset"] for source in described),
        "sha256": ", ".join(source.get("sha256", source.get("revision", "built in")) for source in described),
        "texts_sha256": texts_checksum(texts),
        "num_items": sum(map(len, sets.values())),
        "protocol": "the right caption above every wrong one, ties against it; average over the sets",
    }

    def run() -> Outcome:
        bad_items: list[BadItem] = []
        numbers: dict[str, float] = {}
        headlines: list[tuple[float, np.ndarray | None]] = []
        for one in sets.values():
            with keep_resamples() as kept:
                found = _measure_composition(embedder, one, arguments, data, bad_items)
            numbers |= _named_after(one.name, found, kept)
            headline = "group_score" if one.is_paired else "accuracy"
            headlines.append((found[headline], kept.get(headline)))
        return Outcome(_average(headlines) | numbers, meta | {"bad_items": summary(bad_items)})

    return run


def _by_name(sets: Iterable[CompositionSet]) -> dict[str, CompositionSet]:
    """The sets by their names, under which the results are listed.

    Raises:
        ValueError: If two sets have one name.
    """
    named: dict[str, CompositionSet] = {}
    for one in sets:
        if one.name in named:
            raise ValueError(f"--composition_data has two sets of the name {one.name!r}: rename a file")
        named[one.name] = one
    return named


def _named_after(name: str, found: Mapping[str, float], kept: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The numbers of one set with its name (`accuracy/<name>/<category>`), and their resamples among the task's."""
    numbers: dict[str, float] = {}
    for metric, value in found.items():
        measure, *category = metric.split("/", 1)
        key = "/".join([measure, name, *category])
        if metric in kept:
            numbers |= with_interval(key, value, kept[metric])
        elif not metric.endswith(("_ci95_low", "_ci95_high")):
            numbers[key] = value
    return numbers


def _average(headlines: Sequence[tuple[float, np.ndarray | None]]) -> dict[str, float]:
    """The mean of the sets' accuracies (of Winoground, group scores), and its interval."""
    value = float(np.mean([value for value, _ in headlines]))
    resamples = [kept for _, kept in headlines if kept is not None]
    if len(resamples) < len(headlines):
        return {"average": value}
    return with_interval("average", value, np.mean(resamples, axis=0))


def _measure_composition(
    embedder: Embedder,
    tests: CompositionSet,
    arguments: EvaluationArguments,
    data: EvaluationDataArguments,
    bad_items: list[BadItem],
) -> dict[str, float]:
    """Numbers of one set; what cannot be used is added to `bad_items`, and leaves its tests out."""
    own_bad: list[BadItem] = []
    options: dict[str, Any] = {"ids": tests.ids, "boxes": tests.boxes, "on_bad_item": data.on_bad_item}
    items = SizedIterable(usable_items(embedder, tests.items, tests.modality, own_bad, **options), len(tests))
    item_embeds = embedder.encode_items(tests.modality, items)
    without = {bad.index for bad in own_bad}
    count_bad_items(own_bad, len(tests), data)
    bad_items += own_bad
    used = [row for row in range(len(tests)) if row not in without]
    place = {row: number for number, row in enumerate(used)}
    if tests.is_paired:  # an example needs both of its items
        used = [row for row in used if row ^ 1 in place]
    item_embeds = item_embeds[[place[row] for row in used]]
    categories = [tests.categories[row] for row in used] if tests.categories else []
    bootstrap = {"num_resamples": arguments.num_resamples, "seed": arguments.seed}
    if tests.is_paired:
        texts = embedder.encode_text([tests.right[row][0] for row in used])
        return evaluate_winoground(item_embeds, texts, categories=categories, **bootstrap)
    sides: list[Any] = []
    for captions in (tests.right, tests.wrong):
        owners = [number for number, row in enumerate(used) for _ in captions[row]]
        sides += [embedder.encode_text([text for row in used for text in captions[row]]), owners]
    groups = [tests.ids[row] for row in used]
    return evaluate_compositionality(item_embeds, *sides, categories=categories, groups=groups, **bootstrap)

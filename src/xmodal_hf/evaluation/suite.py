"""All tasks on one model: results.json with what identifies every number, resamples, figures, tables."""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset
from matplotlib.figure import Figure

import xmodal_hf
from xmodal_hf.data.bad_items import BadItem, check_share, path_of, summary
from xmodal_hf.data.composition import CompositionSet, load_composition
from xmodal_hf.data.errors import BadItemError, naming
from xmodal_hf.data.exclusion import text_key
from xmodal_hf.data.identity import count_items
from xmodal_hf.data.mixing import undecoded
from xmodal_hf.data.sentences import load_sentences
from xmodal_hf.data.sources import load_pairs, load_rows
from xmodal_hf.data.splits import with_default_split

from . import plots
from .arguments import EvaluationArguments, EvaluationDataArguments, task_names
from .bootstrap import keep_resamples, percentile_interval, with_interval
from .compositionality import evaluate_compositionality, evaluate_winoground
from .embed import Embedder, Modality, PairEmbeddings, SizedIterable, embed_pairs, usable_items
from .loading import model_identity
from .prompts import DEFAULT_PROMPTS
from .provenance import describe_source, texts_checksum
from .representation import evaluate_representation
from .retrieval import evaluate_retrieval
from .sts import evaluate_sts, load_sts
from .transfer import NUM_FOLDS, evaluate_transfer, load_transfer
from .transfer import SEED as TRANSFER_SEED
from .zero_shot import confusion_counts, merge_classes, zero_shot_metrics, zero_shot_scores

logger = logging.getLogger(__name__)

RESULTS_NAME = "results.json"
RESAMPLES_NAME = "resamples.npz"
_PACKAGES = ("torch", "transformers", "datasets", "numpy", "scipy", "scikit-learn")
# Options that change a number, recorded with each task.
_RECORDED = ("seed", "num_resamples", "pooling", "max_length", "long_clips", "dtype")
# What must be the same in two results of a task before they are compared.
_IDENTIFYING = (*("dataset", "sha256", "revision", "revisions", "split", "num_items", "texts_sha256", "protocol"),)
# What was left out must be the same too. How retrieval takes equal captions:
_PLAIN_PROTOCOL = "all captions, each item once, ties against the gold"
_DISTINCT_PROTOCOL = "equal captions are one text, each item once, ties of different texts against the gold"
# The same for two bootstraps, before their resamples are paired.
_DRAWS = ("seed", "num_resamples")
# What a comparison shows of each task.
_HEADLINES = {
    "sts": ("average",),
    "sts_text_tower": ("average",),
    "transfer": ("average",),
    "retrieval": tuple(f"{way}_recall@{k}" for way in ("text_to_{0}", "{0}_to_text") for k in (1, 5, 10)),
    "zero_shot": ("top1_accuracy", "top5_accuracy", "fold_mean_accuracy"),
    "compositionality": ("average",),
    "representation": (
        "alignment",
        "text_alignment",
        "modality_gap",
        *(f"{of}_{measure}" for measure in ("uniformity", "effective_rank", "anisotropy") for of in ("text", "{0}")),
        "logit_scale",
    ),
}

Results = dict[str, dict[str, Any]]
# "task.metric" -> (num_resamples,) values of the bootstrap.
Resamples = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """One task's result.

    Attributes:
        numbers: metric to value.
        meta: dataset, revision or checksum, protocol.
        draw: file name to figure; called when the numbers are safe.
    """

    numbers: dict[str, float]
    meta: dict[str, Any]
    draw: Callable[[], dict[str, Figure]] = dict


# A task whose data has been opened and that only needs to be run.
Run = Callable[[], Outcome]


def run_suite(
    embedder: Embedder, arguments: EvaluationArguments, data: EvaluationDataArguments
) -> Iterator[tuple[Results, Resamples, Callable[[], dict[str, Figure]]]]:
    """Run the tasks in turn, after the data of all of them has been opened: what is missing is told before any work.

    Yields:
        After each task the results so far, {task: {metric: number}, "meta": {...}}, with the resamples of those that
        have intervals, and what draws the task's figures by file name.
    """
    pairs = _Pairs(embedder, data)
    loaders: dict[str, Callable[[Embedder, EvaluationArguments, EvaluationDataArguments], Run]] = {
        "sts": _load_sts,
        "sts_text_tower": _load_text_tower_sts,
        "transfer": _load_transfer,
        "retrieval": partial(_load_retrieval, pairs),
        "representation": partial(_load_representation, pairs),
        "zero_shot": _load_zero_shot,
        "compositionality": _load_compositionality,
    }
    runs = {task: loaders[task](embedder, arguments, data) for task in task_names(arguments)}
    results: Results = {}
    resamples: Resamples = {}
    task_meta: dict[str, Any] = {}
    for task, run in runs.items():
        started = time.perf_counter()
        with keep_resamples() as kept:
            outcome = run()
        results[task] = outcome.numbers
        resamples |= {f"{task}.{metric}": values.astype(np.float32) for metric, values in kept.items()}
        seconds = round(time.perf_counter() - started, 2)
        settings = {name: getattr(arguments, name) for name in _RECORDED}
        task_meta[task] = settings | {"runtime_seconds": seconds} | outcome.meta | {"versions": versions()}
        meta = {
            "model": arguments.model,
            "identity": model_identity(arguments.model),
            "name": model_name(arguments),
            "tasks": dict(task_meta),
        }
        yield results | {"meta": meta}, resamples, outcome.draw


def model_name(arguments: EvaluationArguments) -> str:
    """The name for tables and plots."""
    return arguments.name or Path(arguments.model).name


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    own = {"python": platform.python_version(), "xmodal_hf": xmodal_hf.__version__}
    return own | {package: version(package) for package in _PACKAGES}


def read_earlier_results(folder: Path, model: str) -> Results:
    """Results that are in the folder already; none if there are none.

    Raises:
        ValueError: they are another model's.
    """
    path = folder / RESULTS_NAME
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text(encoding="utf-8"))
    if earlier["meta"]["identity"] != model_identity(model):
        raise ValueError(f"{path} is of another model, {earlier['meta']['model']}: choose another --output_dir")
    return earlier


def read_resamples(folder: Path) -> Resamples:
    """Read the resamples beside a results.json; none where nobody kept them."""
    path = folder / RESAMPLES_NAME
    if not path.exists():
        return {}
    with np.load(path) as arrays:
        return dict(arrays)


def write_results(folder: Path, results: Results, resamples: Resamples, earlier: Results) -> Path:
    """Write resamples.npz and results.json: these, and the earlier ones of tasks that were not run again."""
    folder.mkdir(parents=True, exist_ok=True)
    merged = earlier | results
    if earlier:
        merged["meta"] = results["meta"] | {"tasks": earlier["meta"]["tasks"] | results["meta"]["tasks"]}
    kept = {name: values for name, values in read_resamples(folder).items() if task_of(name) not in results}
    # A killed run leaves no half of a file under its name.
    unfinished = {name: folder / f"unfinished_{name}" for name in (RESAMPLES_NAME, RESULTS_NAME)}
    np.savez_compressed(unfinished[RESAMPLES_NAME], **kept, **resamples)  # type: ignore[arg-type]
    text = json.dumps(merged, indent=2, ensure_ascii=False) + "\n"
    unfinished[RESULTS_NAME].write_text(text, encoding="utf-8")
    for name, path in unfinished.items():
        path.replace(folder / name)
    return folder / RESULTS_NAME


def write_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write each figure under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / name)


def results_table(results: Results) -> str:
    """Every number with its interval, as a Markdown table; where items were left out, a row says so."""
    lines = ["| task | metric | value | 95 % interval |", "|---|---|---:|---|"]
    for task, numbers in results.items():
        if task == "meta":
            continue
        for metric, value in numbers.items():
            if metric.endswith(("_ci95_low", "_ci95_high")):
                continue
            low, high = numbers.get(f"{metric}_ci95_low"), numbers.get(f"{metric}_ci95_high")
            interval = "" if low is None or high is None else f"{low:.2f} to {high:.2f}"
            lines.append(f"| {task} | {metric} | {_shown(value)} | {interval} |")
        left_out = _left_out(results, task)
        if left_out["count"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in left_out["reasons"].items())
            lines.append(f"| {task} | **left out: other data than asked for** | {left_out['count']} | {reasons} |")
    return "\n".join(lines)


def comparison_table(models: Mapping[str, Results]) -> str:
    """Headline metrics of several models side by side, as a Markdown table; before and after, for example.

    The last model decides what is compared: a number on other data, or by another protocol, is not shown.
    """
    rows: list[str] = []
    *_, last = models.values()
    for task, metric in _headline_metrics(last):
        values = [results.get(task, {}).get(metric) for results in models.values()]
        comparable = [_same_data(results, last, task) for results in models.values()]
        shown = zip(values, comparable, strict=True)
        cells = ["" if value is None else _shown(value) if same else "other data" for value, same in shown]
        rows.append(f"| {task}: {metric} | {' | '.join(cells)} |")
    return "\n".join([f"| | {' | '.join(models)} |", "|---|" + "---:|" * len(models), *rows])


def difference_table(models: Mapping[str, Results], resamples: Mapping[str, Resamples]) -> str | None:
    """By how much the last model's headline metrics differ from each other model's, with paired bootstrap intervals.

    Args:
        models: name to results.
        resamples: of some of them; models are compared that were measured on the same data with the same draws.

    Returns:
        A Markdown table; None where nothing can be compared.
    """
    *others, last = models
    rows: list[str] = []
    for task, metric in _headline_metrics(models[last]):
        cells = [_shown_difference(models, resamples, (other, last), task, metric) for other in others]
        if any(cells):
            rows.append(f"| {task}: {metric} | {' | '.join(cells)} |")
    if not rows:
        return None
    header = " | ".join(f"{last} − {other} (95 % interval)" for other in others)
    return "\n".join([f"| | {header} |", "|---|" + "---:|" * len(others), *rows])


def _headline_metrics(results: Results) -> Iterator[tuple[str, str]]:
    """Task and metric of what comparisons show, as far as there are results."""
    for task, templates in _HEADLINES.items():
        names = (template.format(modality) for template in templates for modality in ("image", "audio"))
        for metric in dict.fromkeys(names):
            if results.get(task, {}).get(metric) is not None:
                yield task, metric


def _shown_difference(
    models: Mapping[str, Results], resamples: Mapping[str, Resamples], names: tuple[str, str], task: str, metric: str
) -> str:
    before, after = (models[name] for name in names)
    drawn = [resamples.get(name, {}).get(f"{task}.{metric}") for name in names]
    if drawn[0] is None or drawn[1] is None or not same_draws(before, after, task):
        return ""
    low, high = percentile_interval(drawn[1] - drawn[0])
    return f"{after[task][metric] - before[task][metric]:+.2f} ({low:+.2f} to {high:+.2f})"


def read_compared(compare: str) -> tuple[dict[str, Results], dict[str, Resamples]]:
    """Read the results of `name=results.json,...`, and the resamples beside them.

    Raises:
        ValueError: an entry without a name.
        FileNotFoundError: no such file.
    """
    models, resamples = {}, {}
    for name, separator, path in (entry.partition("=") for entry in compare.split(",")):
        if not separator:
            raise ValueError(f"--compare takes name=results.json entries, got {name!r}")
        file = Path(path.strip())
        models[name.strip()] = json.loads(file.read_text(encoding="utf-8"))
        if file.name == RESULTS_NAME:  # else they may be another's
            resamples[name.strip()] = read_resamples(file.parent)
    return models, resamples


def comparison_figures(models: Mapping[str, Results]) -> dict[str, Figure]:
    """Alignment against uniformity of all models whose representation was measured on the data of the last."""
    *_, last = models.values()
    measured = {
        name: results["representation"]
        for name, results in models.items()
        if "representation" in results and _same_data(results, last, "representation")
    }
    return {"alignment_uniformity.png": plots.alignment_uniformity_scatter(measured)} if len(measured) > 1 else {}


def _load_sts(embedder: Embedder, arguments: EvaluationArguments, data: EvaluationDataArguments) -> Run:
    sets = load_sts(data.sts_data, protocol=data.sts_protocol)
    source: dict[str, Any]
    if data.sts_data is not None:
        source = describe_source(data.sts_data)
    else:
        source = {"dataset": "mteb", "revisions": {name: describe_source(name, rows) for name, rows in sets.items()}}
    meta = source | {"protocol": f"{data.sts_protocol}: Spearman of cosine over all pairs, x 100"}

    def run() -> Outcome:
        numbers = evaluate_sts(embedder, sets, num_resamples=arguments.num_resamples, seed=arguments.seed)
        return Outcome(numbers, meta)

    return run


def _load_text_tower_sts(embedder: Embedder, arguments: EvaluationArguments, data: EvaluationDataArguments) -> Run:
    return _load_sts(embedder.text_tower, arguments, data)


def _load_transfer(embedder: Embedder, arguments: EvaluationArguments, data: EvaluationDataArguments) -> Run:
    tasks = load_transfer(str(data.transfer_data))
    protocol = {"protocol": f"SentEval, scikit-learn logistic regression, {NUM_FOLDS} folds", "seed": TRANSFER_SEED}
    meta = describe_source(str(data.transfer_data)) | protocol
    return lambda: Outcome(evaluate_transfer(embedder, tasks, num_resamples=arguments.num_resamples), meta)


class _Pairs:
    """The captioned items of `--pairs`: loaded once, and embedded once for all tasks that measure them."""

    def __init__(self, embedder: Embedder, data: EvaluationDataArguments) -> None:
        self._embedder, self._data = embedder, data

    @cached_property
    def modality(self) -> Modality:
        return _modality(self._embedder, self._data)

    @cached_property
    def _table_and_split(self) -> tuple[Dataset, str]:
        data, source = self._data, str(self._data.pairs)

        def load(split: str) -> Dataset:
            return load_pairs(
                source,
                modality=self.modality,
                split=split,
                text_column=data.text_column,
                id_column=data.id_column,
                max_samples=data.max_pairs,
            )

        return with_default_split(load, data.pairs_split, "test", source)

    @property
    def table(self) -> Dataset:
        """The items, not yet opened."""
        return self._table_and_split[0]

    @cached_property
    def meta(self) -> dict[str, Any]:
        """What identifies the items."""
        num_items = count_items(undecoded(self.table), self.modality)
        texts = texts_checksum(self.table["text"])
        described = {"split": self._table_and_split[1], "num_items": num_items, "texts_sha256": texts}
        return describe_source(str(self._data.pairs), self.table) | described

    @cached_property
    def embeds(self) -> PairEmbeddings:
        rows = SizedIterable(undecoded(self.table), len(self.table))
        return embed_pairs(self._embedder, rows, self.modality, on_bad_item=self._data.on_bad_item)


def _load_retrieval(
    pairs: _Pairs, embedder: Embedder, arguments: EvaluationArguments, data: EvaluationDataArguments
) -> Run:
    meta = pairs.meta
    bank = _query_bank(arguments, data, pairs.table["text"])

    def run() -> Outcome:
        embeds = pairs.embeds
        options: dict[str, Any] = {
            "texts": embeds.texts,
            "protocol": arguments.retrieval_protocol,
            "modality": pairs.modality,
            "num_resamples": arguments.num_resamples,
            "seed": arguments.seed,
        }
        rows = (embeds.modality_embeds, embeds.text_embeds, embeds.text_to_item)
        numbers = evaluate_retrieval(*rows, **options)
        others = [scores for scores in dict.fromkeys(arguments.retrieval_scores) if scores != "cosine"]
        bank_embeds = embedder.encode_text(bank) if bank and others else None
        for scores in others:
            numbers |= evaluate_retrieval(*rows, scores=scores, query_bank=bank_embeds, **options)  # type: ignore[arg-type]
        # Where no caption repeats, both protocols are the same.
        is_plain = arguments.retrieval_protocol == "plain" or numbers["num_texts"] == numbers["num_distinct_texts"]
        protocol = {"protocol": _PLAIN_PROTOCOL if is_plain else _DISTINCT_PROTOCOL}
        scored = {"scores": _described_scores(others, bank, data)} if others else {}
        return Outcome(numbers, meta | protocol | scored | _counted(embeds.bad_items, len(pairs.table), data))

    return run


def _query_bank(arguments: EvaluationArguments, data: EvaluationDataArguments, texts: Sequence[Any]) -> list[str]:
    """Captions of training data without those of the test; none where no score asks for them."""
    if data.query_bank is None:
        return []
    bank = load_sentences(data.query_bank, max_sentences=data.query_bank_size, seed=arguments.seed)["anchor"][:]
    listed = (text for cell in texts for text in (cell if isinstance(cell, list) else [cell]))
    tested = {text_key(text) for text in listed if isinstance(text, str)}
    kept = [text for text in bank if text_key(text) not in tested]
    if len(kept) < len(bank):
        logger.warning(
            "--query_bank %s: %d of %d captions occur in --pairs and are left out of the bank",
            *(data.query_bank, len(bank) - len(kept), len(bank)),
        )
    if not kept:
        raise ValueError(f"--query_bank {data.query_bank} has no caption that is not in --pairs: pass training data")
    return kept


def _described_scores(names: Sequence[str], bank: Sequence[str], data: EvaluationDataArguments) -> dict[str, str]:
    """What each score was computed from."""
    source = f"{len(bank)} captions of {describe_source(data.query_bank)['dataset']}" if data.query_bank else ""
    transductive = "the queries of the test, which is transductive"
    return {name: f"neighbours among {source or transductive}" for name in names}


def _load_representation(
    pairs: _Pairs, embedder: Embedder, arguments: EvaluationArguments, data: EvaluationDataArguments
) -> Run:
    meta, modality = pairs.meta, pairs.modality

    def run() -> Outcome:
        embedded = pairs.embeds
        embeds = (embedded.modality_embeds, embedded.text_embeds, embedded.text_to_item)
        bootstrap = {"num_resamples": arguments.num_resamples, "seed": arguments.seed}
        numbers = evaluate_representation(*embeds, modality=modality, logit_scale=embedder.logit_scale, **bootstrap)
        shown: dict[str, Any] = {"modality": modality, "seed": arguments.seed}
        protocol = {"protocol": "alignment alpha 2, uniformity t 2, seeded subset of items"}
        return Outcome(
            numbers,
            meta | protocol | _counted(embedded.bad_items, len(pairs.table), data),
            lambda: {
                "map.png": plots.joint_map(*embeds, **shown),
                "map_tsne.png": plots.joint_map(*embeds, method="tsne", **shown),
                "cosines.png": plots.cosine_histogram(*embeds, **shown),
                "spectrum.png": plots.spectrum({modality: embedded.modality_embeds, "text": embedded.text_embeds}),
            },
        )

    return run


def _load_zero_shot(embedder: Embedder, arguments: EvaluationArguments, data: EvaluationDataArguments) -> Run:
    modality = _modality(embedder, data)
    source = str(data.zero_shot_data)

    def load(split: str) -> Dataset:
        column = data.label_column
        return load_pairs(source, modality=modality, split=split, text_column=column, keep_class_labels=True)

    whole, split = with_default_split(load, data.zero_shot_split, "test", source)
    folds = None if data.fold_column is None else fold_labels(source, modality, split, data.fold_column)
    bad_labels = unlabelled(whole, modality, data.on_bad_item)
    without = {bad.index for bad in bad_labels}
    kept = [index for index in range(len(whole)) if index not in without]
    table, folds = undecoded(whole.select(kept)), None if folds is None else [folds[index] for index in kept]
    labels, class_names = class_labels(table)
    named = ""
    if data.class_names is not None:
        class_names = read_class_names(Path(data.class_names), len(class_names))
        named = f", class names {Path(data.class_names).name} ({texts_checksum(class_names)[:12]})"
    prompts = data.prompts or DEFAULT_PROMPTS[modality]
    meta = describe_source(source, table) | {
        "split": split,
        "texts_sha256": texts_checksum(class_names[label] for label in labels),
        "protocol": f"prompt set {prompts}{named}",
    }

    def run() -> Outcome:
        bad_items: list[BadItem] = []
        options: dict[str, Any] = {"ids": table["id"][:], "on_bad_item": data.on_bad_item}
        items = SizedIterable(usable_items(embedder, table[modality], modality, bad_items, **options), len(table))
        scores = zero_shot_scores(embedder, items, class_names, modality=modality, templates=prompts)
        used = np.setdiff1d(np.arange(len(table)), [bad.index for bad in bad_items])
        used_labels = np.asarray(labels)[used]
        numbers = zero_shot_metrics(
            scores,
            used_labels,
            class_names,
            folds=None if folds is None else [folds[index] for index in used],
            num_resamples=arguments.num_resamples,
            seed=arguments.seed,
        )
        # Those with labels are numbered among themselves.
        bad_items = [replace(bad, index=kept[bad.index]) for bad in bad_items]
        left_out = _counted([*bad_labels, *bad_items], len(whole), data)
        merged_scores, merged_labels, shown_names = merge_classes(scores, used_labels, class_names)
        counts = confusion_counts(merged_scores, merged_labels)
        return Outcome(numbers, meta | left_out, lambda: {"confusion.png": plots.confusion_matrix(counts, shown_names)})

    return run


def _load_compositionality(embedder: Embedder, arguments: EvaluationArguments, data: EvaluationDataArguments) -> Run:
    modality = _modality(embedder, data)
    options: dict[str, Any] = {
        "modality": modality,
        "split": data.composition_split,
        "media_folder": data.composition_media,
        "text_column": data.text_column,
        "negative_text_column": data.negative_text_column,
    }
    sources = list(data.composition_data or ())
    sets = {one.name: one for source in sources for one in load_composition(source, **options)}
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


def _named_after(name: str, found: Mapping[str, float], kept: Resamples) -> dict[str, float]:
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
    _counted(own_bad, len(tests), data)
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


def _counted(bad_items: Sequence[BadItem], total: int, data: EvaluationDataArguments) -> dict[str, Any]:
    """What the results of a task say of items that were left out.

    Raises:
        TooManyBadItemsError: they are more than `--max_bad_fraction` of `total`.
    """
    check_share(bad_items, total, data.max_bad_fraction)
    return {"bad_items": summary(bad_items)}


def unlabelled(table: Dataset, modality: Modality, on_bad_item: str) -> list[BadItem]:
    """The items without a class.

    Raises:
        BadItemError: there is one, with `on_bad_item="error"`.
    """
    found = []
    for index, label in enumerate(table["text"]):
        if label is None or (isinstance(label, str) and not label.strip()):
            item_id, error = table[index]["id"], BadItemError("no class", "null" if label is None else repr(label))
            if on_bad_item == "error":
                with naming(f"item {item_id}"):
                    raise error
            found.append(BadItem(index, item_id, path_of(table[index][modality]), error.reason, error.detail))
    return found


def class_labels(table: Dataset) -> tuple[list[int], list[str]]:
    """Class indices and names from the column `text` of `load_pairs`: names, or integers with `ClassLabel` names."""
    feature, names = table.features["text"], table["text"][:]
    if None in names:
        raise ValueError(f"item {names.index(None)} has no class: leave it out of the data")
    if isinstance(feature, ClassLabel):
        return names, feature.names
    names = [str(name).strip() for name in names]  # names that are equal after trimming are one class
    classes = sorted(set(names))
    if all(name.isdigit() for name in classes):
        logger.warning("The class names are numbers (%s, ...), which say nothing to a text encoder.", classes[0])
    return [classes.index(name) for name in names], classes


def read_class_names(path: Path, num_classes: int) -> list[str]:
    """The class names of a text file, one a line.

    Raises:
        ValueError: other numbers of lines than classes, or an empty one.
    """
    names = path.read_text(encoding="utf-8").splitlines()
    if len(names) != num_classes or not all(name.strip() for name in names):
        raise ValueError(f"--class_names {path} has {len(names)} names, the data has {num_classes} classes: one a line")
    return names


def fold_labels(source: str, modality: Modality, split: str, column: str) -> list[Any]:
    """The fold of each item that `load_pairs` gives.

    Raises:
        ValueError: no such column, or an item without a fold.
    """
    table = load_rows(source, modality=modality, split=split)
    if column not in table.column_names:
        raise ValueError(f"--fold_column {column}: the columns are {', '.join(table.column_names)}")
    folds = table[column][:]
    if None in folds:
        raise ValueError(f"item {folds.index(None)} has no fold: leave it out of the data, or drop --fold_column")
    return folds


def _modality(embedder: Embedder, data: EvaluationDataArguments) -> Modality:
    modality = data.modality or embedder.modality
    if modality is None:
        raise ValueError("this model takes text only: retrieval, zero_shot and representation need a two-tower model")
    return modality


def _same_data(first: Results, second: Results, task: str, names: Sequence[str] = _IDENTIFYING) -> bool:
    """Whether both results of a task are of the same data in the same protocol."""
    metas = [results["meta"]["tasks"].get(task, {}) for results in (first, second)]
    used = [sorted(_left_out(results, task)["ids"]) for results in (first, second)]
    return used[0] == used[1] and all(metas[0].get(name) == metas[1].get(name) for name in names)


def _left_out(results: Results, task: str) -> dict[str, Any]:
    """What a task left out of its data: nothing, for tasks of texts and for results of before items were left out."""
    meta = results.get("meta", {}).get("tasks", {}).get(task, {})
    return meta.get("bad_items") or summary([])


def same_draws(first: Results, second: Results, task: str) -> bool:
    """Whether the resamples of two results of a task are paired: of the same data, in the same draws."""
    return _same_data(first, second, task, (*_IDENTIFYING, *_DRAWS))


def task_of(name: str) -> str:
    """The task of "task.metric"."""
    return name.partition(".")[0]


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"

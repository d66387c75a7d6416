"""Figures of an evaluation. Each function returns a Matplotlib `Figure`; write it with `figure.savefig(path)`.

Figures are made through Matplotlib's object interface: no window, no global state, safe in any thread.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from xmodal_hf.data.modalities import MODALITIES

from .representation import singular_spectrum, unit_rows
from .retrieval import gold_pairs

# Okabe & Ito's palette, which people with any colour vision tell apart.
COLOURS: dict[str, str] = {"text": "#D55E00", **{name: spec.colour for name, spec in MODALITIES.items()}}
_CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = "osD^v"  # the marker changes when all colours have been used
_FRAME = "#0072B2"
_GREY = "#8C8C8C"
_DPI = 150
_SMOOTHING_SHARE = 0.02  # loss curves are averaged over this share of their steps
_SPECTRUM_FLOOR = 1e-5  # relative to the largest value; smaller values are rounding errors of float32
_MAX_ANNOTATED_CLASSES = 20
_LABEL_CHARACTERS = 22  # so many fit beside the pictures at 11 points
_SHOWN_DECIBELS = 80
_CAPTION_CHARACTERS = 36  # so many fit below the pictures at 6.5 points
_METHODS = {"pca": "PCA", "tsne": "t-SNE"}


def joint_map(
    modality_embeds: Any,
    text_embeds: Any,
    text_to_item: Any = None,
    *,
    modality: str = "image",
    method: str = "pca",
    max_items: int = 200,
    seed: int = 0,
) -> Figure:
    """Both modalities in two dimensions, each item joined to its first caption by a line.

    Args:
        modality_embeds: Image or audio embeddings of shape (N, D).
        text_embeds: Caption embeddings of shape (M, D).
        text_to_item: Item of each caption, of shape (M,). None means row i for row i.
        modality: Modality: "image" or "audio".
        method: Projection method: "pca" keeps distances between clusters, and so shows the modality gap; "tsne" keeps
            neighbourhoods.
        max_items: Maximum number of items that are shown; they are drawn with the seed.
        seed: Seed of the draw and of t-SNE.
    """
    items, texts = _drawn_pairs(modality_embeds, text_embeds, text_to_item, max_items, seed)
    points = _project(np.concatenate([items, texts]), method, seed)  # (2n, 2)
    item_points, text_points = np.split(points, 2)
    figure, axes = _figure(5.5, 5.0)
    segments = np.stack([item_points, text_points], axis=1)  # (n, 2 ends, 2)
    axes.add_collection(LineCollection(list(segments), colors=_GREY, linewidths=0.5, alpha=0.35, zorder=1))
    for name, xy, marker in ((modality, item_points, "o"), ("text", text_points, "^")):
        axes.scatter(
            xy[:, 0], xy[:, 1], s=16, marker=marker, color=COLOURS[name], alpha=0.8, linewidths=0, label=name, zorder=2
        )
    axes.spines[:].set_visible(False)  # projected axes have no units
    axes.set(xticks=[], yticks=[], title=f"{modality} and text, {len(items)} pairs ({_METHODS[method]})")
    axes.set_aspect("equal", adjustable="datalim")  # distances in both directions can be compared
    axes.margins(0.05)
    # the legend is below, because points fill the panel
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=2)
    return figure


def cosine_histogram(
    modality_embeds: Any, text_embeds: Any, text_to_item: Any = None, *, modality: str = "image", seed: int = 0
) -> Figure:
    """Cosines of true pairs against those of random pairs; arguments as `joint_map`."""
    items, texts = unit_rows(modality_embeds, f"{modality}_embeds"), unit_rows(text_embeds, "text_embeds")
    text_item = gold_pairs(text_to_item, len(texts), len(items))[1]
    shifted = (text_item + np.random.default_rng(seed).integers(1, len(items), size=len(texts))) % len(items)
    paired = (texts * items[text_item.tolist()]).sum(dim=1).cpu().numpy()
    unpaired = (texts * items[shifted.tolist()]).sum(dim=1).cpu().numpy()
    figure, axes = _figure(5.5, 3.5)
    num_bins = int(np.clip(np.sqrt(len(texts)), 10, 60))
    bins = np.linspace(min(paired.min(), unpaired.min()), max(paired.max(), unpaired.max()), num_bins).tolist()
    for name, values, colour in (("unpaired", unpaired, _GREY), ("paired", paired, COLOURS[modality])):
        axes.hist(values, bins=bins, density=True, alpha=0.65, color=colour, label=f"{name} (mean {values.mean():.2f})")
    axes.set(xlabel=f"cosine of text and {modality}", ylabel="density", title="Paired and unpaired cosines")
    axes.legend(frameon=False)
    return figure


def spectrum(embeds: Mapping[str, Any]) -> Figure:
    """Singular spectra of centred embeddings, one line a name: a steep line uses few dimensions."""
    figure, axes = _figure(5.5, 3.5)
    highest = 0.0
    for colour, (name, rows) in zip(_cycled(len(embeds)), embeds.items(), strict=True):
        values = singular_spectrum(rows)
        highest = max(highest, float(values[0]))
        axes.plot(np.arange(1, len(values) + 1), values, color=COLOURS.get(name, colour), label=name)
    axes.set(xlabel="principal axis", ylabel="standard deviation", yscale="log", title="Singular spectrum")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], _SPECTRUM_FLOOR * highest))
    axes.legend(frameon=False)
    return figure


def alignment_uniformity_scatter(
    models: Mapping[str, Mapping[str, float]], uniformity: str = "text_uniformity"
) -> Figure:
    """One point a model, from its `evaluate_representation` results: lower left is better (Wang & Isola 2020)."""
    figure, axes = _figure(7.0, 4.0)
    for index, (colour, (name, results)) in enumerate(zip(_cycled(len(models)), models.items(), strict=True)):
        marker = _MARKERS[index // len(_CYCLE) % len(_MARKERS)]
        axes.scatter(results[uniformity], results["alignment"], s=60, color=colour, marker=marker, zorder=2, label=name)
    # The names are beside the panel, because names at points that are close would overlap.
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    axes.margins(0.15)
    axes.grid(color="#E5E5E5", zorder=0)
    axes.set(
        xlabel=f"{uniformity.replace('_', ' ')} (lower is more uniform)",
        ylabel="alignment (lower is closer)",
        title="Alignment and uniformity",
    )
    return figure


def confusion_matrix(counts: Any, class_names: Sequence[str]) -> Figure:
    """Share of each true class (row) that was taken for each class (column), from (C, C) counts."""
    counts = np.asarray(counts, dtype=np.float64)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    num_classes = len(class_names)
    side = float(np.clip(1.6 + 0.45 * num_classes, 4.0, 14.0))
    figure, axes = _figure(side, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    places = np.arange(num_classes)
    axes.set_xticks(places, class_names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(places, class_names)
    axes.set(xlabel="predicted", ylabel="true", title="Confusion (% of the true class)")
    if num_classes <= _MAX_ANNOTATED_CLASSES:
        for row, column in zip(*np.nonzero(shares >= 0.5), strict=True):
            colour = "white" if shares[row, column] > 55 else "black"
            axes.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=8)
    return figure


def loss_curves(logs: Mapping[str, str | Path], key: str = "loss") -> Figure:
    """One panel a training log: `key` at every step, faint, and its running mean.

    Args:
        logs: Dictionary from title to the path of a JSONL file whose lines have `step` and `key`; lines without them
            are skipped.
        key: Name of the logged number.

    Raises:
        ValueError: If a log has no line with `key`.
    """
    figure = Figure(figsize=(4.5 * len(logs), 3.2), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(logs), squeeze=False)[0]
    for axes, (title, path) in zip(all_axes, logs.items(), strict=True):
        steps, values = _read_log(Path(path), key)
        window = max(1, round(_SMOOTHING_SHARE * len(values)))
        axes.plot(steps, values, color=_CYCLE[0], alpha=0.25, linewidth=0.8)
        axes.plot(steps, _running_mean(values, window), color=_CYCLE[0], linewidth=1.6, label=f"mean of {window} steps")
        axes.set(xlabel="step", ylabel=key, title=title)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    return figure


def contact_sheet(
    queries: Sequence[str],
    results: Sequence[Sequence[Image.Image]],
    scores: Sequence[Sequence[float]] | None = None,
    captions: Sequence[Sequence[str]] | None = None,
    framed: Sequence[Sequence[bool]] | None = None,
) -> Figure:
    """One row per query: its words, then the pictures that answer it, best first, with cosines and captions if given.

    Those that `framed` names get a blue frame: held-out ones among those that training saw.

    Sounds are shown as pictures of their spectrograms (`spectrogram_picture`), which need their captions.
    """
    num_columns = max(len(images) for images in results)
    width, height = (1.25, 1.45) if captions is None else (1.9, 1.3)  # size of a picture with its label, in inches
    figure = Figure(figsize=(2.6 + width * num_columns, height * len(queries)), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(queries), num_columns + 1, width_ratios=[2.0] + [width / 1.25] * num_columns)
    for row, (query, images) in enumerate(zip(queries, results, strict=True)):
        label = figure.add_subplot(grid[row, 0])
        label.axis("off")
        label.text(1.0, 0.5, textwrap.fill(query, _LABEL_CHARACTERS), ha="right", va="center", fontsize=11)
        for column, image in enumerate(images):
            axes = figure.add_subplot(grid[row, column + 1])
            axes.imshow(np.asarray(image.convert("RGB")), aspect="equal" if captions is None else "auto")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("#D9D9D9")
            if framed is not None and framed[row][column]:
                axes.spines[:].set(color=_FRAME, linewidth=2.5)
            lines = [] if scores is None else [f"{scores[row][column]:.2f}"]
            lines += [] if captions is None else [textwrap.fill(captions[row][column], _CAPTION_CHARACTERS)]
            axes.set_xlabel("\n".join(lines), fontsize=8 if captions is None else 6.5, color=_GREY, labelpad=2)
    return figure


def spectrogram_picture(spectrogram: Any) -> Image.Image:
    """A (frames, bands) spectrogram in decibels as a picture: time from left to right, low bands at the bottom."""
    values = np.asarray(spectrogram, dtype=np.float32).T[::-1]  # (bands, frames)
    values = np.maximum(values, values.max() - _SHOWN_DECIBELS)
    shades = (values - values.min()) / max(float(values.max() - values.min()), 1e-9)
    return Image.fromarray((colormaps["magma"](shades)[..., :3] * 255).astype(np.uint8))


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """One clean panel; sizes in inches."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _drawn_pairs(
    modality_embeds: Any, text_embeds: Any, text_to_item: Any, max_items: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) items and (n, D) first captions of a seeded draw of items."""
    items, texts = unit_rows(modality_embeds, "modality_embeds"), unit_rows(text_embeds, "text_embeds")
    text_item = gold_pairs(text_to_item, len(texts), len(items))[1]
    captioned, first_text = np.unique(text_item, return_index=True)
    count = min(max_items, len(captioned))
    drawn = np.sort(np.random.default_rng(seed).choice(len(captioned), size=count, replace=False))
    return items.cpu().numpy()[captioned[drawn]], texts.cpu().numpy()[first_text[drawn]]


def _project(rows: np.ndarray, method: str, seed: int) -> np.ndarray:
    """(n, D) to (n, 2)."""
    if method == "pca":
        return PCA(n_components=2, svd_solver="full").fit_transform(rows)
    if method == "tsne":
        perplexity = min(30.0, (len(rows) - 1) / 3)  # scikit-learn's default of 30 needs more rows than that
        # If all rows are equal, as for a collapsed model, the principal components have no spread to start from.
        init = "pca" if rows.std(axis=0).max() > 0 else "random"
        with threadpool_limits(1):  # for some hundred points, threads cost more than they save
            return TSNE(metric="cosine", init=init, perplexity=perplexity, random_state=seed).fit_transform(rows)
    raise ValueError(f"unknown method {method!r}: one of {', '.join(_METHODS)}")


def _read_log(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    rows = [(line["step"], line[key]) for line in lines if "step" in line and key in line]
    if not rows:
        raise ValueError(f"{path} has no line with both 'step' and {key!r}")
    steps, values = zip(*rows, strict=True)
    return np.array(steps), np.array(values, dtype=np.float64)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values, of fewer at the start."""
    sums = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _cycled(count: int) -> list[str]:
    return [_CYCLE[index % len(_CYCLE)] for index in range(count)]

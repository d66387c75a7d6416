"""Inputs that the models of a study share: a tokenizer, captions and samples of classes, baselines."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..data.layouts import METADATA_FILES
from ..data.sentences import load_sentences, load_triplets
from ..data.tables import load_table
from ..hub.packaged_towers import prepare_towers
from ..training.tokenizer import train_tokenizer
from .language_model import make_language_model
from .untrained import make_random_word_vectors, make_untrained_tower


def check_prepared(preparations: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Check that what is there of the preparations was made with their options.

    Args:
        preparations: Dictionary of name to options, as `prepare` takes them.
        folder: Folder of the study.

    Raises:
        ValueError: If a kind is unknown, or a folder was made with other options.
    """
    for name, options in preparations.items():
        kind = options.get("kind")
        if kind not in PREPARATIONS:
            raise ValueError(f"prepare: {name} has the kind {kind!r}, known are {', '.join(PREPARATIONS)}")
        target, path = folder / name, _options_path(folder / name)
        is_made = target.is_dir() and path.is_file()
        if is_made and yaml.safe_load(path.read_text(encoding="utf-8")) != options:
            raise ValueError(
                f"{target} has been made with other options than the grid has now: remove it and what was "
                "trained with it, or choose another --output_dir"
            )


def _options_path(target: Path) -> Path:
    """File of the options of a preparation: beside its folder, whose files are all data."""
    return target.with_name(f"{target.name}.yaml")


def prepare(preparations: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Make what is not there yet: `<folder>/<name>` for each {name: {kind: one of `PREPARATIONS`, ...}}.

    Raises:
        ValueError: If a kind is unknown, or a folder was made with other options.
    """
    check_prepared(preparations, folder)
    for name, options in preparations.items():
        kind, target = options["kind"], folder / name
        if target.is_dir():
            continue
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        PREPARATIONS[kind](partial, **{key: value for key, value in options.items() if key != "kind"})
        _options_path(target).write_text(yaml.safe_dump(dict(options), sort_keys=False), encoding="utf-8")
        partial.rename(target)


def make_tokenizer(
    folder: Path, *, sentences: Sequence[str] = (), triplets: Sequence[str] = (), vocab_size: int, max_length: int
) -> None:
    """Train the tokenizer of all models of a study on all its texts: else the vocabulary would differ with the data.

    Args:
        folder: Folder in which the tokenizer is saved.
        sentences: Sources for `load_sentences`: corpora, and tables of captions.
        triplets: Sources for `load_triplets`.
        vocab_size: Maximum number of tokens in the vocabulary.
        max_length: Value of the tokenizer's `model_max_length`.
    """
    texts = [text for source in sentences for text in load_sentences(source)["anchor"]]
    for source in triplets:
        table = load_triplets(source)
        texts += [text for column in table.column_names for text in table[column] if text is not None]
    train_tokenizer(texts, vocab_size=vocab_size, max_length=max_length).save_pretrained(folder)


def make_captioned_clips(folder: Path, *, sets: Mapping[str, Mapping[str, Any]], seed: int = 0) -> None:
    """Make an audio folder with captions of clips that have a class: by templates, and their titles.

    The rows of all sets are mixed, so that the first ones are a sample of them.

    Args:
        folder: Folder for metadata.jsonl (file_name, text, category, set, split, and fold where there are some) and
            for the zip archives beside the tables, each under the name of its set.
        sets: Dictionary from the name of a set to its options: `clips`, a table with `file`, the class and, for some
            clips, `freesound_title` (ESC-10, ESC-50); `templates` of the captions by class, with {} for its name;
            `category`, the column of the class (default: category); `test_folds`, official folds that make the test
            split, of a table with `fold`. Without them the table has `split`.
        seed: Seed of the order.

    Raises:
        ValueError: If no clip has one of the folds, or a table has neither folds that are asked for nor splits.
    """
    rows = [row for name, options in sets.items() for row in _clip_rows(name, **options)]
    order = np.random.default_rng(seed).permutation(len(rows))
    lines = "".join(json.dumps(rows[index], ensure_ascii=False) + "\n" for index in order)
    (folder / METADATA_FILES[0]).write_text(lines, encoding="utf-8")
    for name, options in sets.items():
        for archive in Path(options["clips"]).parent.glob("*.zip"):
            shutil.copy(archive, folder / f"{name}_{archive.name}")


def _clip_rows(
    name: str, *, clips: str, templates: Sequence[str], category: str = "category", test_folds: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """The rows of one set."""
    table = load_table(clips, split="all")
    if not test_folds and "split" not in table.column_names:
        raise ValueError(f"{clips} has no column split: say which are the test_folds")
    unknown = sorted(set(test_folds) - set(table["fold"][:])) if test_folds else []
    if unknown:
        raise ValueError(f"{clips} has no fold {unknown[0]}")
    rows = []
    for row in table:
        label = row[category].replace("_", " ")
        is_test = row["fold"] in test_folds if test_folds else row["split"] == "test"
        title = (row.get("freesound_title") or "").strip()
        rows.append(
            {
                "file_name": row["file"],
                "text": [template.format(label) for template in templates] + ([title] if title else []),
                "category": row[category],
                "set": name,
                "split": "test" if is_test else "train",
            }
            | ({"fold": row["fold"]} if test_folds else {})
        )
    return rows


def make_class_sample(folder: Path, *, archive: str, per_class: int, seed: int = 0) -> None:
    """Make a zip archive with some items of each class of another one, to classify fewer.

    Args:
        folder: Folder for the archive, `test.zip`.
        archive: Zip archive of one folder per class.
        per_class: Number of items of each class.
        seed: Seed of the draw.

    Raises:
        ValueError: If a class has fewer items.
    """
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(folder / "test.zip", "w") as target:
        classes: dict[str, list[str]] = {}
        for name in sorted(source.namelist()):
            if not name.endswith("/"):
                classes.setdefault(str(Path(name).parent), []).append(name)
        generator = np.random.default_rng(seed)
        for label, names in classes.items():
            if len(names) < per_class:
                raise ValueError(f"the class {label} of {archive} has {len(names)} items, fewer than {per_class}")
            for index in np.sort(generator.choice(len(names), size=per_class, replace=False)):
                target.writestr(names[index], source.read(names[index]))


def make_towers(folder: Path, **towers: Mapping[str, Any] | None) -> None:
    """Make towers with real weights from packages, as `prepare_towers.py` does.

    Args:
        folder: Folder in which one folder per modality is made.
        towers: Dictionary from modality to options of its conversion, such as {"image": {"image_size": 224}}.
    """
    prepare_towers(folder, {modality: options or {} for modality, options in towers.items()})


PREPARATIONS: dict[str, Callable[..., None]] = {
    "tokenizer": make_tokenizer,
    "captioned_clips": make_captioned_clips,
    "class_sample": make_class_sample,
    "language_model": make_language_model,
    "towers": make_towers,
    "random_word_vectors": make_random_word_vectors,
    "untrained_tower": make_untrained_tower,
}

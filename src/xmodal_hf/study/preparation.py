"""What the models of a study share and no data set has: one tokenizer, captions of labelled clips, baselines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..data.layouts import METADATA_FILES
from ..data.sentences import load_sentences, load_triplets
from ..data.tables import load_table
from ..hub.packaged_towers import prepare_towers
from ..training.tokenizer import train_tokenizer
from .language_model import make_language_model
from .untrained import make_random_word_vectors, make_untrained_tower


def prepare(preparations: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Make what is not there yet: `<folder>/<name>` for each {name: {kind: one of `PREPARATIONS`, ...}}.

    Raises:
        ValueError: If a kind is unknown, or a folder was made with other options.
    """
    for name, options in preparations.items():
        kind = options.get("kind")
        if kind not in PREPARATIONS:
            raise ValueError(f"prepare: {name} has the kind {kind!r}, known are {', '.join(PREPARATIONS)}")
        target = folder / name
        options_path = target.with_name(f"{target.name}.yaml")  # it is beside the folder, whose files are all data
        if target.is_dir():
            made_with = yaml.safe_load(options_path.read_text(encoding="utf-8")) if options_path.is_file() else options
            if made_with != options:
                raise ValueError(
                    f"{target} has been made with other options than the grid has now: remove it and what was "
                    "trained with it, or choose another --output_dir"
                )
            continue
        partial = target.with_name(f"{target.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        PREPARATIONS[kind](partial, **{key: value for key, value in options.items() if key != "kind"})
        options_path.write_text(yaml.safe_dump(dict(options), sort_keys=False), encoding="utf-8")
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


def make_captioned_clips(folder: Path, *, clips: str, templates: Sequence[str], test_folds: Sequence[int]) -> None:
    """Make an audio folder with captions of clips that have a class: by templates, and their titles.

    Args:
        folder: Folder for metadata.jsonl (file_name, text, category, fold, split) and the zip archives beside `clips`.
        clips: Table with `file`, `category`, `fold` and, for some clips, `freesound_title` (ESC-10, ESC-50).
        templates: Templates of the captions by class, with {} for its name.
        test_folds: Official folds that make the test split; the others train.

    Raises:
        ValueError: If no clip has one of the folds.
    """
    table = load_table(clips, split="all")
    unknown = sorted(set(test_folds) - set(table["fold"][:]))
    if unknown:
        raise ValueError(f"{clips} has no fold {unknown[0]}")
    rows = [
        {
            "file_name": row["file"],
            "text": _captions(row, templates),
            "category": row["category"],
            "fold": row["fold"],
            "split": "test" if row["fold"] in test_folds else "train",
        }
        for row in table
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / METADATA_FILES[0]).write_text(lines, encoding="utf-8")
    for archive in Path(clips).parent.glob("*.zip"):
        shutil.copy(archive, folder)


def _captions(row: Mapping[str, Any], templates: Sequence[str]) -> list[str]:
    name = row["category"].replace("_", " ")
    title = (row.get("freesound_title") or "").strip()
    return [template.format(name) for template in templates] + ([title] if title else [])


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
    "language_model": make_language_model,
    "towers": make_towers,
    "random_word_vectors": make_random_word_vectors,
    "untrained_tower": make_untrained_tower,
}

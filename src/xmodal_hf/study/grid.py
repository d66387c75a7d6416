"""The grid of a study, a YAML file: common options, axes whose levels add options, and questions about differences.

    title: ...
    variables: {data: data}                 # {data} in any text below; --set data=/elsewhere replaces it
    seeds: [0, 1, 2]
    phase1: {...}                           # options of train_sentence_embedding.py
    phase2: {...}                           # options of train_contrastive.py
    evaluation: {...}                       # options of evaluate_model.py
    axes:
      objective:
        clip: {phase2: {objective: clip}}
        cyclip: {phase2: {objective: cyclip}}
      language:
        none: {}
        unsup first: {phase1: {sentences: "{data}/sentences.txt"}}
        unsup joint: {phase2: {sentences: "{data}/sentences.txt"}}
    paper: Zhao et al. 2024                 # whose claims the study can reproduce: those with it as their source
    baselines:                              # rows beside those of the models, and chance where a task has it
      random word vectors: {kind: random_word_vectors, tokenizer: "{study}/tokenizer", hidden_size: 300}
      untrained tower: {kind: untrained_tower, text_model: "{data}/bert"}
      tower before training: {model: "{data}/bert"}
    questions:
      - claim: Unsupervised sentence training improves language quality
        compare: {language: [none, [unsup first, unsup joint]]}
        metrics: {sts.average: higher}
        source: Zhao et al. 2024, abstract  # left out for a question of one's own
        confounds: The levels differ in the texts too.
        beside: Sentence training improves retrieval   # claim of the study that --beside names, compared with it

`recipe: other.yaml` among options stands for those of that file, which lies beside this one; what is said here wins.
A cell takes one level of every axis and a seed. It has a phase 1 when one of its levels says something of it; cells
whose phase 1 has the same options share the run, and its model is evaluated too, in the tasks of texts alone. A
baseline of a kind (`preparation.PREPARATIONS`) is made once for each seed, or for those of its own `seeds`; one that
names a model is measured as it is; both in the tasks of texts alone unless `evaluation` says otherwise.

`{study}` stands for the folder of the results, `{seed}` for the seed of a cell and the name of an axis for its level as
it stands in folder names: a phase 2 may go on with the model of another cell,
`model: "{study}/models/{objective}_none_seed{seed}"`, and then takes no option of a new model.
A level with `model` of its own is a finished model that is only evaluated, such as a phase 1's in all tasks,
`model: "{study}/phase1/unsup-first_seed{seed}"`.

`cells`, a list of {axis: level or [levels]}, leaves out the cells that no entry of it names: of an axis that an entry
does not name, it takes all levels.
"""

from __future__ import annotations

import itertools
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from ..commands import read_yaml
from ..evaluation.arguments import EvaluationArguments, EvaluationDataArguments
from ..evaluation.tasks import TASKS
from ..options import check_keys
from ..training.arguments import (
    OF_A_NEW_MODEL,
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    ValidationArguments,
)

Better = Literal["higher", "lower"]

_OPTION_CLASSES: dict[str, tuple[type, ...]] = {
    "phase1": (TrainingArguments, ValidationArguments, TextModelArguments, SentenceArguments, LoraArguments),
    "phase2": (
        *(TrainingArguments, ValidationArguments, TextModelArguments, PairArguments),
        *(ContrastiveArguments, SentenceArguments, LoraArguments),
    ),
    "evaluation": (EvaluationArguments, EvaluationDataArguments),
}
# Options of phase 2 that come from the model of phase 1 if there is one.
_FROM_PHASE_1 = ("text_model", "text_config", "tokenizer", "pooling", "vocab_size")
# Options of the data of tasks of texts alone.
_OF_TEXT_TASKS = ("sts_data", "sts_protocol", "sts_sets", "transfer_data", "transfer_tasks")
_REQUIRED = ("title", "axes", "columns")
_VARIABLE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Question:
    """A statement about the difference that one level makes, all else equal.

    Attributes:
        claim: Statement that the question tests.
        axis, before, after: Axis and the two levels that are compared.
        metrics: Dictionary of "task.metric" to the direction that the statement expects.
        where: Dictionary of axis to the only level that is looked at; the other axes are averaged over.
        interaction: Axis and two of its levels; the question is then how much larger the difference is at the second.
        source: Publication that makes the statement; empty for a question of one's own.
        of_paper: Whether the source is the paper that the study reproduces.
        confounds: Description of what else differs between the levels.
        beside: Claim of another study that the answers are compared with.
    """

    claim: str
    axis: str
    before: str
    after: str
    metrics: Mapping[str, Better]
    where: Mapping[str, str] = field(default_factory=dict)
    interaction: tuple[str, str, str] | None = None
    source: str = ""
    of_paper: bool = False
    confounds: str = ""
    beside: str = ""


@dataclass(frozen=True)
class Cell:
    """One model of the grid.

    Attributes:
        name: Name of its folder.
        levels: Dictionary of axis to level.
        seed: Seed of its training.
        phase1: Name and options of the run that gives the text tower; None without one.
        phase2: Options of phase 2, without `text_model` if phase 1 gives it.
        model: Finished model that is only evaluated; None for a model that is trained.
        evaluation: Options of the evaluation.
        phase1_levels: Levels on which phase 1 depends.
    """

    name: str
    levels: Mapping[str, str]
    seed: int
    phase1: tuple[str, Mapping[str, Any]] | None
    phase2: Mapping[str, Any]
    model: str | None
    evaluation: Mapping[str, Any]
    phase1_levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Baseline:
    """A model that the study compares with and does not train.

    Attributes:
        name: Name of its row.
        seed: Seed of its random weights; None for a model that exists.
        model: Folder or Hub id of the model.
        evaluation: Options of the evaluation.
    """

    name: str
    seed: int | None
    model: str
    evaluation: Mapping[str, Any]

    @property
    def folder_name(self) -> str:
        """Name of the folder of its results."""
        return "_".join(["baseline", slug(self.name), *([] if self.seed is None else [f"seed{self.seed}"])])


@dataclass(frozen=True)
class Study:
    """A grid with its variables filled in.

    Attributes:
        grid: Mapping of the YAML file, with the recipes that it names; it is kept with the results.
        columns: Dictionary of heading to "task.metric" of the headline table.
    """

    title: str
    grid: Mapping[str, Any]
    cells: tuple[Cell, ...]
    questions: tuple[Question, ...]
    columns: Mapping[str, str]
    prepare: Mapping[str, Mapping[str, Any]]
    baselines: tuple[Baseline, ...] = ()

    @classmethod
    def read(cls, path: Path, folder: Path, variables: Mapping[str, str] | None = None) -> Study:
        """Read a grid.

        Args:
            path: Path of the YAML file.
            folder: Folder of the results, for `{study}`.
            variables: Variables that replace those of the grid.

        Raises:
            ValueError: If there is no such file, a key is missing or unknown, or an option, axis, level or variable is
                unknown.
        """
        raw = _resolved(read_yaml(path), path.parent)
        keys = ("title", "variables", "seeds", "prepare", "phase1", "phase2", "evaluation", "axes", "cells", "columns")
        _require(raw, _REQUIRED, path)
        check_keys(raw, (*keys, "paper", "baselines", "questions"), path)
        known = {name: str(value) for name, value in (raw.get("variables") or {}).items()}
        check_keys(variables or {}, known, "--set")
        own = {name: f"{{{name}}}" for name in ("seed", *map(str, raw["axes"]))}  # these are known when a cell is
        filled = _fill(raw, own | known | dict(variables or {}) | {"study": str(folder)})
        filled["axes"] = {
            str(axis): {_level(level, path): options or {} for level, options in levels.items()}
            for axis, levels in filled["axes"].items()
        }
        baselines, made = _baselines(filled, folder, path)
        return cls(
            title=filled["title"],
            grid=raw,
            cells=tuple(_cells(filled, path)),
            questions=tuple(
                question
                for entry in filled.get("questions", [])
                for question in _questions(entry, filled["axes"], path, filled.get("paper") or "")
            ),
            columns=filled["columns"],
            prepare={**(filled.get("prepare") or {}), **made},
            baselines=baselines,
        )


def _require(entry: Any, keys: Sequence[str], where: Any) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} must be a mapping with {', '.join(keys)}")
    missing = [key for key in keys if entry.get(key) is None]
    if missing:
        raise ValueError(f"{where} has no {missing[0]}")


def _level(level: Any, path: Path) -> str:
    """The name of a level, which may be a number in YAML."""
    if isinstance(level, bool):
        raise ValueError(f"{path}: YAML reads a level as {level}: put yes, no, on, off, true and false in quotes")
    return str(level)


def _two_levels(entry: Any, name: str, path: Path) -> tuple[str, Any, Any]:
    """An axis and two of its levels, {axis: [first, second]}."""
    if isinstance(entry, dict) and len(entry) == 1:
        ((axis, levels),) = entry.items()
        if isinstance(levels, list) and len(levels) == 2:
            return axis, levels[0], levels[1]
    raise ValueError(f"{path}: {name} is {{axis: [level, level]}}, got {entry!r}")


def slug(text: str) -> str:
    """A text as a part of a file name."""
    return re.sub(r"[^\w.]+", "-", text.strip().lower()).strip("-")


def _resolved(value: Any, folder: Path) -> Any:
    """Put the options of a recipe in the place of its name, wherever one is."""
    if not isinstance(value, dict):
        return value
    options = {name: _resolved(part, folder) for name, part in value.items() if name != "recipe"}
    if "recipe" not in value:
        return options
    return read_yaml(folder / value["recipe"]) | options


def _fill(value: Any, variables: Mapping[str, str]) -> Any:
    """Put the variables into every text of a grid."""
    if isinstance(value, dict):
        return {name: _fill(part, variables) for name, part in value.items()}
    if isinstance(value, list):
        return [_fill(part, variables) for part in value]
    if not isinstance(value, str):
        return value
    unknown = sorted(set(_VARIABLE.findall(value)) - variables.keys())
    if unknown:
        raise ValueError(f"{value!r} has no variable {unknown[0]!r}: known are {', '.join(sorted(variables))}")
    return _VARIABLE.sub(lambda match: variables[match[1]], value)


def _cells(grid: Mapping[str, Any], path: Path) -> list[Cell]:
    common = {part: grid.get(part) or {} for part in _OPTION_CLASSES}
    axes = grid["axes"]
    for part, options in common.items():
        _check_options(options, part, path)
    for levels in axes.values():
        for level in levels.values():
            check_keys(level, (*_OPTION_CLASSES, "model"), path)
            for part in _OPTION_CLASSES:
                _check_options(level.get(part) or {}, part, path)
    chosen = [dict(zip(axes, levels, strict=True)) for levels in itertools.product(*axes.values())]
    entries = [_chosen_levels(entry, axes, path) for entry in grid.get("cells") or [{}]]
    return [
        _cell(common, axes, levels, seed)
        for levels in chosen
        if any(all(levels[axis] in allowed for axis, allowed in entry.items()) for entry in entries)
        for seed in grid.get("seeds", [0])
    ]


def _chosen_levels(entry: Any, axes: Mapping[str, Any], path: Path) -> dict[str, list[str]]:
    """Axis to the levels that an entry of `cells` takes."""
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: an entry of cells is {{axis: [levels]}}, got {entry!r}")
    check_keys(entry, axes, f"cells of {path}")
    listed = {axis: levels if isinstance(levels, list) else [levels] for axis, levels in entry.items()}
    chosen = {axis: [_level(level, path) for level in levels] for axis, levels in listed.items()}
    for axis, levels in chosen.items():
        check_keys(levels, axes[axis], f"axis {axis} of {path}")
    return chosen


def text_evaluation(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an evaluation that a model of texts alone takes, with the tasks of texts alone; {} without one."""
    wanted = map(str.strip, evaluation.get("tasks", EvaluationArguments.tasks).split(","))
    tasks = [task for task in wanted if task in TASKS and TASKS[task].needs_texts_alone]
    known = {item.name for item in fields(EvaluationArguments)} | set(_OF_TEXT_TASKS)
    kept = {name: value for name, value in evaluation.items() if name in known}
    return kept | {"tasks": ",".join(tasks)} if tasks else {}


def _baselines(
    grid: Mapping[str, Any], folder: Path, path: Path
) -> tuple[tuple[Baseline, ...], dict[str, dict[str, Any]]]:
    """The baselines of a grid, and the preparations that make those of a kind."""
    found: list[Baseline] = []
    made: dict[str, dict[str, Any]] = {}
    default = text_evaluation(grid.get("evaluation") or {})
    for name, entry in (grid.get("baselines") or {}).items():
        where = f"the baseline {name!r} of {path}"
        if not isinstance(entry, dict) or ("kind" in entry) == ("model" in entry):
            raise ValueError(f"{where} must have either a kind or a model, and not both")
        _check_options(entry.get("evaluation") or {}, "evaluation", path)
        evaluation = default | (entry.get("evaluation") or {})
        if not evaluation:
            raise ValueError(f"{where} cannot be measured: the evaluation has no task of texts alone")
        options = {key: value for key, value in entry.items() if key not in ("evaluation", "seeds")}
        if "model" in entry:
            check_keys(entry, ("model", "evaluation"), where)
            found.append(Baseline(name, None, entry["model"], evaluation))
            continue
        for seed in entry.get("seeds", grid.get("seeds", [0])):
            target = f"baselines/{slug(name)}_seed{seed}"
            made[target] = options | {"seed": seed}
            found.append(Baseline(name, seed, str(folder / target), evaluation))
    return tuple(found), made


def _check_options(options: Mapping[str, Any], part: str, path: Path) -> None:
    names = [item.name for class_ in _OPTION_CLASSES[part] for item in fields(class_)]
    check_keys(options, names, f"{part} of {path}")


def _cell(
    common: Mapping[str, Mapping[str, Any]],
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]],
    levels: Mapping[str, str],
    seed: int,
) -> Cell:
    added = {axis: axes[axis][level] for axis, level in levels.items()}
    options: dict[str, dict[str, Any]] = {
        part: dict(ChainMap(*(dict(level.get(part) or {}) for level in reversed(added.values())), dict(common[part])))
        for part in _OPTION_CLASSES
    }
    own = {"seed": str(seed)} | {axis: slug(level) for axis, level in levels.items()}
    options = _fill(options, own)
    of_phase1 = [levels[axis] for axis, level in added.items() if level.get("phase1")]
    phase2 = options["phase2"] | {"seed": seed}
    phase1 = None
    if of_phase1:
        phase1 = ("_".join(map(slug, [*of_phase1, f"seed{seed}"])), options["phase1"] | {"seed": seed})
        phase2 = {name: value for name, value in phase2.items() if name not in _FROM_PHASE_1}
    if phase2.get("model"):
        phase2 = {name: value for name, value in phase2.items() if name not in OF_A_NEW_MODEL}
    return Cell(
        name="_".join(map(slug, [*levels.values(), f"seed{seed}"])),
        levels=levels,
        seed=seed,
        phase1=phase1,
        phase2=phase2,
        model=next((_fill(level["model"], own) for level in added.values() if level.get("model")), None),
        evaluation=options["evaluation"],
        phase1_levels=tuple(of_phase1),
    )


def _questions(
    entry: Mapping[str, Any], axes: Mapping[str, Mapping[str, Any]], path: Path, paper: str
) -> list[Question]:
    """Return a question for each level that another one is compared with."""
    _require(entry, ("claim", "compare", "metrics"), f"a question of {path}")
    check_keys(entry, ("claim", "source", "compare", "metrics", "where", "interaction", "confounds", "beside"), path)
    axis, before, after = _two_levels(entry["compare"], "compare", path)
    levels_after = [_level(level, path) for level in (after if isinstance(after, list) else [after])]
    before = _level(before, path)
    where = {name: _level(level, path) for name, level in (entry.get("where") or {}).items()}
    interaction = None
    if entry.get("interaction"):
        other, low, high = _two_levels(entry["interaction"], "interaction", path)
        interaction = (other, _level(low, path), _level(high, path))
    named = [(axis, level) for level in (before, *levels_after)] + list(where.items())
    named += [(interaction[0], level) for level in interaction[1:]] if interaction else []
    for name, level in named:
        check_keys([name], axes, f"axes of {path}")
        check_keys([level], axes[name], f"axis {name} of {path}")
    check_keys(entry["metrics"].values(), ("higher", "lower"), f"metrics of {path}")
    return [
        Question(
            claim=entry["claim"],
            axis=axis,
            before=before,
            after=level,
            metrics=entry["metrics"],
            where=where,
            interaction=interaction,
            source=entry.get("source") or "",
            of_paper=bool(paper) and (entry.get("source") or "").startswith(paper),
            confounds=entry.get("confounds") or "",
            beside=entry.get("beside") or "",
        )
        for level in levels_after
    ]

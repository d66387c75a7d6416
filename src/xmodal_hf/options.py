"""Declaring, parsing, reading and saving the options of all commands.

An option is a field of a dataclass, with its default and its help text. A recipe is a YAML file of the same fields. It
is read before the command line, which wins.
"""

import dataclasses
import difflib
import json
import sys
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import yaml

from .commands import DEBUG, DEBUG_HELP, OneLineErrors, check_sources, read_yaml
from .messages import show_messages


def option(default: Any, description: str, choices: Container[str] | None = None) -> Any:
    """Return a dataclass field with its default, its help text and, where its type does not say them, its choices."""
    return field(default=default, metadata={"help": description} | ({"choices": choices} if choices else {}))


def one_or_several(names: Any) -> Any:
    """Return one name for a list of one: recipes and training states have held it so before there could be several."""
    return names[0] if isinstance(names, list) and len(names) == 1 else names


def parse_arguments(
    classes: Sequence[type],
    description: str,
    args: Sequence[str] | None = None,
    check: Callable[..., None] | None = None,
) -> tuple[Any, ...]:
    """Parse `--recipe FILE` and the command line into one instance of each dataclass; the command line wins.

    `check` gets the instances and raises a ValueError for a combination that makes no sense. Exits with one line and
    status 2 for an unknown option, a wrong value or a rejected combination.
    """
    # Not at the top: dataclasses and their checks are used without a parser too.
    from transformers.hf_argparser import HfArgumentParser

    show_messages()

    class Parser(OneLineErrors, HfArgumentParser):
        """Of dataclasses."""

    parser = Parser(classes, description=description)
    parser.add_argument("--recipe", help="YAML file of these options; the command line wins.")
    parser.add_argument(DEBUG, action="store_true", help=DEBUG_HELP)
    args = list(sys.argv[1:] if args is None else args)
    known, _ = parser.parse_known_args(args)
    try:
        recipe_args = [] if known.recipe is None else recipe_to_args(Path(known.recipe), classes)
        *instances, _ = parser.parse_args_into_dataclasses([*recipe_args, *args], look_for_args_file=False)
        if check is not None:
            check(*instances)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    return tuple(instances)


def recipe_to_args(path: Path, classes: Sequence[type]) -> list[str]:
    """Return a recipe as command-line arguments.

    Raises:
        ValueError: when the file is missing, no YAML or no mapping, or has an unknown key (the nearest valid one is
            named).
    """
    recipe = read_yaml(path)
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} must be a mapping of options, got {type(recipe).__name__}")
    valid = [item.name for class_ in classes for item in dataclasses.fields(class_)]
    check_keys(recipe, valid, path)
    args = []
    for key, value in recipe.items():
        if isinstance(value, list):
            args += [f"--{key}", *map(str, value)] if value else []
        elif value is not None:
            args.append(f"--{key}={json.dumps(value) if isinstance(value, dict) else value}")
    return args


def check_keys(mapping: Iterable[Any], valid: Iterable[str], source: object) -> None:
    """Raise a ValueError for the first unknown key of what `source` holds; it names the nearest valid one."""
    valid = list(valid)
    for key in mapping:
        if key not in valid:
            nearest = difflib.get_close_matches(str(key), valid, n=1, cutoff=0)
            hint = f": did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"{source} has an unknown key {key!r}{hint}")


# Option -> what its value names: a model or a data set, here or on the Hub.
_SOURCES: dict[str, Literal["model", "dataset"]] = {
    **dict.fromkeys(("model", "text_model", "image_model", "audio_model", "tokenizer"), "model"),
    **dict.fromkeys(("dataset", "sentences", "triplets", "eval_sts", "eval_dataset", "pairs"), "dataset"),
    **dict.fromkeys(("zero_shot_data", "composition_data", "query_bank"), "dataset"),
}


def check_inputs(*arguments: Any) -> None:
    """Check that the models and data sets which some options name are there, before any work.

    Raises:
        FileNotFoundError: for one that is neither here nor on the Hub; the message names the option.
        OSError: when the Hub would have to be asked and does not answer.
    """
    values = {item.name: getattr(part, item.name) for part in arguments for item in dataclasses.fields(part)}
    check_sources((f"--{name}", kind, values[name]) for name, kind in _SOURCES.items() if name in values)


def local_sources(*arguments: Any) -> list[str]:
    """Return those names of models and data sets that are files or folders here; no others can tell from the name."""
    values = [
        getattr(part, item.name) for part in arguments for item in dataclasses.fields(part) if item.name in _SOURCES
    ]
    names = [name for value in values for name in ([value] if isinstance(value, str) else value or [])]
    return [name for name in dict.fromkeys(names) if Path(name).expanduser().exists()]


def read_recipe(path: Path, classes: Sequence[type]) -> tuple[Any, ...]:
    """Return the instances of some dataclasses from a resolved recipe, which may hold fields of others too."""
    recipe = read_yaml(path)
    fields_of = [{item.name for item in dataclasses.fields(class_)} for class_ in classes]
    return tuple(
        class_(**{name: value for name, value in recipe.items() if name in names})
        for class_, names in zip(classes, fields_of, strict=True)
    )


def save_recipe(path: Path, *arguments: Any) -> None:
    """Write the resolved options as a recipe that gives the same run."""
    resolved: dict[str, Any] = {}
    for instance in arguments:
        resolved |= dataclasses.asdict(instance)
    path.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")

"""Declaring, parsing, reading and saving the options of all commands.

An option is a field of a dataclass, with its default and its help text. A recipe is a YAML file of the same fields. It
is read before the command line, which wins.
"""

import argparse
import dataclasses
import difflib
import json
import logging
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from .commands import CommandParser, ManualFormatter, check_sources, read_yaml
from .shipped import find_recipe

logger = logging.getLogger(__name__)


def option(default: Any, description: str, choices: Container[str] | None = None) -> Any:
    """Return a dataclass field with its default, its help text and, where its type does not say them, its choices."""
    return field(default=default, metadata={"help": description} | ({"choices": choices} if choices else {}))


def one_or_several(names: Any) -> Any:
    """Return one name for a list of one: recipes and training states have held it so before there could be several."""
    return names[0] if isinstance(names, list) and len(names) == 1 else names


class OptionParser(CommandParser):
    """A parser of the fields of dataclasses, which costs no import of torch or transformers.

    An option has the name of its field; hyphens may stand for the underscores. Its type is that of the field: a number,
    a text, one of the choices of a `Literal`, several values for a list, true or false for `bool` (a bare `--option`
    means true, and `--no_option` false where true is the default); `None` in a union is the value without the option.

    The help shows each option once: the everyday ones first, then the others by topic. A class may name topics in
    `TOPICS`, a mapping of headings to the names of its options; the rest of its options stand under the first line of
    its docstring.

    Args:
        classes: Dataclasses of `option` fields.
        description: Text that `--help` shows, with its line breaks and an example.
        everyday: Names of the options that come first.
        hidden: Names of the options that the help leaves out, because they have no effect in this command.
    """

    def __init__(
        self,
        classes: Sequence[type],
        description: str | None,
        everyday: Sequence[str] = (),
        hidden: Sequence[str] = (),
    ) -> None:
        super().__init__(usage="%(prog)s [options]", description=description, formatter_class=ManualFormatter)
        self.classes = classes
        items = {item.name: (item, class_) for class_ in classes for item in dataclasses.fields(class_)}
        self._optionals.title = "everyday options" if everyday else "options"
        recipe_help = "YAML file of these options, or the name of a recipe of this package; the command line wins."
        self.add_argument("--recipe", metavar="TEXT", help=recipe_help)
        topics = [(self._optionals, everyday)]
        for class_ in classes:
            topics += [(self.add_argument_group(title), names) for title, names in _topics(class_, everyday)]
        for group, names in topics:
            for name in names:
                item, class_ = items[name]
                _add_option(group, item, get_type_hints(class_)[name], is_hidden=name in hidden)
        self.add_common_options()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, with underscores for the hyphens in the names of options."""
        args = [self._with_underscores(token) for token in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def _with_underscores(self, token: str) -> str:
        name, equals, value = token.partition("=")
        known = f"--{name[2:].replace('-', '_')}"
        return known + equals + value if name.startswith("--") and known in self._option_string_actions else token

    def parse_into_instances(self, args: Sequence[str]) -> tuple[Any, ...]:
        """Return an instance of each dataclass, made of the options in `args`."""
        values = vars(self.parse_args(args))
        return tuple(
            class_(**{item.name: values[item.name] for item in dataclasses.fields(class_)}) for class_ in self.classes
        )


def _topics(class_: type, everyday: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the headings of a class of options, each with the names of those below it, without the everyday ones."""
    topics: Mapping[str, Sequence[str]] = getattr(class_, "TOPICS", {})
    seen = {*everyday, *(name for names in topics.values() for name in names)}
    rest = [item.name for item in dataclasses.fields(class_) if item.name not in seen]
    heading = (class_.__doc__ or class_.__name__).splitlines()[0].rstrip(".")
    for title, names in {heading: rest, **topics}.items():
        if shown := [name for name in names if name not in everyday]:
            yield title, shown


def _add_option(group: Any, item: dataclasses.Field, type_: Any, *, is_hidden: bool) -> None:
    """Add the option of a field."""
    default = item.default_factory() if callable(item.default_factory) else item.default
    settings: dict[str, Any] = {"default": default, **item.metadata}
    settings["help"] = settings["help"].replace("%", "%%")  # argparse fills in placeholders
    options = [part for part in get_args(type_) if part is not type(None)]
    value_type = options[0] if get_origin(type_) in (Union, UnionType) else type_
    if get_origin(value_type) is Literal:
        settings |= {"choices": get_args(value_type), "type": type(get_args(value_type)[0])}
    elif get_origin(value_type) is list:
        settings |= {"nargs": "+", "type": get_args(value_type)[0]}
    elif value_type is bool:
        settings |= {"nargs": "?", "const": True, "type": _truth, "metavar": "BOOL"}
    else:
        settings["type"] = value_type
    if "choices" not in settings and "metavar" not in settings:
        settings["metavar"] = _METAVARS[settings["type"]]
    if default is True:
        settings["help"] += f" (default: true; --no_{item.name} means false)"
        hidden = {"default": True, "help": argparse.SUPPRESS}
        group.add_argument(f"--no_{item.name}", action="store_false", dest=item.name, **hidden)
    group.add_argument(f"--{item.name}", **settings | ({"help": argparse.SUPPRESS} if is_hidden else {}))


# Placeholders for the values of options in the help.
_METAVARS: dict[Any, str] = {int: "INT", float: "FLOAT", str: "TEXT"}


def _truth(text: str) -> bool:
    """Read a truth value as recipes and people write it."""
    is_true = text.lower() in ("true", "yes", "t", "y", "1")
    if not is_true and text.lower() not in ("false", "no", "f", "n", "0"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return is_true


def parse_arguments(
    classes: Sequence[type],
    description: str | None,
    args: Sequence[str] | None = None,
    check: Callable[..., None] | None = None,
    everyday: Sequence[str] = (),
    hidden: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Parse `--recipe NAME` and the command line into one instance of each dataclass; the command line wins.

    `description`, `everyday` and `hidden` are those of `OptionParser`, for `--help`. `check` gets the instances and
    raises a ValueError for a combination that makes no sense. Exits with one line and status 2 for an unknown option, a
    wrong value or a rejected combination.
    """
    parser = OptionParser(classes, description, everyday, hidden)
    args = list(sys.argv[1:] if args is None else args)
    recipe = parser.parse_args(args).recipe
    try:
        recipe_args = [] if recipe is None else recipe_to_args(find_recipe(recipe), classes)
        instances = parser.parse_into_instances([*recipe_args, *args])
        if check is not None:
            check(*instances)
    except (ValueError, ImportError) as error:
        parser.error(str(error))
    return tuple(instances)


def check_unset(names: Sequence[str], why: str, *arguments: Any, fix: str = "drop it") -> None:
    """Raise a ValueError for the first of some options that has another value than its default.

    Args:
        names: Names of options that have no effect in a command.
        why: Reason, which follows the name of the option in the message.
        arguments: Instances of the dataclasses that declare the options.
        fix: Remedy, with which the message ends.
    """
    for name in _other_than_default(names, arguments):
        raise ValueError(f"--{name} {why}: {fix}")


def warn_of_unused(reasons: Mapping[str, str], *arguments: Any) -> None:
    """Log a warning for each of some options that has another value than its default, and no effect.

    A recipe may be shared by several commands, so that these are no errors.

    Args:
        reasons: Dictionary of the name of an option to the reason, which follows the name in the message.
        arguments: Instances of the dataclasses that declare the options.
    """
    for name in _other_than_default(reasons, arguments):
        logger.warning("--%s has no effect here: it %s", name, reasons[name])


def _other_than_default(names: Container[str], arguments: Iterable[Any]) -> Iterator[str]:
    for part in arguments:
        for item in dataclasses.fields(part):
            default = item.default_factory() if callable(item.default_factory) else item.default
            if item.name in names and getattr(part, item.name) != default:
                yield item.name


def recipe_to_args(path: Path, classes: Sequence[type]) -> list[str]:
    """Return a recipe as command-line arguments.

    Raises:
        ValueError: If the file is missing, is not YAML or not a mapping, or has an unknown key. The message names the
            nearest valid key.
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


# Option -> kind of what its value names: a model or a data set, on this machine or on the Hub.
_SOURCES: dict[str, Literal["model", "dataset"]] = {
    **dict.fromkeys(("model", "text_model", "image_model", "audio_model", "tokenizer"), "model"),
    **dict.fromkeys(
        ("dataset", "sentences", "triplets", "paraphrases", "eval_sts", "eval_dataset", "pairs"), "dataset"
    ),
    **dict.fromkeys(("zero_shot_data", "composition_data", "query_bank"), "dataset"),
}


def check_inputs(*arguments: Any) -> None:
    """Check that the models and data sets which some options name are there, before any work.

    Raises:
        FileNotFoundError: If a source is neither on this machine nor on the Hub; the message names the option.
        OSError: If the Hub would have to be asked and does not answer.
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


def local_models(*arguments: Any) -> dict[str, Path]:
    """Return the files or folders of models that are here, by the options that name them."""
    given = {item.name: getattr(part, item.name) for part in arguments for item in dataclasses.fields(part)}
    paths = {name: Path(value).expanduser() for name, value in given.items() if _SOURCES.get(name) == "model" and value}
    return {name: path for name, path in paths.items() if path.exists()}


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


def parse_dims(values: Any) -> list[int] | None:
    """Return widths given as "512,256", as several values or as a list; None for none.

    Raises:
        ValueError: If a width is not an integer of at least 1.

    Example:
        >>> parse_dims(["512,256", 64])
        [512, 256, 64]
    """
    if values is None:
        return None
    words = [
        word.strip() for value in ([values] if isinstance(values, str) else values) for word in str(value).split(",")
    ]
    if not words or not all(word.isdigit() and int(word) for word in words):
        raise ValueError(f"--matryoshka_dims takes integers of at least 1, such as 512,256,128; got {' '.join(words)}")
    return [int(word) for word in words]

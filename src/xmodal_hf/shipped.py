"""Parts of the package that are found by name: data sets, training scripts, recipes, launch configurations.

In an installed package scripts lie in its folder `training_scripts`; in a checkout, which the package was linked to or
which is on PYTHONPATH, they lie in the folder `training_scripts` at the root of the repository.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

# Built-in data sets: name -> a function from the split to a table of `id`, `text` and the column of a modality, or the
# address of such a function, "module:name". Commands, data loading and messages read this dictionary; nothing else
# names the data sets.
BUILT_IN: dict[str, str | Callable[[str], Any]] = {
    "openmoji": "xmodal_hf.data.builtin.openmoji:load_openmoji",
    "soundfont": "xmodal_hf.data.builtin.soundfont:load_soundfont",
}

Kind = Literal["recipe", "launch configuration"]

_IN_PACKAGE = Path(__file__).parent / "training_scripts"
_IN_CHECKOUT = Path(__file__).parents[2] / "training_scripts"
# The wheel has a copy of the scripts; in a checkout, this folder has only its `__init__.py`.
IS_CHECKOUT = not (_IN_PACKAGE / "train_contrastive.py").is_file()
SCRIPTS = _IN_CHECKOUT if IS_CHECKOUT else _IN_PACKAGE
_FOLDER_OF: dict[Kind, str] = {"recipe": "recipes", "launch configuration": "accelerate_configs"}


def shipped_names(kind: Kind) -> list[str]:
    """Return the names of the shipped files of a kind, sorted.

    Example:
        >>> "multi_gpu" in shipped_names("launch configuration")
        True
    """
    return sorted(path.stem for path in (SCRIPTS / _FOLDER_OF[kind]).glob("*.yaml"))


def shipped_file(kind: Kind, name: str) -> Path:
    """Return the path of a shipped recipe or launch configuration.

    Args:
        kind: Noun for messages that says what is looked for.
        name: Name of the file, without its ending.

    Raises:
        ValueError: If the name is unknown. The message lists the nearest name and all others.

    Example:
        >>> shipped_file("recipe", "simcse_unsup_bert_base").name
        'simcse_unsup_bert_base.yaml'
    """
    names = shipped_names(kind)
    if name in names:
        return SCRIPTS / _FOLDER_OF[kind] / f"{name}.yaml"
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    raise ValueError(f"no {kind} has the name {name!r}{hint}; the {kind}s of this package are {', '.join(names)}")


def find_recipe(value: str | Path) -> Path:
    """Return the path of what `--recipe` names: a file, or a recipe of this package by its name.

    A file of that path comes first. A value with a folder or an ending in it is never taken for a name.

    Example:
        >>> find_recipe("demo_pairs").name, find_recipe("mine/demo_pairs.yaml").as_posix()
        ('demo_pairs.yaml', 'mine/demo_pairs.yaml')
    """
    path = Path(value).expanduser()
    is_name = len(path.parts) == 1 and not path.suffix
    return shipped_file("recipe", path.name) if is_name and not path.is_file() else path

"""Parts of the package that are found by name: data sets, training scripts, recipes, launch configurations.

In an installed package scripts lie in its folder `training_scripts`; in a checkout, which the package was linked to or
which is on PYTHONPATH, they lie in the folder `training_scripts` at the root of the repository.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

# Built-in data sets: name -> a function from the split to a table of `id`, `text` and the column of a modality, or the
# address of such a function, "module:name". Commands, data loading and messages read this dictionary; nothing else
# names the data sets.
BUILT_IN: dict[str, str | Callable[[str], Any]] = {
    "openmoji": "xmodal_hf.data.builtin.openmoji:load_openmoji",
    "soundfont": "xmodal_hf.data.builtin.soundfont:load_soundfont",
}

Kind = Literal["recipe", "launch configuration"]
PROGRAM = "xmodal-hf"


class Script(NamedTuple):
    """A module of `xmodal_hf.training_scripts`, and what it does in one line."""

    module: str
    help: str


# Command of the console -> the script that it runs.
SCRIPT_OF = {
    "demo": Script("run_demo", "Train, evaluate and search on built-in data, in a few minutes on two cores."),
    "train-sentence": Script("train_sentence_embedding", "Phase 1: train a sentence encoder (SimCSE)."),
    "train-contrastive": Script("train_contrastive", "Phase 2: train a dual encoder on pairs (CLIP, CyCLIP, SigLIP)."),
    "extract": Script("extract_features", "Embed every item of a data set once and keep the vectors."),
    "evaluate": Script("evaluate_model", "Measure language quality, cross-modal quality and geometry of a model."),
    "search": Script("search", "Search a feature store by text, picture or sound."),
    "convert": Script("convert_checkpoint", "Convert from and to CLIPModel, ClapModel, open_clip and LAION-CLAP."),
    "export-onnx": Script("export_onnx", "Write both towers of a model as ONNX files."),
    "publish": Script("publish_model", "Publish a model with its card, results and code on the Hub."),
    "study": Script("run_study", "Train and evaluate a grid of models and compare them."),
    "prepare-towers": Script("prepare_towers", "Make pretrained towers from packages of the package index."),
}
_COMMAND_OF = {script.module: name for name, script in SCRIPT_OF.items()}
_PATH = re.compile(
    r"(?:python |(?P<accelerate>accelerate launch(?: --\S+ \S+)*? ))?(?:training_scripts/)?(?P<module>\w+)\.py\b"
)

_IN_PACKAGE = Path(__file__).parent / "training_scripts"
_IN_CHECKOUT = Path(__file__).parents[2] / "training_scripts"
# The wheel has a copy of the scripts; in a checkout, this folder has only its `__init__.py`.
IS_CHECKOUT = not (_IN_PACKAGE / "train_contrastive.py").is_file()
SCRIPTS = _IN_CHECKOUT if IS_CHECKOUT else _IN_PACKAGE
_FOLDER_OF: dict[Kind, str] = {"recipe": "recipes", "launch configuration": "accelerate_configs"}


def with_commands(text: str) -> str:
    """Return a text that names scripts by their files with the console commands, which need no checkout, instead.

    Example:
        >>> with_commands("python training_scripts/search.py --model outputs/clip")
        'xmodal-hf search --model outputs/clip'
        >>> with_commands("accelerate launch training_scripts/extract_features.py --dataset my_pictures")
        'accelerate launch -m xmodal_hf.training_scripts.extract_features --dataset my_pictures'
        >>> with_commands("a store of extract_features.py")
        'a store of xmodal-hf extract'
    """

    def command(found: re.Match[str]) -> str:
        module = found["module"]
        if module not in _COMMAND_OF:
            return found.group()
        if found["accelerate"]:
            return f"{found['accelerate']}-m xmodal_hf.training_scripts.{module}"
        return f"{PROGRAM} {_COMMAND_OF[module]}"

    return _PATH.sub(command, text)


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

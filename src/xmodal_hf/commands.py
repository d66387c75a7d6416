"""Shared parts of all commands: parsers whose errors are one line, checks of models and data sets, and the exit status.

The mistakes of a user end a command with one line on standard error and the exit status 2: unknown options, wrong
values, files that are missing or damaged, a model or data set that nobody has, a Hub that refuses. The traceback is
shown with `--debug`. Any other exception is an error of the program and keeps its traceback and the status 1.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import itertools
import pickle
import re
import sys
import tarfile
import textwrap
import traceback
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import yaml

from .messages import EXTRA_OF, PACKAGE, VERBOSITIES, VERBOSITY, VERBOSITY_HELP, missing_package, show_messages
from .shipped import BUILT_IN, PROGRAM, with_commands

if TYPE_CHECKING:
    from huggingface_hub import HfApi

DEBUG = "--debug"
DEBUG_HELP = "Show the traceback of an error."
USER_ERROR_STATUS = 2
# Errors that users can mend. OSError includes missing files, connections and the errors of the Hub's client.
_USER_ERRORS = (
    *(ValueError, OSError, ImportError, EOFError, yaml.YAMLError),
    *(zipfile.BadZipFile, tarfile.TarError, pickle.UnpicklingError),
)
# Further errors are listed by name, because importing their modules takes seconds.
_NAMED_USER_ERRORS = {
    "datasets.exceptions.DatasetsError",
    "httpx.HTTPError",
    "httpx2.HTTPError",
    "huggingface_hub.errors.HfHubHTTPError",
    "huggingface_hub.errors.StrictDataclassError",
    "safetensors._safetensors_rust.SafetensorError",
    "soundfile.LibsndfileError",
    "xmodal_hf.data.bad_items.TooManyBadItemsError",
    "xmodal_hf.hub.publish.HubError",
    "xmodal_hf.training.checkpoint.CheckpointError",
    "xmodal_hf.training.faults.BadStepsError",
    "xmodal_hf.features.processes.OtherProcessError",
}
# An option as argparse reads it: a dash or two and a letter. Negative numbers are values.
_OPTION = re.compile(r"--?[A-Za-z][\w-]*")
# Endings of data and weights. A name with one of them is never meant as a repository of the Hub.
_FILE_ENDING = re.compile(
    r"\.(csv|tsv|json|jsonl|txt|parquet|arrow|tar|zip|gz|xz|zst|bz2|yaml|yml|safetensors|bin|pt|pth|ckpt)$",
    re.IGNORECASE,
)
# Characters of patterns and addresses, which only the reader of the data can check.
_PATTERN = re.compile(r"[*?\[\]{}]|://")
# Beginning of an error of a loader's worker in the main process (torch._utils.ExceptionWrapper).
_OF_WORKER = re.compile(r"Caught \w+ in .*\.\nOriginal ")
# Message of torch about a worker that was killed (torch.utils.data.dataloader).
_WORKER_DIED = re.compile(r"DataLoader worker (\(pid|is killed)")
# Files of a training's output folder: those that it writes first, and one of those that it writes with the model.
_FIRST_FILES, _MODEL_CONFIGS = {"recipe.yaml", "run.json"}, {"config.json", "adapter_config.json"}
_TRACEBACK = "Traceback (most recent call last):\n"
# Maximum time to wait for an answer of the Hub, in seconds.
_HUB_TIMEOUT = 10.0


class OneLineErrors(argparse.ArgumentParser):
    """A parser whose errors are one line, and which names the nearest option for each that it does not know.

    Unknown options are reported first, before options that are missing: a misspelt option often is the missing one.
    Options are not abbreviated.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(USER_ERROR_STATUS, f"{self.prog}: error: {one_line(message)}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments, after a check for unknown options."""
        args = list(sys.argv[1:] if args is None else args)
        unknown = [token for token in _option_tokens(args) if token not in self._option_string_actions]
        if unknown:
            valid = [name for name in self._option_string_actions if name.startswith("--")]
            self.error("; ".join(f"unknown option {name}: {_did_you_mean(name, valid)}" for name in unknown))
        return super().parse_known_args(args, namespace)


class CommandParser(OneLineErrors):
    """A parser with the options of all commands: what is printed, and how much of an error is shown."""

    def add_common_options(self) -> None:
        """Add the options of all commands, after those of the command itself."""
        self.add_argument(VERBOSITY, choices=VERBOSITIES, default="info", help=VERBOSITY_HELP)
        self.add_argument(DEBUG, action="store_true", help=DEBUG_HELP)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments, and print messages from then on."""
        options = super().parse_args(args, namespace)
        show_messages(options.verbosity)
        return options


class ManualFormatter(argparse.RawDescriptionHelpFormatter):
    """Help that keeps the lines of the description and shows the default of every option whose text does not.

    The help of a command of `xmodal-hf` names scripts by their commands, because who installed the package has no
    folder of scripts.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return super()._fill_text(self._with_commands(text), width, indent)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(one_line(text), width, break_on_hyphens=False)  # a name with hyphens stays whole

    def _with_commands(self, text: str) -> str:
        return with_commands(text) if self._prog.startswith(f"{PROGRAM} ") else text

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = self._with_commands(action.help or "")
        is_told = "efault" in text or "Required" in text
        if is_told or action.required or not action.option_strings or action.nargs == 0:
            return text
        values = action.default if isinstance(action.default, list | tuple) else [action.default]
        shown = ", ".join(str(value) for value in values if value not in (None, ""))
        return f"{text} (default: {shown.replace('%', '%%') or 'none'})"


def command_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a command that declares its options one by one.

    Args:
        description: Text that `--help` shows, with its line breaks.
    """
    parser = CommandParser(description=description, formatter_class=ManualFormatter)
    parser.add_common_options()
    return parser


def run_command(main: Callable[[Sequence[str] | None], Any], args: Sequence[str] | None = None) -> None:
    """Run the main function of a command; a mistake of the user becomes one line and the exit status 2.

    Args:
        main: Function that takes the arguments of the command line, without the name of the program. If it exits with a
            message, that counts as an error of the user too.
        args: Arguments of the command line. Default: those of this process.

    Raises:
        SystemExit: With status 2 if the user made a mistake, otherwise as `main` raises it.

    Example:
        ```python
        if __name__ == "__main__":
            run_command(main)
        ```
    """
    args = list(sys.argv[1:] if args is None else args)
    try:
        main(args)
        return
    except SystemExit as stop:
        if not isinstance(stop.code, str):
            raise
        message = one_line(stop.code)
    except Exception as error:
        if not is_user_error(error):
            raise
        if DEBUG in args:
            traceback.print_exc()
        hint = "" if DEBUG in args else f" ({DEBUG} shows the traceback)"
        message = one_line(_own_words(str(error))) or type(error).__name__
        message += _extra_hint(error) + _remote_code_hint(message) + hint
    # This is outside the handler, so that nothing keeps the exception and the objects in its frames alive.
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(USER_ERROR_STATUS)


def _extra_hint(error: Exception) -> str:
    """Return the command that installs the optional package which a library misses, such as timm for transformers."""
    words = set(re.findall(r"\w+", str(error))) if isinstance(error, ImportError) else set()
    extras = sorted({extra for module, extra in EXTRA_OF.items() if module in words and _is_missing(module)})
    if not extras or PACKAGE in words:  # errors of this package name the extra themselves
        return ""
    return f": pip install '{PACKAGE}[{','.join(extras)}]'"


def _remote_code_hint(message: str) -> str:
    """Return what a command can do where transformers asks for an argument of `from_pretrained`."""
    if "argument `trust_remote_code=True`" not in message:
        return ""
    return (
        " Of the commands, evaluate_model.py has this option. The others load such a model in a program that imports "
        "its classes, registers them with AutoConfig and AutoModel, and calls xmodal_hf.cli.main (docs/extend.md)."
    )


def _is_missing(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def _own_words(message: str) -> str:
    """Return the message of an error without the traceback that a loader's worker sends in it."""
    if _WORKER_DIED.match(message):
        return f"{message.strip()} The system ends what takes too much memory: pass a smaller --num_workers."
    if not _OF_WORKER.match(message):
        return message
    lines = message.rpartition(_TRACEBACK)[2].splitlines()
    own = itertools.dropwhile(lambda line: line.startswith(" "), lines)  # after the frames
    return re.sub(r"^[\w.]+: ", "", "\n".join(own))


def is_user_error(error: BaseException) -> bool:
    """Tell whether an exception is about the input of a command: its options, its files, its data, the Hub.

    So is the end of a loader's worker: mostly the system has ended it for want of memory.
    """
    names = {f"{parent.__module__}.{parent.__qualname__}" for parent in type(error).__mro__}
    if isinstance(error, RuntimeError) and _WORKER_DIED.match(str(error)):
        return True
    return isinstance(error, _USER_ERRORS) or bool(names & _NAMED_USER_ERRORS)


def one_line(message: str) -> str:
    """Return a message with its line breaks and runs of spaces as single spaces."""
    return " ".join(message.split())


def format_size(gigabytes: float) -> str:
    """Return a size for people: in MB, small or large, so that the numbers of two reports can be compared.

    Args:
        gigabytes: Size in 10^9 bytes.

    Example:
        >>> format_size(1.234), format_size(0.0123)
        ('1,234.0 MB', '12.3 MB')
    """
    return f"{1000 * gigabytes:,.1f} MB"


def read_yaml(path: Path, kind: str = "recipe") -> Any:
    """Read a YAML file.

    Args:
        path: Path of the file.
        kind: Noun for messages that says what the file is, such as "recipe".

    Raises:
        ValueError: If the file is missing, is not text or is not YAML. The message names the file, the line and the
            column.
    """
    if not path.is_file():
        raise ValueError(f"no {kind} at {path}{_nearest_path(path)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 (byte {error.start}): pass a YAML file") from error
    try:
        return yaml.safe_load(text)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise ValueError(f"{path}, line {line}, column {column}: {error.reason}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(filter(None, (getattr(error, "context", None), getattr(error, "problem", None))))
        raise ValueError(f"{path}{place}: {problem or error}") from error


def check_sources(sources: Iterable[tuple[str, Literal["model", "dataset"], str | Sequence[str] | None]]) -> None:
    """Check that models and data sets are there, before any work and without long waits.

    A name is a file or folder, a built-in data set, a pattern or address (which its reader checks), or the id of a
    repository on the Hub. What looks like a path is never asked for on the Hub. The Hub is asked once, for a
    repository that is not in the cache.

    Args:
        sources: Triples (option, kind, value). A value may be None or a list.

    Raises:
        FileNotFoundError: If a path does not exist, a folder is that of a training which has not finished, or a
            repository does not exist or is not public.
        OSError: If the Hub cannot be asked.

    Example:
        >>> check_sources([("--dataset", "dataset", "openmoji"), ("--text_model", "model", None)])
    """
    for option, kind, value in sources:
        for name in [value] if isinstance(value, str) else value or []:
            _check_source(option, kind, name)


def _check_source(option: str, kind: str, name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if kind == "model":
        _check_finished(option, Path(name).expanduser())
    if Path(name).expanduser().exists() or _PATTERN.search(name) or (kind == "dataset" and name in BUILT_IN):
        return
    missing = FileNotFoundError(f"{option}: there is no file or folder {name}{_nearest_path(Path(name))}")
    if looks_like_path(name):
        raise missing
    repo_id = name.partition(":")[0] if kind == "dataset" else name  # owner/name:configuration
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise missing from None
    if not _is_cached(repo_id, kind):
        _ask_hub(option, repo_id, kind)


def _check_finished(option: str, folder: Path) -> None:
    """Raise a FileNotFoundError for the output folder of a training that has not saved its model yet."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names >= _FIRST_FILES and not names & _MODEL_CONFIGS:
        raise FileNotFoundError(
            f"{option}: the training in {folder} has not finished, so that there is no model yet: repeat its command "
            "with --resume auto"
        )


def looks_like_path(name: str) -> bool:
    """Tell whether a name cannot be meant as `name` or `owner/name` of the Hub."""
    parts = Path(name).parts
    return (
        name.startswith(("/", ".", "~"))
        or name.endswith("/")
        or "\\" in name
        or len(parts) > 2
        or (len(parts) > 1 and parts[0] == "outputs")  # the training scripts write there
        or _FILE_ENDING.search(name) is not None
    )


def _is_cached(repo_id: str, kind: str) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if any(Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=repo_id, repo_type=kind), "snapshots").glob("*")):
        return True
    # `datasets` keeps what it has prepared apart.
    return kind == "dataset" and Path(constants.HF_HOME, "datasets", repo_id.replace("/", "___")).is_dir()


def _ask_hub(option: str, repo_id: str, kind: str) -> None:
    """Ask the Hub once for a repository.

    Raises:
        FileNotFoundError: If the Hub has no repository of that name, or does not show it.
        OSError: If the Hub does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

    nearest = _nearest_path(Path(repo_id))
    neither = f"{option}: there is neither a file or folder {repo_id}{nearest} nor a {kind} of that name"
    try:
        _repository_info(HfApi(library_name="xmodal_hf"), repo_id, kind)
    except OfflineModeIsEnabled:
        raise FileNotFoundError(f"{neither} in the cache, and HF_HUB_OFFLINE=1 forbids asking the Hub") from None
    except GatedRepoError:
        return  # the repository exists; whether this user may read it shows when its files are read
    except RepositoryNotFoundError:
        raise FileNotFoundError(f"{neither} on the Hub that your access token may read") from None
    except (HTTPError, OSError) as error:
        raise OSError(f"{neither} in the cache, and the Hub did not answer ({type(error).__name__})") from None


def _repository_info(api: HfApi, repo_id: str, kind: str) -> None:
    api.repo_info(repo_id, repo_type=kind, timeout=_HUB_TIMEOUT)


def _option_tokens(args: Sequence[str]) -> list[str]:
    """Return the options among some arguments, without their values."""
    names = []
    for token in args:
        if token == "--":
            break
        name = token.partition("=")[0]
        if _OPTION.fullmatch(name):
            names.append(name)
    return names


def _did_you_mean(name: str, valid: Iterable[str]) -> str:
    spelling = {option.replace("-", "_"): option for option in valid if "-" not in option[2:]}
    nearest = difflib.get_close_matches(name.replace("-", "_"), spelling, n=1, cutoff=0)
    return f"did you mean {spelling[nearest[0]]}?" if nearest else "there are none"


def _nearest_path(path: Path) -> str:
    """Return a hint at the file or folder with the most similar name beside a missing one; empty if none is similar."""
    folder = path.parent
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    nearest = difflib.get_close_matches(path.name, names, n=1)
    return f" (did you mean {folder / nearest[0]}?)" if nearest else ""


def require_package(option: str, module: str, package: str, extra: str | None = None) -> None:
    """Raise an ImportError that names the package and the extra which an option needs, unless it is installed."""
    if _is_missing(module):
        raise missing_package(option, package, extra)

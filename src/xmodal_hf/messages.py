"""Messages of the package on the terminal, for its scripts: what was inferred, what was left out, how many."""

from __future__ import annotations

import logging
import os

_PACKAGE = "xmodal_hf"


def show_messages() -> None:
    """Let a script print the log of this package, in its main process.

    As a library the package leaves its log to the program that uses it; its scripts say what they infer from data. A
    program that has set up a log of its own keeps it.
    """
    log = logging.getLogger(_PACKAGE)
    if log.handlers or logging.getLogger().handlers or int(os.environ.get("RANK", 0)):
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)

"""Errors of single items of a dataset. The module imports nothing of this package, because demo Spaces contain it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# "<_io.BytesIO object at 0x7f0d4c0a7ec0>", "<_io.BufferedReader name=3>": the name of an object in memory or the number
# of an open file, another one in every run.
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>|<_io\.[^<>]*>|(?<=\bat )0x[0-9a-fA-F]+")


class BadItemError(ValueError):
    """An item that cannot be used.

    Attributes:
        reason: a short fixed phrase by which items are counted ("corrupt image").
        detail: what the decoder said about this one, without addresses in memory and numbers of open files: equal
            faults have equal details.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        detail = _ADDRESS.sub("the content", detail)
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple:
        # The default sends only the message: pickling (from a worker to the training process) would lose the parts.
        return type(self), (self.reason, self.detail)


@contextmanager
def naming(name: str | None) -> Iterator[None]:
    """Add the name of the file or item to a `BadItemError` from within the block, unless the error has one."""
    try:
        yield
    except BadItemError as error:
        if not name or name in error.detail:
            raise
        raise BadItemError(error.reason, f"{name}: {error.detail}" if error.detail else name) from error

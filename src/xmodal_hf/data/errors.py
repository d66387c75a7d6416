"""Errors of single items of a dataset. The module imports nothing of this package, because demo Spaces contain it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

# Representations such as "<_io.BytesIO object at 0x7f0d4c0a7ec0>" and "<_io.BufferedReader name=3>" hold an address in
# memory or the number of an open file, which differ between runs.
_ADDRESS = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>|<_io\.[^<>]*>|(?<=\bat )0x[0-9a-fA-F]+")


class BadItemError(ValueError):
    """An item that cannot be used.

    Attributes:
        reason: Short fixed phrase by which unusable items are counted ("corrupt image").
        detail: Message of the decoder about this item, without addresses in memory and numbers of open files, so that
            equal faults have equal details.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        detail = _ADDRESS.sub("the content", detail)
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple:
        # By default, pickling (from a worker to the training process) keeps only the message and would lose the parts.
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

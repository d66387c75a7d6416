"""Rows that lie in several parts: files, row groups, tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np


class PartedPairs(ABC):
    """Canonical rows of several parts, one part after the other: a drop-in for the `Dataset` of `load_pairs`.

    Subclasses say what a row of a part and a column of all parts are.

    Args:
        modality: Modality: `image` or `audio`.
        lengths: Number of rows of each part.
    """

    def __init__(self, modality: Literal["image", "audio"], lengths: Sequence[int] | np.ndarray) -> None:
        self.modality = modality
        # first rows of the parts, and the end of the last part
        self._starts = np.concatenate([[0], np.cumsum(lengths)])

    column_names = property(lambda self: ["id", self.modality, "text"])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, key: str) -> Iterator[Any]: ...
    def __getitem__(self, key: int | str) -> Any:
        """A row, or an iterator over a column."""
        if isinstance(key, str):
            return self._values(key)
        if not 0 <= key < len(self):
            raise IndexError(f"row {key} of {len(self)}")
        part = int(np.searchsorted(self._starts, key, side="right")) - 1
        return self._row(key, part, key - int(self._starts[part]))

    @abstractmethod
    def _row(self, number: int, part: int, within: int) -> dict[str, Any]:
        """Row `number` of all, which is row `within` of a part."""

    @abstractmethod
    def _values(self, name: str) -> Iterator[Any]:
        """A column."""

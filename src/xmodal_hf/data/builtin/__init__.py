"""Built-in data sets: those that the package makes itself (emoji, notes of a soundfont), and added ones.

`BUILT_IN` is the one list of them: what is added to it is a `--dataset`, `--sentences` or `--pairs` by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from ...shipped import BUILT_IN
from ..modalities import find_address

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["BUILT_IN", "caption_lists", "load_built_in"]


def load_built_in(name: str, split: str, max_samples: int | None = None) -> Dataset:
    """Return a split of a data set of `BUILT_IN`.

    Args:
        name: Its key.
        split: Split, as its function takes it.
        max_samples: Maximum number of rows, for functions that take an argument of this name and then make no others.
            The result of others is whole.

    Raises:
        KeyError: If there is no built-in data set of that name.

    Example:
        >>> load_built_in("soundfont", "test").num_rows
        400
    """
    entry = BUILT_IN[name]
    load: Callable[..., Dataset] = find_address(entry) if isinstance(entry, str) else entry
    is_limited = max_samples is not None and "max_samples" in inspect.signature(load).parameters
    return load(split, max_samples=max_samples) if is_limited else load(split)


def caption_lists(name: str, split: str) -> list[list[str]]:
    """Return the captions of each row of a data set of `BUILT_IN`; those of emoji without drawing them."""
    if name == "openmoji":
        from .openmoji import openmoji_caption_lists

        return openmoji_caption_lists(split)
    texts = load_built_in(name, split)["text"]
    return [[text] if isinstance(text, str) else list(text) for text in texts]

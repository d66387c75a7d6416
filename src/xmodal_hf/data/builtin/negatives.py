"""Captions that are wrong about the items of built-in data sets: other attributes, or the other order of two events."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from .openmoji import openmoji_caption_lists
from .soundfont import SPLIT_SIZES, Clip, captions, make_clip

# Name of the column of these captions, for --negative_text_column.
SWAPPED = "swapped"
# Words of one kind; replacing one by another makes a wrong caption.
_ATTRIBUTES = {
    "colour": ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "grey", "pink"),
    "size": ("large", "medium", "small"),
    "direction": ("up", "down", "left", "right", "upwards", "downwards", "leftwards", "rightwards"),
    "gender": ("man", "woman", "men", "women", "boy", "girl"),
    "state": ("open", "closed"),
}


def swapped_captions(name: str, split: str) -> list[list[str]]:
    """Return the wrong captions of each row of a built-in data set, in the order of its rows.

    Those of `openmoji` are captions of other emoji of the split that differ in one attribute; those of `soundfont` name
    two events in the other order, and clips of one event have none.

    Args:
        name: Name of the data set.
        split: Split of the data set.

    Raises:
        ValueError: If the data set has no wrong captions.
    """
    if name not in _SWAPPED:
        raise ValueError(f"the built-in set {name} has no wrong captions; {', '.join(_SWAPPED)} have")
    return _SWAPPED[name](split)


def with_other_attributes(caption: str, known: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the captions among `known` that differ from one in an attribute, by the kind of the attribute."""
    parts = re.findall(r"[a-z]+|[^a-z]+", caption.lower())
    for kind, words in _ATTRIBUTES.items():
        for place, part in enumerate(parts):
            if part not in words:
                continue
            others = ["".join([*parts[:place], word, *parts[place + 1 :]]) for word in words if word != part]
            if found := [other for other in others if other in known]:
                yield kind, found


def captions_of_other_order(clip: Clip) -> list[str]:
    """Return the captions of a clip of two events, as if they came in the other order."""
    return captions(Clip(clip.events[::-1], clip.pitches[::-1]))


def _swapped_attributes(split: str) -> list[list[str]]:
    rows = openmoji_caption_lists(split)
    known = {caption.lower() for row in rows for caption in row}
    wrong = []
    for row in rows:
        others = known - {caption.lower() for caption in row}
        found = (text for caption in row for _, texts in with_other_attributes(caption, others) for text in texts)
        wrong.append(list(dict.fromkeys(found)))
    return wrong


def _swapped_events(split: str) -> list[list[str]]:
    clips = (make_clip(split, index) for index in range(SPLIT_SIZES[split]))
    return [captions_of_other_order(clip) if len(clip.events) == 2 else [] for clip in clips]


_SWAPPED: dict[str, Callable[[str], list[list[str]]]] = {"openmoji": _swapped_attributes, "soundfont": _swapped_events}

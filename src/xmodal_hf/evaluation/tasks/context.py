"""Input and result of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from datasets import Dataset
from matplotlib.figure import Figure

from xmodal_hf.data.bad_items import BadItem, check_share, summary
from xmodal_hf.data.identity import count_items
from xmodal_hf.data.mixing import undecoded
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.data.splits import with_default_split

from ..arguments import EvaluationArguments, EvaluationDataArguments
from ..embed import Embedder, Modality, PairEmbeddings, SizedIterable, embed_pairs
from ..provenance import describe_source, texts_checksum


@dataclass(frozen=True)
class Outcome:
    """Result of one task.

    Attributes:
        numbers: Dictionary of metric to value.
        meta: Dictionary of facts that identify the numbers: data set, revision or checksum, protocol.
        draw: Functions that draw the figures, by file name; they are called when the numbers have been written.
    """

    numbers: dict[str, float]
    meta: dict[str, Any]
    draw: Callable[[], dict[str, Figure]] = dict


# A task whose data has been opened and that only needs to be run.
Run = Callable[[], Outcome]


class CaptionedItems:
    """The captioned items of `--pairs`: loaded once, and embedded once for all tasks that measure them."""

    def __init__(self, embedder: Embedder, data: EvaluationDataArguments) -> None:
        self._embedder, self._data = embedder, data

    @cached_property
    def modality(self) -> Modality:
        """Modality that is paired with the texts."""
        modality = self._data.modality or self._embedder.modality
        if modality is None:
            raise ValueError("this model takes text only: tasks on images or sounds need a two-tower model")
        return modality

    @cached_property
    def _table_and_split(self) -> tuple[Dataset, str]:
        data, source = self._data, str(self._data.pairs)

        def load(split: str) -> Dataset:
            return load_pairs(
                source,
                modality=self.modality,
                split=split,
                text_column=data.text_column,
                id_column=data.id_column,
                max_samples=data.max_pairs,
            )

        return with_default_split(load, data.pairs_split, "test", source)

    @property
    def table(self) -> Dataset:
        """The items, not yet opened."""
        return self._table_and_split[0]

    @cached_property
    def meta(self) -> dict[str, Any]:
        """Facts that identify the items: source, split, revision or checksum."""
        num_items = count_items(undecoded(self.table), self.modality)
        texts = texts_checksum(self.table["text"])
        described = {"split": self._table_and_split[1], "num_items": num_items, "texts_sha256": texts}
        return describe_source(str(self._data.pairs), self.table) | described

    @cached_property
    def embeds(self) -> PairEmbeddings:
        """The embeddings of all items and captions that can be used."""
        rows = SizedIterable(undecoded(self.table), len(self.table))
        return embed_pairs(self._embedder, rows, self.modality, on_bad_item=self._data.on_bad_item)


class TaskContext:
    """Model, options and data that all tasks of one evaluation share.

    Attributes:
        embedder: Embedder of the model.
        arguments: Options of the measurement.
        data: Options of the data.
        pairs: Captioned items of `--pairs`, loaded and embedded once for all tasks that use them.
    """

    def __init__(self, embedder: Embedder, arguments: EvaluationArguments, data: EvaluationDataArguments) -> None:
        self.embedder, self.arguments, self.data = embedder, arguments, data
        self.pairs = CaptionedItems(embedder, data)

    @property
    def modality(self) -> Modality:
        """Modality that the model takes beside text, or `--modality`."""
        return self.pairs.modality


def count_bad_items(bad_items: Sequence[BadItem], total: int, data: EvaluationDataArguments) -> dict[str, Any]:
    """Return what the results of a task say of items that were left out.

    Raises:
        TooManyBadItemsError: If there are more unusable items than `--max_bad_fraction` of `total`.
    """
    check_share(bad_items, total, data.max_bad_fraction)
    return {"bad_items": summary(bad_items)}

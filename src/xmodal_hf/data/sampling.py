"""Batches of an `Order`, and the rows in them, whose caption and window are functions of (seed, epoch, index) only.

The epoch travels with every index from the sampler to the worker, so the number of workers, persistent workers and
resuming in mid-epoch change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from .audio import load_waveform
from .bad_items import BadItem, BadItemLog, path_of
from .errors import BadItemError, naming
from .formats import Modality
from .identity import is_blank, item_key
from .images import load_image
from .mixing import PairTable, undecoded, without_media
from .modalities import MODALITIES, modality_of_columns
from .orders import Order
from .seeding import EpochIndex, row_generator

SENTENCE_VIEWS = ("anchor", "positive", "negative")
# Maximum length of a caption in characters. A longer one is a page of text that got into the column.
MAX_CAPTION_LENGTH = 10_000
# 1: augmentation, 4: token masks, 5: crops of fused CLAP
_CAPTION_STREAM, _REPLACEMENT_STREAM, _WINDOW_STREAM, _VIEW_STREAM, _PARAPHRASE_STREAM, _NEGATIVE_STREAM = (
    0,
    2,
    3,
    6,
    7,
    8,
)


class PooledVectors(Protocol):
    """Pooled vectors of a frozen tower for the rows of a dataset, such as a `FeatureStore`."""

    @property
    def num_views(self) -> int:
        """Augmented views of each item; 1 where nothing is augmented."""

    def vector(self, row: int, number: int) -> torch.Tensor:
        """(H,) of a row's view or caption of that number.

        Raises:
            BadItemError: If the item could not be used when the vectors were computed.
        """

    def group_id(self, row: int) -> int | None:
        """The `group_id` of a row, where it is that of its bytes; None where it is that of its id."""


class EpochBatchSampler(Sampler[list[EpochIndex]]):
    """The batches of one process, in the order that an `Order` gives to each epoch.

    The order is cut into global batches of `batch_size * num_processes` rows, and process `rank` takes the rank-th
    part of each: any number of processes sees the same global batches. An incomplete last batch is dropped.

    Args:
        order: Order of the rows in each epoch.
        batch_size: Batch size per process.
        rank, num_processes: Rank of this process and number of processes.

    Raises:
        ValueError: If the rows do not fill one global batch.
    """

    def __init__(self, order: Order, batch_size: int, *, rank: int = 0, num_processes: int = 1) -> None:
        if len(order) < batch_size * num_processes:
            processes = "" if num_processes == 1 else f" in each of {num_processes} processes"
            raise ValueError(f"{len(order)} items do not fill a batch of {batch_size}{processes}: lower --batch_size")
        self.order = order
        self.batch_size = batch_size
        self.rank = rank
        self.num_processes = num_processes
        self.set_position(0, 0)

    def set_position(self, epoch: int, batch: int) -> None:
        """Make the next pass that of `epoch`, from its batch number `batch` on."""
        self.epoch = epoch
        self.first_batch = batch

    def __iter__(self) -> Iterator[list[EpochIndex]]:
        # This is no generator function: its body would run at the first batch, when the position of another pass may
        # have been set.
        epoch = self.epoch
        rows = self.order(epoch)[: len(self) * self.batch_size * self.num_processes]
        batches = rows.reshape(len(self), self.num_processes, self.batch_size)[self.first_batch :, self.rank]
        return ([EpochIndex(epoch, int(row)) for row in batch] for batch in batches)

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.order) // (self.batch_size * self.num_processes)


class PairDataset(TorchDataset):
    """Rows of a canonical paired dataset, decoded, with one caption chosen.

    Item: {"id": str, "text": str, "image": RGB PIL | "audio": mono float32 waveform (samples,), "group_id": int,
    "position": EpochIndex}. With `features` of a side there is its pooled vector too, {"image" | "audio" |
    "text"}_pooler_output (H,), and the picture or the sound is neither read nor decoded. `group_id` is a hash of the id
    (63 bits), so captions of one item have the same number in every process and no scan of the data is needed; rows
    with equal ids count as one item, and rows with equal bytes where ids are only numbers of rows (`identity`).

    A row that cannot be used raises `BadItemError`; with `bad_items` it is listed there, and another row, drawn from
    (seed, epoch, index), stands in for it whole: image, caption, id and position. So batches keep their size, and no
    image meets the caption of another.

    Args:
        dataset: Dataset with the columns `id`, `text` (str or list of str) and `image` or `audio`, from `load_pairs`,
            or several of them in `ConcatenatedPairs`.
        seed: Seed of the training run.
        captions: How a caption is chosen: `random` draws one caption per row and epoch, `first` takes the first one.
        captions_per_item: Number of captions per item. "text" is then a list of that many; an item with fewer captions
            repeats some. If None, "text" is one caption and no list.
        negatives: Whether to draw one caption of the column `negative_text` per row and epoch as "negative_text", which
            is None for a row without any.
        min_image_size: Shorter side in pixels that is large enough; JPEGs are decoded at a reduced scale that keeps it.
        sampling_rate: Sampling rate of the waveforms, in Hz; required for audio.
        max_seconds: Maximum length of a waveform; one window of longer clips is decoded.
        window: Position of that window: `first`, `center`, or `random` (training only).
        bad_items: List to which unusable rows are added, and unusable captions of rows that have usable ones. If None,
            each of them is an error.
        defer_bad_items: Whether the user of the rows adds the bad items to the list: each row then has its own,
            `BadItem`s, under "bad_items". Workers prepare batches ahead of training, and how far ahead is not
            reproducible.
        features: Pooled vectors by side (`image`, `audio`, `text`). If there are several views, one is drawn per row
            and epoch.

    Raises:
        ValueError: If a canonical column is missing, an option is unknown, or audio comes without a sampling rate.

    Example:
        >>> from datasets import Dataset
        >>> from PIL import Image
        >>> images = [Image.new("RGB", (16, 16), colour) for colour in ("black", "white")]
        >>> table = Dataset.from_dict({"id": ["1", "2"], "text": [["night", "dark"], ["snow"]], "image": images})
        >>> rows = PairDataset(table, seed=0, captions="first")
        >>> item = rows[EpochIndex(epoch=0, index=0)]
        >>> item["text"], item["image"].size
        ('night', (16, 16))
    """

    def __init__(
        self,
        dataset: PairTable,
        *,
        seed: int,
        captions: Literal["random", "first"] = "random",
        captions_per_item: int | None = None,
        negatives: bool = False,
        min_image_size: int | None = None,
        sampling_rate: int | None = None,
        max_seconds: float | None = None,
        window: Literal["first", "center", "random"] = "first",
        bad_items: BadItemLog | None = None,
        defer_bad_items: bool = False,
        features: Mapping[str, PooledVectors] | None = None,
    ) -> None:
        _check_choice("captions", captions, ("random", "first"))
        _check_choice("window", window, ("first", "center", "random"))
        self.modality = _modality(dataset)
        if (sampling_rate is not None) != MODALITIES[self.modality].is_sampled:
            raise ValueError("Audio needs sampling_rate, the rate of the feature extractor in Hz; images have none.")
        self.dataset = undecoded(dataset)
        self.features = dict(features or {})
        # These columns are read of each row: the media only if they are needed.
        self.rows = without_media(self.dataset) if self.modality in self.features else self.dataset
        self.seed = seed
        self.captions = captions
        self.captions_per_item = captions_per_item
        self.negatives = negatives
        self.min_image_size = min_image_size
        self.sampling_rate = sampling_rate
        self.max_seconds = max_seconds
        self.window = window
        self.bad_items = bad_items
        self.defer_bad_items = defer_bad_items

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: EpochIndex | int) -> dict[str, Any]:
        return self._usable(_position(key))

    def __getitems__(self, keys: Sequence[EpochIndex | int]) -> list[dict[str, Any]]:
        """The items of a batch; rows without media are read together, which takes a tenth of the time."""
        positions = [_position(key) for key in keys]
        if self.modality not in self.features or not isinstance(self.rows, Dataset):
            return [self._usable(position) for position in positions]
        columns = self.rows[[position.index for position in positions]]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [self._usable(*item) for item in zip(positions, rows, strict=True)]

    def _usable(self, position: EpochIndex, row: dict[str, Any] | None = None) -> dict[str, Any]:
        """The item of a position, whose row may have been read already, or its replacement."""
        if self.bad_items is None:
            return self._item(position, row=row)
        generator = row_generator(self.seed, position, stream=_REPLACEMENT_STREAM)
        found: list[BadItem] = []
        item: dict[str, Any] | None = None
        failed: set[int] = set()
        while item is None:  # this ends, because the log raises when there are too many bad rows
            try:
                item = self._item(position, found, row)
            except BadItemError as error:
                found.append(self._bad_item(position.index, error))
                failed.add(position.index)
                if len(failed) == len(self):  # no row can be used, however many may be unusable
                    self.bad_items.add(found)
                    self.bad_items.stop()
                row, position = None, EpochIndex(position.epoch, int(generator.integers(len(self))))
            if not self.defer_bad_items or len(found) > self.bad_items.tolerated:
                self.bad_items.add(found)
        return item | {"bad_items": found} if self.defer_bad_items else item

    def _item(
        self, position: EpochIndex, found: list[BadItem] | None = None, row: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A row, whose unusable captions go to `found` if there are usable ones. With None they are errors."""
        row = self.rows[position.index] if row is None else row
        with naming(f"item {row['id']}" if found is None else None):
            captions, bad_captions = usable_captions(row["text"])
            media = self._media(row, position)
            if bad_captions and (found is None or not captions):
                raise bad_captions[0]
        if found is not None:
            found += [self._bad_item(position.index, error) for error in bad_captions]
        return {
            "id": row["id"],
            **self._text(captions, position),
            **(self._negative(row.get("negative_text") or [], position) if self.negatives else {}),
            **media,
            "group_id": self._group_id(row, position.index),
            "position": position,
        }

    def _group_id(self, row: dict[str, Any], index: int) -> int:
        features = self.features.get(self.modality)
        known = None if features is None else features.group_id(index)  # the group id of the bytes, which are not read
        return group_id(item_key(row["id"], row.get(self.modality))) if known is None else known

    def media_row(self, position: EpochIndex) -> dict[str, Any]:
        """A row without its caption: `id`, `group_id`, `position`, and `image` or `audio`, as in that epoch.

        Raises:
            BadItemError: If the row cannot be used.
        """
        row = self.dataset[position.index]
        media = self._decode(row[self.modality], position)
        group = group_id(item_key(row["id"], row[self.modality]))
        return {"id": row["id"], "group_id": group, self.modality: media, "position": position}

    def describe(self, index: int) -> tuple[str, str]:
        """The id of a row and the path of its picture or sound, for lists of unusable items."""
        try:
            row = self.dataset[index]
        except BadItemError:  # not even the row can be read
            return str(index), ""
        return str(row["id"]), path_of(row[self.modality])

    def _media(self, row: dict[str, Any], position: EpochIndex) -> dict[str, Any]:
        features = self.features.get(self.modality)
        if features is None:
            return {self.modality: self._decode(row[self.modality], position)}
        view = 0
        if features.num_views > 1:
            view = int(row_generator(self.seed, position, stream=_VIEW_STREAM).integers(features.num_views))
        return {f"{self.modality}_pooler_output": features.vector(position.index, view)}

    def _text(self, captions: dict[int, str], position: EpochIndex) -> dict[str, Any]:
        """One of the usable captions, which have their numbers in the row."""
        if self.captions_per_item is not None:
            return self._several_texts(captions, position, self.captions_per_item)
        drawn = 0
        if self.captions == "random" and len(captions) > 1:
            drawn = int(row_generator(self.seed, position, stream=_CAPTION_STREAM).integers(len(captions)))
        number, caption = list(captions.items())[drawn]
        text: dict[str, Any] = {"text": caption}
        if "text" in self.features:
            text["text_pooler_output"] = self.features["text"].vector(position.index, number)
        return text

    def _several_texts(self, captions: dict[int, str], position: EpochIndex, count: int) -> dict[str, Any]:
        order = list(captions)
        if self.captions == "random":
            generator = row_generator(self.seed, position, stream=_CAPTION_STREAM)
            order = [order[place] for place in generator.permutation(len(order))]
        numbers = [order[place % len(order)] for place in range(count)]
        texts: dict[str, Any] = {"text": [captions[number] for number in numbers]}
        if "text" in self.features:
            vectors = [self.features["text"].vector(position.index, number) for number in numbers]
            texts["text_pooler_output"] = torch.stack(vectors)  # (k, H)
        return texts

    def _negative(self, texts: Sequence[str], position: EpochIndex) -> dict[str, Any]:
        if not texts:
            return {"negative_text": None}
        drawn = int(row_generator(self.seed, position, stream=_NEGATIVE_STREAM).integers(len(texts)))
        return {"negative_text": texts[drawn]}

    def _bad_item(self, index: int, error: BadItemError) -> BadItem:
        return BadItem(index, *self.describe(index), error.reason, error.detail)

    def _decode(self, cell: dict[str, Any] | None, position: EpochIndex) -> Any:
        if self.sampling_rate is None:
            return load_image(cell, min_size=self.min_image_size)
        offset = {"first": 0.0, "center": 0.5}.get(self.window)
        if offset is None:
            offset = row_generator(self.seed, position, stream=_WINDOW_STREAM).random()
        return load_waveform(cell, self.sampling_rate, max_seconds=self.max_seconds, offset=offset)


class SentenceDataset(TorchDataset):
    """Rows of sentences: {"anchor"} or {"anchor", "positive"[, "negative"]} and "position".

    Of a list of paraphrases two different ones are drawn, by (seed, epoch, index) only; a negative may be None.

    Args:
        dataset: Dataset that `load_sentences`, `load_triplets` or `load_paraphrases` returned.
        seed: Seed of the random draws.

    Raises:
        ValueError: If there is no column `anchor` or `paraphrases`, or a `negative` without a `positive`.
    """

    def __init__(self, dataset: Dataset, seed: int = 0) -> None:
        self.seed = seed
        self.views: list[str] = [name for name in SENTENCE_VIEWS if name in dataset.column_names]
        self.draws = not self.views and "paraphrases" in dataset.column_names
        if self.draws:
            self.views = list(SENTENCE_VIEWS[:2])
            self.dataset = dataset.select_columns(["paraphrases"])
            return
        if self.views != list(SENTENCE_VIEWS[: len(self.views)]) or not self.views:
            raise ValueError(
                "Sentences have the columns anchor[, positive[, negative]], or paraphrases, not "
                f"{', '.join(dataset.column_names)}."
            )
        self.dataset = dataset.select_columns(self.views)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: EpochIndex | int) -> dict[str, Any]:
        position = _position(key)
        row = self.dataset[position.index]
        if not self.draws:
            return row | {"position": position}
        generator = row_generator(self.seed, position, stream=_PARAPHRASE_STREAM)
        drawn = generator.permutation(len(row["paraphrases"]))[:2]
        texts = (row["paraphrases"][number] for number in drawn)
        return dict(zip(self.views, texts, strict=True)) | {"position": position}

    def texts(self) -> Iterator[str]:
        """Every text of every row."""
        for name in self.dataset.column_names:
            for cell in self.dataset[name]:
                yield from (text for text in (cell if isinstance(cell, list) else [cell]) if text is not None)


def usable_captions(captions: Any) -> tuple[dict[int, str], list[BadItemError]]:
    """The captions of an item, by their number there, and what is wrong with those that cannot be used.

    Training, validation and evaluation share this rule: what is no caption is left out, and an item without any is a
    bad item. White space around a caption is no part of it.

    Args:
        captions: One caption or a list of captions.
    """
    usable: dict[int, str] = {}
    bad: list[BadItemError] = []
    for number, caption in enumerate(captions if isinstance(captions, list | tuple) else [captions]):
        try:
            usable[number] = checked_caption(caption)
        except BadItemError as error:
            bad.append(error)
    if not usable and not bad:
        bad.append(BadItemError("no caption", "the list is empty"))
    return usable, bad


def checked_caption(caption: Any) -> str:
    """The caption without surrounding white space.

    Raises:
        BadItemError: If the caption is null, not text, empty, binary, or longer than `MAX_CAPTION_LENGTH` characters.
    """
    if caption is None:
        raise BadItemError("no caption", "null")
    if not isinstance(caption, str):
        raise BadItemError("caption is not text", type(caption).__name__)
    if is_blank(caption):
        raise BadItemError("empty caption", repr(caption[:20]))
    if "\0" in caption or "\ufffd" in caption:
        raise BadItemError("binary caption", repr(caption[:20]))
    if len(caption) > MAX_CAPTION_LENGTH:
        raise BadItemError("caption too long", f"{len(caption)} characters")
    return caption.strip()


def group_id(item_id: str) -> int:
    """A non-negative 63-bit number for an item, the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "big") >> 1


def text_id(text: str) -> int:
    """A non-negative 63-bit number for a text, by which equal ones are known in every process."""
    return group_id(text.strip())


def _position(key: EpochIndex | int) -> EpochIndex:
    return key if isinstance(key, EpochIndex) else EpochIndex(0, int(key))


def _modality(dataset: PairTable) -> Modality:
    if not {"id", "text"} <= set(dataset.column_names):
        found = ", ".join(sorted(dataset.column_names))
        raise ValueError(
            f"Pairs have the columns id, text and one of image, audio; found {found}. load_pairs brings any source "
            "into this form."
        )
    return modality_of_columns(dataset.column_names)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")

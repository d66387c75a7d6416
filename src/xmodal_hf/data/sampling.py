"""Which rows come in which order, and which caption of a row is taken: functions of (seed, epoch, index) only.

The epoch travels with every index from the sampler to the worker, so the number of workers, persistent workers and
resuming in mid-epoch change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Literal

from datasets import Dataset, Image
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from .audio import decode_audio
from .files import read_media
from .images import decode_image
from .seeding import EpochIndex, epoch_permutation, row_generator

_CAPTION_STREAM = 0


class EpochSampler(Sampler[EpochIndex]):
    """All rows once an epoch, in an order that depends on (seed, epoch) only.

    `set_epoch` selects the epoch; the loader that `Accelerator.prepare` returns calls it at the start of each pass.

    Args:
        length: number of rows.
        seed: of the training run, at least 0.
        shuffle: False gives the rows in their own order.
    """

    def __init__(self, length: int, *, seed: int, shuffle: bool = True) -> None:
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[EpochIndex]:
        order = epoch_permutation(self.length, self.seed, self.epoch) if self.shuffle else range(self.length)
        epoch = self.epoch  # fixed for this pass, even if a prefetching loader has moved on
        for index in order:
            yield EpochIndex(epoch, int(index))

    def __len__(self) -> int:
        return self.length


class PairDataset(TorchDataset):
    """Rows of a canonical paired dataset, decoded, with one caption chosen.

    Item: {"id": str, "text": str, "image": RGB PIL | "audio": mono float32 waveform (samples,), "group_id": int,
    "position": EpochIndex}. `group_id` is a hash of the id (63 bits), so captions of one item have the same number in
    every process and no scan of the data is needed.

    Args:
        dataset: with the columns `id`, `text` (str or list of str) and `image` or `audio` (see `load_pairs`).
        seed: of the training run.
        captions: `random` draws one caption a row and epoch, `first` takes the first one.
        min_image_size: decode JPEGs at a reduced scale that keeps the shorter side at least this long (pixels).
        sampling_rate: of the waveforms, in Hz; audio needs it.

    Raises:
        ValueError: a canonical column is missing, `captions` is unknown, or audio comes without a sampling rate.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        captions: Literal["random", "first"] = "random",
        min_image_size: int | None = None,
        sampling_rate: int | None = None,
    ) -> None:
        if captions not in ("random", "first"):
            raise ValueError(f"captions is 'random' or 'first', not {captions!r}.")
        self.modality = _modality(dataset)
        if self.modality == "audio" and sampling_rate is None:
            raise ValueError("Audio needs sampling_rate, that of the feature extractor in Hz.")
        if self.modality == "image" and isinstance(dataset.features["image"], Image):
            dataset = dataset.cast_column("image", Image(decode=False))  # decoding is done here, errors and all
        self.dataset = dataset
        self.seed = seed
        self.captions = captions
        self.min_image_size = min_image_size
        self.sampling_rate = sampling_rate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: EpochIndex | int) -> dict[str, Any]:
        position = _position(key)
        row = self.dataset[position.index]
        return {
            "id": row["id"],
            "text": self._caption(row["text"], position),
            self.modality: self._decode(row[self.modality]),
            "group_id": group_id(row["id"]),
            "position": position,
        }

    def _caption(self, captions: str | list[str], position: EpochIndex) -> str:
        if isinstance(captions, str):
            return captions
        if self.captions == "first" or len(captions) == 1:
            return captions[0]
        return captions[row_generator(self.seed, position, stream=_CAPTION_STREAM).integers(len(captions))]

    def _decode(self, cell: dict[str, Any]) -> Any:
        if self.modality == "image":
            return decode_image(read_media(cell), min_size=self.min_image_size)
        return decode_audio(read_media(cell), self.sampling_rate)


class SentenceDataset(TorchDataset):
    """Rows of sentences: {"anchor"} or {"anchor", "positive"[, "negative"]} and "position".

    Args:
        dataset: as from `load_sentences` or `load_triplets`.

    Raises:
        ValueError: there is no column `anchor`, or a `negative` without a `positive`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.views = [name for name in SENTENCE_VIEWS if name in dataset.column_names]
        if self.views != list(SENTENCE_VIEWS[: len(self.views)]) or not self.views:
            raise ValueError(
                f"Sentences have the columns anchor[, positive[, negative]], not {', '.join(dataset.column_names)}."
            )
        self.dataset = dataset.select_columns(self.views)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: EpochIndex | int) -> dict[str, Any]:
        position = _position(key)
        return self.dataset[position.index] | {"position": position}


SENTENCE_VIEWS = ("anchor", "positive", "negative")


def group_id(item_id: str) -> int:
    """A non-negative 63-bit number for an item, the same in every process and run."""
    return int.from_bytes(hashlib.blake2b(item_id.encode(), digest_size=8).digest(), "big") >> 1


def _position(key: EpochIndex | int) -> EpochIndex:
    return key if isinstance(key, EpochIndex) else EpochIndex(0, int(key))


def _modality(dataset: Dataset) -> Literal["image", "audio"]:
    columns = set(dataset.column_names)
    present = columns & {"image", "audio"}
    if not {"id", "text"} <= columns or len(present) != 1:
        raise ValueError(
            f"Pairs have the columns id, text and one of image, audio; found {', '.join(sorted(columns))}. "
            "load_pairs brings any source into this form."
        )
    return "image" if "image" in present else "audio"

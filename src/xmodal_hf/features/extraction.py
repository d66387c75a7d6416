"""Filling a feature store: every item through the tower once, in any number of processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from ..data.bad_items import BAD_ITEMS_NAME, BadItemLog
from ..data.errors import BadItemError
from ..data.mixing import without_media
from ..data.sampling import PairDataset, group_id, usable_captions
from ..data.seeding import EpochIndex
from ..messages import progress_bar
from ..models.towers import evaluation_mode
from .frozen import FrozenSide
from .manifest import DTYPES, MANIFEST_NAME, FeatureError, Manifest
from .processes import on_main_process
from .store import FeatureStore
from .writer import StoreWriter

# Maximum number of files of a store, so that few files are mapped; after a killed run, at most one of them is written
# again.
_MAX_SHARDS = 256
_LOCK_NAME = "lock"
_MIN_ITEMS_PER_SHARD = 512


@dataclass(frozen=True)
class ExtractionOptions:
    """Options of writing a store.

    Attributes:
        dtype: Precision in which vectors are stored: float16, bfloat16 or float32.
        batch_size: Number of pictures or sounds per batch; texts are batched by their number of tokens.
        num_workers: Number of processes that decode for each process that embeds; with 0, the process itself decodes.
        max_bad_fraction: Maximum share of unusable items; with more, the extraction stops.
        on_bad_item: Treatment of an unusable item: `skip` lists it in `bad_items.jsonl`, `error` stops.
        items_per_shard: Number of rows of the data set per file. None is 512, or as many as keep the number of files at
            256 or below.
        show_progress: Whether to show a progress bar with the rate and the time left.
    """

    dtype: str = "float16"
    batch_size: int = 32
    num_workers: int = 0
    max_bad_fraction: float = 0.01
    on_bad_item: str = "skip"
    items_per_shard: int | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"vectors are kept in {', '.join(DTYPES)}, not {self.dtype!r}")


def extract(folder: str | os.PathLike, side: FrozenSide, options: ExtractionOptions | None = None) -> FeatureStore:
    """Embed every item of a data set, and return the store. All processes call it; each writes its share of the shards.

    A store that is complete is opened. One that is not goes on where it stopped, and ends with the same bytes as if it
    had not been interrupted. Pictures and sounds are batched in the order of the rows and texts by length, within a
    shard: a vector depends on its shard and on the batch size only, and on those by less than the rounding of float16.

    Args:
        folder: Folder of the store.
        side: Side that is embedded. Its model must be on the device that it runs on.
        options: Precision, batch sizes and treatment of bad items.

    Raises:
        FeatureError: If the folder holds vectors of another tower, input or data. The message says what differs.
        TooManyBadItemsError: If more items than `max_bad_fraction` cannot be used.
        BadItemError: If an item cannot be used and `on_bad_item` is "error".
        OtherProcessError: In the other processes, if the main process cannot finish the store.

    Example:
        >>> from datasets import Dataset
        >>> from PIL import Image
        >>> from xmodal_hf.data.collators import PairCollator
        >>> from xmodal_hf.data.sampling import PairDataset
        >>> images = [Image.new("RGB", (16, 16), colour) for colour in ("black", "white")]
        >>> table = Dataset.from_dict({"id": ["black", "white"], "text": ["night", "snow"], "image": images})
        >>> rows = PairDataset(table, seed=0)
        >>> side = FrozenSide("image", model.eval(), rows, PairCollator(processor, max_length=8))
        >>> store = extract("vectors", side, ExtractionOptions(show_progress=False))
        >>> len(store), store["white"].shape
        (2, torch.Size([32]))
    """
    options = options or ExtractionOptions()
    state = PartialState()
    items = len(side.rows.dataset)
    per_shard = options.items_per_shard or max(_MIN_ITEMS_PER_SHARD, -(-items // _MAX_SHARDS))
    writer = StoreWriter(folder, Manifest(side.identity, options.dtype, items, per_shard))
    with _alone(Path(folder)) if state.is_main_process else nullcontext():
        missing = _missing_shards(writer, state)
        if missing:
            _write_shards(writer, side, options, missing[state.process_index :: state.num_processes], state)
        state.wait_for_everyone()
        # This also finishes a run that was killed between the last shard and the manifest. The other processes wait for
        # it.
        on_main_process(state, writer.finish)
    return FeatureStore.open(folder)


def _missing_shards(writer: StoreWriter, state: PartialState) -> list[int]:
    """The shards that are missing, one list for all processes: shards appear while others still look.

    Raises:
        FeatureError: In every process, if the folder holds vectors of another tower, input or data.
    """
    shared: list[Any] = [[], None]
    if state.is_main_process:
        try:
            writer.start()
            shared[0] = writer.missing_shards()
        except (FeatureError, OSError) as error:
            shared[1] = error
    broadcast_object_list(shared)
    if shared[1] is not None:
        raise shared[1]
    return shared[0]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for another run that fills the same store; a complete one is only read."""
    if (folder / MANIFEST_NAME).is_file():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / _LOCK_NAME
    with FileLock(path):
        yield
        path.unlink(missing_ok=True)  # the store is complete, and a run that waits for it finds the manifest


def _write_shards(
    writer: StoreWriter, side: FrozenSide, options: ExtractionOptions, shards: Sequence[int], state: PartialState
) -> None:
    """Embed and write some shards."""
    record = _recorder(writer, side, options)
    total = sum(len(writer.manifest.rows_of(shard)) for shard in shards)
    what = f"embedding {side.side}s" + ("" if state.num_processes == 1 else f" in 1 of {state.num_processes} processes")
    silent = not (options.show_progress and state.is_main_process)
    with progress_bar(total=total, desc=what, unit=" items", silent=silent) as bar, evaluation_mode(side.model):
        run = _text_shards if side.side == "text" else _media_shards
        for shard, vectors in run(
            side, options, {shard: writer.manifest.rows_of(shard) for shard in shards}, record, bar
        ):
            writer.write(shard, *vectors)


class _Name(NamedTuple):
    """Origin of a vector: an item's caption or view, its row, and the group id of its item in training."""

    id: str
    position: int
    row: int
    group: int


@dataclass
class _Vectors:
    """Vectors of a shard, and their names."""

    names: list[_Name] = field(default_factory=list)
    vectors: list[torch.Tensor] = field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        """The arguments of `StoreWriter.write` after the shard."""
        ids = [name.id for name in self.names]
        groups: list[int] | None = [name.group for name in self.names]
        if groups == [group_id(item_id) for item_id in ids]:
            groups = None
        vectors = torch.cat(self.vectors) if self.vectors else torch.empty(0, 1)
        positions, rows = [name.position for name in self.names], [name.row for name in self.names]
        return iter((ids, positions, rows, vectors, groups))


Record = Callable[[int, str, str, BadItemError], None]


def _recorder(writer: StoreWriter, side: FrozenSide, options: ExtractionOptions) -> Record:
    """Return the function that treats an unusable item as the options say."""

    def stop(index: int, item_id: str, source: str, error: BadItemError) -> None:
        raise BadItemError(error.reason, f"{item_id} ({source}): {error.detail}") from error

    if options.on_bad_item == "error":
        return stop
    path = writer.folder / BAD_ITEMS_NAME
    return BadItemLog(path, total=len(side.rows.dataset), max_fraction=options.max_bad_fraction).record


def _text_shards(
    side: FrozenSide, options: ExtractionOptions, shards: dict[int, range], record: Record, bar: tqdm
) -> Iterator[tuple[int, _Vectors]]:
    """The vectors of all captions of each shard's rows."""
    table = without_media(side.rows.dataset)
    for shard, rows in shards.items():
        found, names = _Vectors(), []
        texts: list[str] = []
        for row in rows:
            try:
                item = table[row]
                captions, bad = usable_captions(item["text"])
            except BadItemError as error:  # not even the row can be read
                captions, bad = {}, [error]
            for reason in bad:
                record(row, *side.rows.describe(row), reason)
            names += [_Name(item["id"], number, row, group_id(item["id"])) for number in captions]
            texts += captions.values()
        if texts:
            _add(side, names, side.pooled_texts(texts), found, record)
        bar.update(len(rows))
        yield shard, found


class _MediaRows(TorchDataset):
    """Rows with their pictures or sounds decoded; those that cannot be used come as the error."""

    def __init__(self, rows: PairDataset) -> None:
        self.rows = rows

    def __getitem__(self, position: EpochIndex) -> dict[str, Any]:
        try:
            return self.rows.media_row(position)
        except BadItemError as error:
            item_id, source = self.rows.describe(position.index)
            return {"error": error, "id": item_id, "source": source, "position": position}


class _MediaBatch:
    """Collates the usable rows of a batch."""

    def __init__(self, side: FrozenSide) -> None:
        self.collator = side.collator

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        good, bad = [row for row in rows if "error" not in row], [row for row in rows if "error" in row]
        inputs = self.collator.media(good) if good else None
        names = [_Name(row["id"], row["position"].epoch, row["position"].index, row["group_id"]) for row in good]
        return {"inputs": inputs, "names": names, "bad": bad, "last": rows[-1]["position"]}


def _media_shards(
    side: FrozenSide, options: ExtractionOptions, shards: dict[int, range], record: Record, bar: tqdm
) -> Iterator[tuple[int, _Vectors]]:
    """The vectors of all pictures or sounds, and their views, of each shard's rows."""
    batches, ends = [], []
    for shard, rows in shards.items():
        positions = [EpochIndex(view, row) for row in rows for view in range(side.num_views)]
        size = options.batch_size
        batches += [positions[start : start + size] for start in range(0, len(positions), size)]
        ends.append((shard, len(batches)))
    loader = DataLoader(
        _MediaRows(side.rows),
        batch_sampler=batches,
        collate_fn=_MediaBatch(side),
        num_workers=options.num_workers,
        pin_memory=side.model.device.type == "cuda",
        # it is a generator of its own, because the global random state is that of the training
        generator=torch.Generator(),
    )
    done, found = iter(loader), _Vectors()
    position = 0
    for shard, end in ends:
        for _ in range(position, end):
            _add_batch(side, next(done), found, record, bar)
        position = end
        yield shard, found
        found = _Vectors()


def _add_batch(side: FrozenSide, batch: dict[str, Any], found: _Vectors, record: Record, bar: tqdm) -> None:
    """Embed a batch, and list the items that could not be used."""
    for row in batch["bad"]:
        record(row["position"].index, row["id"], row["source"], row["error"])
    views = [row["position"].epoch for row in batch["bad"]] + [name.position for name in batch["names"]]
    bar.update(views.count(side.num_views - 1))  # only the last view of an item counts it
    if batch["inputs"] is None:
        return
    _add(side, batch["names"], side.pooled(batch["inputs"]), found, record)


def _add(side: FrozenSide, names: list[_Name], vectors: torch.Tensor, found: _Vectors, record: Record) -> None:
    """Keep the finite vectors; list the others."""
    finite = torch.isfinite(vectors).all(dim=1)
    for name, is_finite in zip(names, finite.tolist(), strict=True):
        if is_finite:
            found.names.append(name)
        else:
            detail = f"the {side.side} tower gives NaN or infinity"
            record(name.row, *side.rows.describe(name.row), BadItemError("vector is not finite", detail))
    found.vectors.append(vectors[finite])

"""Endless streams of batches, built from options, that can start anywhere.

A position is (epoch, batch), and the batches from it on are a function of (seed, position): a run that is resumed, and
one in another number of workers, sees what the first one saw.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from transformers import BaseImageProcessor, PreTrainedTokenizerBase, ProcessorMixin

from ..data.audio import SpecAugment
from ..data.bad_items import BAD_ITEMS_NAME, BadItemLog
from ..data.clips import clip_seconds, set_clip_seconds, set_padding
from ..data.collators import PairCollator, SentenceCollator
from ..data.exclusion import evaluation_keys, without_texts
from ..data.images import ImageAugment
from ..data.mixing import ConcatenatedPairs, PairTable, one_row_an_item, training_order
from ..data.modalities import modality_of_processor
from ..data.orders import Order, ShuffledOrder
from ..data.parquet import ParquetPairs
from ..data.sampling import EpochBatchSampler, PairDataset, PooledVectors, SentenceDataset
from ..data.sentences import load_paraphrases, load_sentences, load_triplets
from ..data.sources import DEFAULT_BUFFER_SIZE, load_pairs, stream_pairs
from ..features.processes import on_main_process
from ..models.text_format import NO_LIMIT, pads_to_max_length, uncut_lengths
from ..objectives import Batch
from .arguments import PairArguments, SentenceArguments, TextModelArguments, TrainingArguments
from .checkpoint import CheckpointError, goes_on
from .faults import end_workers, prepare_worker
from .log import inform

logger = logging.getLogger(__name__)

# Number of texts that are counted before training: enough for a share, few enough to take no time.
_COUNTED_TEXTS = 1000

# Options that are arguments of `load_pairs` and `stream_pairs` with the same names.
_SOURCE_OPTIONS = ("modality", "split", "image_column", "audio_column", "text_column", "id_column")
# The smallest side of a crop of 70 % of the area with aspect 1.15 (ImageAugment's defaults) is 0.78 of the picture's.
_CROP_MARGIN = 1 / 0.78


class StatefulLoader(Protocol):
    """Endless batches of an objective, which can go on from where another such loader stood."""

    @property
    def epoch(self) -> int:
        """The epoch of the batch that came last."""

    def __len__(self) -> int:
        """Batches an epoch."""

    def __iter__(self) -> Generator[Batch]:
        """Yield batches without end; closing the generator ends the workers."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next batch."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position; iterators that exist already do not follow."""


class BatchLoader:
    """Batches of a loader on a device, without end; `epoch` and `batch` are the position of the next one.

    Args:
        loader: Loader whose batch sampler has `set_position(epoch, batch)`; its length is that of an epoch.
        device: Device that tensors are moved to.
        bad_items: List to which the `bad_items` of a batch are added when the batch is used, because workers prepare
            batches ahead of that.
    """

    def __init__(self, loader: DataLoader, device: torch.device, bad_items: BadItemLog | None = None) -> None:
        self.loader = loader
        self.device = device
        self.bad_items = bad_items
        self.epoch = 0
        self.batch = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.loader.batch_sampler)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "batch": self.batch, "rows": self._rows()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a position.

        Raises:
            CheckpointError: If the number of rows has changed, so that the position would be that of another sample.
        """
        if state["rows"] != self._rows():
            has_negatives = "negative" in getattr(self.loader.dataset, "views", ())
            older = "pass --require_negatives if an earlier release saved the state, or " if has_negatives else ""
            raise CheckpointError(
                f"the data have {self._rows()} rows, and had {state['rows']} when the state was saved: {older}bring "
                "back the files that are gone, or take out those that are new, or start anew in another --output_dir"
            )
        self.epoch, self.batch = state["epoch"], state["batch"]

    def _rows(self) -> int:
        return len(self.loader.dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Generator[Batch]:
        try:
            while True:
                self.loader.batch_sampler.set_position(self.epoch, self.batch)  # type: ignore[union-attr]
                for batch in self.loader:
                    self.batch += 1
                    found = batch.pop("bad_items", ())
                    if self.bad_items is not None:
                        self.bad_items.add(found)
                    yield send_to_device(batch, self.device, non_blocking=True)
                self.epoch, self.batch = self.epoch + 1, 0
        finally:
            end_workers(self.loader)


class JointLoader:
    """One batch of pairs and one of sentences a step: {"pairs": ..., "sentences": ...}."""

    def __init__(self, pairs: StatefulLoader, sentences: StatefulLoader) -> None:
        self.pairs = pairs
        self.sentences = sentences

    @property
    def epoch(self) -> int:
        """Epoch of the pairs."""
        return self.pairs.epoch

    def __len__(self) -> int:
        return len(self.pairs)

    def state_dict(self) -> dict[str, dict[str, int]]:
        return {"pairs": self.pairs.state_dict(), "sentences": self.sentences.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, int]]) -> None:
        self.pairs.load_state_dict(state["pairs"])
        self.sentences.load_state_dict(state["sentences"])

    def __iter__(self) -> Generator[Batch]:
        # Both are closed explicitly: when one of them raises, the traceback keeps the other one alive.
        with closing(iter(self.pairs)) as pairs, closing(iter(self.sentences)) as sentences:
            for pair_batch, sentence_batch in zip(pairs, sentences, strict=False):
                yield {"pairs": pair_batch, "sentences": sentence_batch}


def build_loader(
    accelerator: Accelerator,
    dataset: TorchDataset,
    collator: Callable[[list[Any]], Batch],
    training: TrainingArguments,
    batch_size: int | None = None,
    order: Order | None = None,
    bad_items: BadItemLog | None = None,
) -> BatchLoader:
    """Return the training batches of this process; says once how many rows an epoch leaves out.

    `batch_size` is the options' unless given. Without an `order` the rows are shuffled. `bad_items` as `BatchLoader`.

    The loader is not passed to `Accelerator.prepare`, which would shard it once more and lose the position.

    Raises:
        ValueError: If the data do not fill one batch of all processes.
    """
    sampler = EpochBatchSampler(
        order or ShuffledOrder(len(dataset), training.seed),  # type: ignore[arg-type]
        batch_size or training.batch_size,
        rank=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    _report_left_out(sampler)
    loader = DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=training.num_workers,
        persistent_workers=training.num_workers > 0,
        worker_init_fn=prepare_worker,
        pin_memory=accelerator.device.type == "cuda",
        # The loader has its own generator: each pass draws a seed for the workers, which must not change the global
        # random state.
        generator=torch.Generator(),
    )
    return BatchLoader(loader, accelerator.device, bad_items)


def _report_left_out(sampler: EpochBatchSampler) -> None:
    num_rows = len(sampler.order)
    left_out = num_rows - len(sampler) * sampler.batch_size * sampler.num_processes
    if left_out:
        processes = "" if sampler.num_processes == 1 else f" in each of {sampler.num_processes} processes"
        logger.info(
            "%d of %d rows are left out in each epoch with --batch_size %d%s: the last batch would not be full",
            *(left_out, num_rows, sampler.batch_size, processes),
        )


def load_pair_table(pairs: PairArguments, exclude_texts: Sequence[str] = ()) -> PairTable:
    """Load the pairs in canonical columns, without captions that occur in the tables `exclude_texts`."""
    options: dict[str, Any] = {name: getattr(pairs, name) for name in _SOURCE_OPTIONS}
    options["negative_text_column"] = pairs.negative_text_column
    if pairs.streaming:
        load = partial(stream_pairs, buffer_size=pairs.shuffle_buffer or DEFAULT_BUFFER_SIZE)
    else:
        load = partial(load_pairs, max_samples=pairs.max_samples)
    tables = {source: load(source, **options) for source in pairs.dataset}
    if pairs.captions_per_item > 1:
        tables = {source: one_row_an_item(table) for source, table in tables.items()}
    if exclude_texts:
        keys = evaluation_keys(exclude_texts)
        tables = {source: _without_texts(table, keys, source) for source, table in tables.items()}
    return ConcatenatedPairs(tables) if len(tables) > 1 else tables[pairs.dataset[0]]


def _without_texts(table: Dataset | ParquetPairs, keys: frozenset[str], source: str) -> Dataset:
    if isinstance(table, ParquetPairs):
        raise ValueError(f"--exclude_texts reads all captions: {source} cannot be streamed with it, drop --streaming")
    return without_texts(table, keys, source)


def load_sentence_table(sentence: SentenceArguments, seed: int, exclude_texts: Sequence[str] = ()) -> Dataset:
    """Load the sentences, triplets or paraphrases in canonical columns, without those of the tables `exclude_texts`."""
    if sentence.paraphrases is not None:
        source, table = sentence.paraphrases, load_paraphrases(sentence.paraphrases, column=sentence.sentence_column)
    elif sentence.triplets is not None:
        source = sentence.triplets
        table = load_triplets(
            source,
            seed=seed,
            positive_label=sentence.positive_label,
            negative_label=sentence.negative_label,
            require_negatives=sentence.require_negatives,
        )
    else:
        assert sentence.sentences is not None
        source, limit = sentence.sentences, sentence.max_sentences
        table = load_sentences(source, column=sentence.sentence_column, max_sentences=limit, seed=seed)
    return without_texts(table, evaluation_keys(exclude_texts), source) if exclude_texts else table


def check_length(table: PairTable | Dataset, expected_items: int | None) -> None:
    """Warn when a table has other rows than the options say: half a download trains without complaint otherwise."""
    if expected_items is not None and len(table) != expected_items:
        warnings.warn(f"the data have {len(table)} rows, --expected_items says {expected_items}", stacklevel=2)


def texts_of(pairs: PairTable | None, sentences: Dataset | None) -> Iterator[str]:
    """Yield every caption of the pairs and every text of the sentences or triplets.

    What is no text is left out: training reports it.
    """
    for captions in [] if pairs is None else pairs["text"]:
        for text in captions if isinstance(captions, list) else [captions]:
            if isinstance(text, str):
                yield text
    if sentences is not None:
        yield from SentenceDataset(sentences).texts()


def report_cut_texts(
    accelerator: Accelerator,
    tokenizer: PreTrainedTokenizerBase,
    text: TextModelArguments,
    pairs: PairTable | None,
    sentences: Dataset | None,
) -> None:
    """Print how many of the first texts are longer than the tower reads; nothing where none is.

    Captions of streamed and of several tables are left out: they are read as they come.
    """
    table = None if isinstance(pairs, ParquetPairs | ConcatenatedPairs) else pairs
    texts = list(islice(texts_of(table, sentences), _COUNTED_TEXTS))
    limit = text_lengths(tokenizer, text)["max_length"]
    cut = sum(length > limit for length in uncut_lengths(tokenizer, texts))
    if cut:
        inform(accelerator, f"{cut:,} of the first {len(texts):,} texts are longer than {limit} tokens and are cut")


def text_lengths(tokenizer: PreTrainedTokenizerBase, text: TextModelArguments) -> dict[str, Any]:
    """Return the collators' options of text length: `max_length` where it is given, else the tokenizer's own."""
    if pads_to_max_length(tokenizer):
        return {"max_length": tokenizer.model_max_length, "pad_to_max_length": True}
    return {"max_length": text.max_length or min(tokenizer.model_max_length, NO_LIMIT)}


def image_side(image_processor: BaseImageProcessor) -> int:
    """Return the shortest side of the images that a processor makes before it crops them, in pixels.

    Raises:
        ValueError: If the processor names no size.
    """
    size = getattr(image_processor, "size", None)
    if size is not None:
        return min(dict(size).values())  # height and width, or the shortest edge
    timm_config = getattr(image_processor, "data_config", None)
    if timm_config is None:
        raise ValueError(f"{type(image_processor).__name__} names no size: pass an image processor with one")
    return math.ceil(min(timm_config["input_size"][1:]) / timm_config["crop_pct"])


def pair_rows(
    table: PairTable,
    processor: ProcessorMixin,
    text: TextModelArguments,
    pairs: PairArguments,
    seed: int,
    *,
    any_longer: bool = True,
    **options: Any,
) -> tuple[PairDataset, PairCollator]:
    """Return the rows of pairs as they are decoded, and what makes batches of them, for the processor's modality.

    Args:
        table: Table in canonical columns.
        processor: Processor of the model; the options of audio change its feature extractor.
        text, pairs: Options of the text tower and of the pairs.
        seed: Seed of captions, windows and augmentation.
        any_longer: Same as in `PairCollator`.
        options: Further arguments of `PairDataset`.
    """
    build = {"image": _image_rows, "audio": _sound_rows}[modality_of_processor(processor)]
    return build(table, processor, text, pairs, seed, any_longer, options)


def _image_rows(
    table: PairTable,
    processor: ProcessorMixin,
    text: TextModelArguments,
    pairs: PairArguments,
    seed: int,
    any_longer: bool,
    options: Mapping[str, Any],
) -> tuple[PairDataset, PairCollator]:
    size = image_side(processor.image_processor)
    # JPEGs are decoded at reduced scale: a random crop then still has the pixels that the tower sees.
    min_image_size = round(size * _CROP_MARGIN) if pairs.augment else size
    rows = PairDataset(table, seed=seed, min_image_size=min_image_size, **options)
    augment = ImageAugment(size, seed=seed) if pairs.augment else None
    return rows, PairCollator(processor, image_augment=augment, **text_lengths(processor.tokenizer, text))


def _sound_rows(
    table: PairTable,
    processor: ProcessorMixin,
    text: TextModelArguments,
    pairs: PairArguments,
    seed: int,
    any_longer: bool,
    options: Mapping[str, Any],
) -> tuple[PairDataset, PairCollator]:
    extractor = processor.feature_extractor
    if pairs.audio_padding is not None:
        set_padding(extractor, pairs.audio_padding)
    if pairs.clip_seconds is not None:
        set_clip_seconds(extractor, pairs.clip_seconds)
    max_seconds, window = clip_seconds(extractor), pairs.audio_window
    rate = extractor.sampling_rate
    rows = PairDataset(table, seed=seed, sampling_rate=rate, max_seconds=max_seconds, window=window, **options)
    lengths = text_lengths(processor.tokenizer, text)
    spec_augment = SpecAugment(seed) if pairs.spec_augment else None
    return rows, PairCollator(processor, feature_augment=spec_augment, any_longer=any_longer, **lengths)


def build_pair_loader(
    accelerator: Accelerator,
    table: PairTable,
    processor: ProcessorMixin,
    training: TrainingArguments,
    text: TextModelArguments,
    pairs: PairArguments,
    features: Mapping[str, PooledVectors] | None = None,
    any_longer: bool = True,
) -> BatchLoader:
    """Return the training batches of pairs, with pooled vectors in the place of the sides that have `features`."""
    bad_items = _bad_item_log(accelerator, table, training, pairs)
    options: dict[str, Any] = {"bad_items": bad_items, "defer_bad_items": True, "features": features}
    if pairs.captions_per_item > 1:
        options["captions_per_item"] = pairs.captions_per_item
    options["negatives"] = pairs.negative_text_column is not None
    rows, collator = pair_rows(table, processor, text, pairs, training.seed, any_longer=any_longer, **options)
    order = training_order(table, seed=training.seed, weights=pairs.dataset_weights, buffer_size=pairs.shuffle_buffer)
    return build_loader(accelerator, rows, collator, training, order=order, bad_items=bad_items)


def _bad_item_log(
    accelerator: Accelerator, table: PairTable, training: TrainingArguments, pairs: PairArguments
) -> BadItemLog | None:
    """Return the list of items that are skipped; a run that goes on from no training state begins a new one."""
    if pairs.on_bad_item == "error":
        return None
    path = Path(training.output_dir) / BAD_ITEMS_NAME

    def begin() -> None:
        if not goes_on(path.parent, training.resume):
            path.unlink(missing_ok=True)

    on_main_process(accelerator, begin)
    # A dry run has a folder of its own, which is removed.
    return BadItemLog(path, total=len(table), max_fraction=pairs.max_bad_fraction, is_kept=not training.dry_run)


def build_sentence_loader(
    accelerator: Accelerator,
    table: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    training: TrainingArguments,
    text: TextModelArguments,
    sentence: SentenceArguments,
    batch_size: int | None = None,
) -> BatchLoader:
    """Return the training batches of sentences or triplets."""
    collator = SentenceCollator(
        tokenizer,
        **text_lengths(tokenizer, text),
        mlm_probability=sentence.mlm_probability if sentence.mlm_weight > 0 else 0.0,
        seed=training.seed,
    )
    return build_loader(accelerator, SentenceDataset(table, training.seed), collator, training, batch_size)

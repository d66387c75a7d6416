"""Search in a feature store: the items whose embeddings are nearest to a text, a picture or a sound.

A store keeps what the tower pools; the model's projection, which may have been trained on the store, gives the
embeddings. Shapes: n vectors, Q queries, H pooled width, D embedding size.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import ProcessorMixin

from ..data.audio import load_waveform
from ..data.images import load_image
from ..data.mixing import ConcatenatedPairs, PairTable, one_row_an_item, undecoded
from ..data.sentences import holds_texts_alone, sentence_rows
from ..data.sources import load_pairs
from ..features.frozen import tower_fields
from ..features.identity import tokenizer_fields
from ..features.manifest import FeatureError, differences
from ..features.store import FeatureStore
from ..messages import missing_package
from ..models.conversion import load_dual_encoder, load_dual_processor
from ..models.modeling_dual_encoder import DualEncoder
from .adapters import is_adapter, load_adapted, processor_source
from .embed import DualEncoderEmbedder, EmbedOptions
from .plots import spectrogram_picture

# Minimum number of vectors for which FAISS is used, if it is installed: for fewer, a product of matrices takes
# milliseconds.
_FAISS_VECTORS = 100_000
# Maximum size in bytes of embeddings that are kept between queries; larger stores are projected anew for each query.
_KEPT_BYTES = 2**30
# Entries of a store's source that say which texts a table without pictures or sounds gives.
_TEXT_OPTIONS = ("split", "text_column", "id_column", "max_samples")
# Spectrograms on a contact sheet: number of samples of a window, and maximum length that is shown, in seconds.
_STFT_SAMPLES, _SHOWN_SECONDS = 512, 10.0


@dataclass(frozen=True)
class Hit:
    """An answer.

    Attributes:
        id: Identifier of the item.
        score: Cosine of the item's embedding with that of the query.
        position: Number of the caption or view that answers.
        row: Index of the row in the data set.
    """

    id: str
    score: float
    position: int
    row: int


class Search:
    """A model and the feature store of one of its towers.

    Args:
        model: Dual encoder with the tower that the vectors in the store come from; its projections may differ.
        processor: Processor of the model.
        store: Feature store with pooled vectors of images, audio clips or texts.
        use_faiss: Whether to search with FAISS. None does so if it is installed and the store has 100,000 vectors or
            more. The index is exact, so the answers are the same.

    Raises:
        FeatureError: If the store belongs to another tower, or has captions of another tokenizer or instruction. The
            message says what differs.

    Example:
        >>> from datasets import Dataset
        >>> from xmodal_hf.data.collators import PairCollator
        >>> from xmodal_hf.data.sampling import PairDataset
        >>> from xmodal_hf.features import extract
        >>> from xmodal_hf.features.frozen import FrozenSide
        >>> images = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
        >>> table = Dataset.from_dict({"id": ["red.png", "blue.png"], "text": ["red", "blue"], "image": images})
        >>> side = FrozenSide("image", model.eval(), PairDataset(table, seed=0), PairCollator(processor, max_length=8))
        >>> search = Search(model, processor, extract("vectors", side))
        >>> [hit.id for hit in search(image=images[1], k=2)]
        ['blue.png', 'red.png']
    """

    def __init__(
        self, model: DualEncoder, processor: ProcessorMixin, store: FeatureStore, *, use_faiss: bool | None = None
    ) -> None:
        if not hasattr(model, f"{store.side}_model"):
            raise FeatureError(f"the store has {store.side} vectors, and the model has no {store.side} tower")
        model.follow_tokenizer(processor.tokenizer)  # special ids are part of the tower, as when a store is written
        different = differences({"tower": store.identity["tower"]}, {"tower": tower_fields(model, store.side)})
        if different:
            raise FeatureError(f"the feature store {store.folder} is of another tower: {'; '.join(different)}")
        if store.side == "text":  # the instruction is part of the tokenizer
            tokenizers = store.identity["input"]["tokenizer"], tokenizer_fields(processor.tokenizer)
            different = differences({"tokenizer": tokenizers[0]}, {"tokenizer": tokenizers[1]})
        if different:
            raise FeatureError(
                f"the feature store {store.folder} is of another tokenizer or instruction: {'; '.join(different)}"
            )
        self.model, self.store = model.eval(), store
        self.embedder = DualEncoderEmbedder(model, processor, EmbedOptions(show_progress=False))
        self._kept: torch.Tensor | None = None
        is_large = len(store) >= _FAISS_VECTORS and importlib.util.find_spec("faiss") is not None
        self._faiss: Any = self._build_faiss() if (is_large if use_faiss is None else use_faiss) else None

    @classmethod
    def load(
        cls,
        model: str | os.PathLike,
        features: str | os.PathLike,
        *,
        device: str | None = None,
        use_faiss: bool | None = None,
    ) -> Search:
        """Load a model and open a store.

        Args:
            model: Folder or Hub id of a model of this package, a CLIPModel, SiglipModel or ClapModel, or an adapter.
            features: Folder of the feature store.
            device: Device, such as "cpu" or "cuda:1". None takes a GPU if there is one.
            use_faiss: Whether to search with FAISS, as in `Search`.
        """
        store = FeatureStore.open(features)
        loaded: Any = load_adapted(model, merge=True) if is_adapter(model) else load_dual_encoder(model)
        processor = load_dual_processor(processor_source(model))
        loaded.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(loaded, processor, store, use_faiss=use_faiss)

    def __call__(self, text: str | None = None, *, image: Any = None, audio: Any = None, k: int = 10) -> list[Hit]:
        """Return the k best items for one query, best first, each item once.

        Args:
            text: Query text.
            image: Query image, in place of a text: a Pillow image, path or encoded bytes.
            audio: Query audio clip, in place of a text: a path, encoded bytes, or samples at the model's sampling rate.
            k: Maximum number of answers.

        Raises:
            ValueError: If there is not exactly one query, or the model has no tower for it.
            BadItemError: If the picture or sound cannot be read.
        """
        queries = {"text": text, "image": image, "audio": audio}
        given = [(kind, query) for kind, query in queries.items() if query is not None]
        if len(given) != 1:
            raise ValueError("pass exactly one query: a text, an image or an audio clip")
        ((kind, query),) = given
        if isinstance(query, str | os.PathLike) and kind != "text":
            query = {"bytes": None, "path": os.fspath(query)}
        elif isinstance(query, bytes):
            query = {"bytes": query, "path": None}
        embeds = self.embedder.encode_text([query]) if kind == "text" else self.embedder.encode_items(kind, [query])
        return self.nearest(embeds, k)[0]

    def nearest(self, queries: Any, k: int = 10) -> list[list[Hit]]:
        """Return the k best items for each of (Q, D) unit-norm embeddings."""
        if k < 1:
            raise ValueError(f"k, the number of answers, must be at least 1, got {k}")
        embeds = torch.as_tensor(np.asarray(queries), dtype=torch.float32)
        answers: list[list[Hit]] = [[] for _ in embeds]
        open_queries = list(range(len(embeds)))
        # All views or captions of an item count as one answer, so that more vectors are asked for. Their number is
        # doubled for the queries whose nearest vectors belong to too few items.
        wanted = k * self._vectors_per_item()
        while open_queries:
            wanted = min(wanted, len(self.store))
            scores, numbers = self._best(embeds[open_queries], wanted)
            for query, row, found in zip(open_queries, scores.tolist(), numbers.tolist(), strict=True):
                answers[query] = self._hits(row, found, k)
            reached = k if wanted < len(self.store) else 0
            open_queries = [query for query in open_queries if len(answers[query]) < reached]
            wanted *= 2
        return answers

    def _best(self, queries: torch.Tensor, k: int) -> tuple[Any, Any]:
        """(Q, k) scores and numbers of the nearest vectors, best first."""
        if self._faiss:
            return self._faiss.search(np.ascontiguousarray(queries.numpy()), k)
        return self._by_tiles(queries, k)

    def embeds(self, ids: Iterable[str]) -> np.ndarray:
        """(n, D) unit-norm float32 embeddings of items by their ids.

        Raises:
            FeatureError: If the store has no item with one of the ids; the message names the id.
        """
        names = list(ids)
        missing = [name for name in names if name not in self.store]
        if missing:
            raise FeatureError(f"the feature store {self.store.folder} has no item {missing[0]!r}")
        return self._project(self.store[names]).numpy()

    def _vectors_per_item(self) -> int:
        if self.store.side != "text":
            return self.store.num_views
        return max(1, -(-len(self.store) // max(1, self.store.manifest.items))) * 2

    def _hits(self, scores: Sequence[float], numbers: Sequence[int], k: int) -> list[Hit]:
        """The first k answers of different items."""
        hits: dict[str, Hit] = {}
        rows, ids = self.store.rows(numbers), self.store.ids(numbers)
        for score, number, row, item_id in zip(scores, numbers, rows, ids, strict=True):
            if item_id not in hits:
                hits[item_id] = Hit(item_id, score, self.store.position(number), row)
        return list(hits.values())[:k]

    def _by_tiles(self, queries: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(Q, k) scores and numbers of the vectors, best first, one tile of the store after the other."""
        scores = torch.empty((len(queries), 0))
        numbers = torch.empty((len(queries), 0), dtype=torch.int64)
        for first, embeds in self._tiles():
            products = queries @ embeds.T  # (Q, tile)
            best = products.topk(min(k, products.shape[1]))
            scores = torch.cat([scores, best.values], dim=1)
            numbers = torch.cat([numbers, best.indices + first], dim=1)
            kept = scores.topk(min(k, scores.shape[1]))
            scores, numbers = kept.values, numbers.gather(1, kept.indices)
        return scores, numbers

    def _tiles(self) -> Iterator[tuple[int, torch.Tensor]]:
        """(number of the first, (tile, D) unit-norm float32 embeddings); small stores are projected once."""
        if self._kept is not None:
            yield 0, self._kept
            return
        width = self._project(self.store.vectors([0])).shape[1]
        parts, is_kept = [], 4 * len(self.store) * width <= _KEPT_BYTES
        for first, vectors in self.store.tiles():
            embeds = self._project(vectors)
            if is_kept:
                parts.append(embeds)
            yield first, embeds
        if is_kept:
            self._kept = torch.cat(parts)

    @torch.inference_mode()
    def _project(self, vectors: torch.Tensor) -> torch.Tensor:
        """(n, H) pooled vectors -> (n, D) unit-norm embeddings on the CPU."""
        moved = {f"{self.store.side}_pooler_output": vectors.to(self.model.device)}
        return self.model(**moved, return_logits=False)[f"{self.store.side}_embeds"].float().cpu()

    def _build_faiss(self) -> Any:
        """An exact index of inner products."""
        try:
            import faiss
        except ImportError as error:
            raise missing_package("use_faiss", "faiss-cpu", "faiss") from error
        index: Any = None
        for _, embeds in self._tiles():
            index = faiss.IndexFlatIP(embeds.shape[1]) if index is None else index
            index.add(np.ascontiguousarray(embeds.numpy()))
        self._kept = None  # the index holds them
        return index


class Gallery:
    """The pictures, sounds or captions that a store was made of.

    Args:
        store: Feature store whose manifest names its data.
        dataset: Present location of the dataset. If None, the one in the manifest.

    Raises:
        ValueError: If the manifest does not name the data, or they cannot be loaded.

    Example:
        >>> from datasets import Dataset
        >>> from xmodal_hf.data.collators import PairCollator
        >>> from xmodal_hf.data.sampling import PairDataset
        >>> from xmodal_hf.features import extract
        >>> from xmodal_hf.features.frozen import FrozenSide
        >>> Image.new("RGB", (16, 16), "red").save("red.png")
        >>> _ = Path("pairs.csv").write_text("file_name,text\\nred.png,a red square\\n")
        >>> rows, source = PairDataset(load_pairs("pairs.csv"), seed=0), {"dataset": ["pairs.csv"], "modality": "image"}
        >>> side = FrozenSide("image", model.eval(), rows, PairCollator(processor, max_length=8), source=source)
        >>> store = extract("vectors_of_squares", side)
        >>> Gallery(store).caption(store.ids([0])[0], 0)
        'a red square'
    """

    def __init__(self, store: FeatureStore, dataset: Sequence[str] | None = None) -> None:
        source = dict(store.identity["data"].get("source") or {})
        names = list(dataset or source.pop("dataset", []) or [])
        source.pop("dataset", None)
        are_joined = source.pop("captions_per_item", 1) > 1
        if not names:
            raise ValueError("the feature store does not name the data that it was made from: pass --dataset")
        self.modality: Literal["image", "audio"] = source.get("modality", "image")
        load: Callable[[str], PairTable] = partial(load_pairs, **source)
        columns = {"image": source.get("image_column"), "audio": source.get("audio_column")}
        media: dict[str, Any] = {"modality": self.modality, "media_column": columns[self.modality]}
        if all(holds_texts_alone(name, **media) for name in names):
            load = partial(sentence_rows, **{name: source[name] for name in _TEXT_OPTIONS if name in source})
        tables: dict[str, Any] = {name: load(name) for name in names}
        if are_joined:
            tables = {name: one_row_an_item(table) for name, table in tables.items()}
        self.table: PairTable = undecoded(ConcatenatedPairs(tables) if len(tables) > 1 else tables[names[0]])
        self.store, self._is_one = store, len(tables) == 1
        self._ids = [item_id for table in tables.values() for item_id in table["id"]]
        self._rows = {item_id: row for row, item_id in reversed(list(enumerate(self._ids)))}

    def item(self, item_id: str) -> Any:
        """The cell of an item's picture or sound; None where the data have no such item any more."""
        row = self._row_of(item_id)
        return None if row is None else self.table[row][self.modality]

    def caption(self, item_id: str, position: int = 0) -> str:
        """One caption of an item; empty where there is none."""
        row = self._row_of(item_id)
        captions = None if row is None else self.table[row]["text"]
        captions = captions if isinstance(captions, list) else [captions]
        return str(captions[position]) if position < len(captions) and captions[position] else ""

    def _row_of(self, item_id: str) -> int | None:
        """The row of an item.

        In a store of several data sets, an id begins with the name of its data set at the time of writing, and the rows
        are those of the store where they still have that id.
        """
        if self._is_one:
            return self._rows.get(item_id)
        row = self.store.row_of(item_id)
        is_there = row is not None and row < len(self._ids) and item_id.endswith(f"/{self._ids[row]}")
        return row if is_there else None

    def picture(self, item_id: str) -> Image.Image:
        """Picture of an item on a contact sheet: the picture, the spectrogram of the sound, or a grey field."""
        cell = self.item(item_id)
        if cell is None:
            return Image.new("RGB", (64, 64), "#D9D9D9")
        return _PICTURES[self.modality](cell)


def spectrogram_of(cell: Any, sampling_rate_hz: int = 16_000) -> Image.Image:
    """The spectrogram of a sound's first ten seconds as a picture."""
    waveform = torch.from_numpy(load_waveform(cell, sampling_rate_hz, max_seconds=_SHOWN_SECONDS))
    waveform = nn.functional.pad(waveform, (0, max(0, _STFT_SAMPLES - len(waveform))))
    window = torch.hann_window(_STFT_SAMPLES)
    spectrum = torch.stft(waveform, _STFT_SAMPLES, window=window, return_complex=True).abs()  # (bands, frames)
    return spectrogram_picture((20 * spectrum.clamp(min=1e-5).log10()).T)


def file_name(item_id: str) -> str:
    """The last part of an id that is a path."""
    return Path(item_id).name


# Functions that make the picture on a contact sheet from the cell of an item.
_PICTURES: dict[str, Callable[[Any], Image.Image]] = {"image": load_image, "audio": spectrogram_of}

"""Embeddings kept by the content that they came from: no sentence, picture or clip is encoded twice.

On the disk they are a `FeatureStore` a modality, whose ids are digests of the contents, and which grows.

Legend: n items, D embedding size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import length_hint
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xmodal_hf.data.builtin.soundfont import ADDRESS_SCHEME
from xmodal_hf.data.files import read_media
from xmodal_hf.data.images import load_image

from ..features.manifest import MANIFEST_NAME
from ..features.store import FeatureStore
from ..features.writer import append
from .embed import Embedder, Modality, SizedIterable, WrappedEmbedder

_NOTHING = object()
_DIGEST_BYTES = 16  # 128 bits: no accidental equality among any number of items that fits a disk


class CachedEmbedder(WrappedEmbedder):
    """Another embedder with a cache, which outlives the process if it has a folder.

    Args:
        embedder: Embedder that encodes items that are not in the cache.
        folder: Folder of the cached embeddings, one feature store per modality. None keeps them in memory only.
        identity: Text that identifies the model and everything that changes its embeddings. It is required with a
            folder, because two models must not share one cache.

    Raises:
        ValueError: If a folder is given without an identity.
    """

    def __init__(self, embedder: Embedder, folder: str | os.PathLike | None = None, identity: str = ""):
        if folder is not None and not identity:
            raise ValueError("a cache folder needs the model's identity, such as the checksum of its checkpoint")
        super().__init__(embedder)
        self._root, self._identity = folder, identity
        self._folder = None if folder is None else Path(folder) / content_digest(identity, "text").hex()
        self._memory: dict[str, dict[bytes, np.ndarray]] = {}

    @property
    def text_tower(self) -> Embedder:
        tower = self._embedder.text_tower
        return self if tower is self._embedder else CachedEmbedder(tower, self._root, f"{self._identity} text tower")

    def encode_text(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        raw = self._remembered("text", texts)  # not normalised
        return raw / np.linalg.norm(raw, axis=1, keepdims=True).clip(min=1e-12) if normalize else raw

    def _encode_media(self, modality: Modality, items: Iterable[Any]) -> np.ndarray:
        return self._remembered(modality, items)

    def _remembered(self, modality: str, items: Iterable[Any]) -> np.ndarray:
        """(n, D) embeddings, those of unseen items from the model."""
        if modality not in self._memory:
            self._memory[modality] = self._read(modality)
        memory = self._memory[modality]
        digests: list[bytes] = []
        unseen: dict[bytes, None] = {}

        def new_items() -> Iterator[Any]:
            for item in items:
                digests.append(content_digest(item, modality))
                if digests[-1] not in memory and digests[-1] not in unseen:
                    unseen[digests[-1]] = None
                    yield item

        self._encode_new(modality, new_items(), length_hint(items), unseen, memory)
        if not digests:
            raise ValueError(f"there is no {modality} to embed")
        return np.stack([memory[digest] for digest in digests])

    def _encode_new(
        self,
        modality: str,
        new_items: Iterator[Any],
        at_most: int,
        unseen: dict[bytes, None],
        memory: dict[bytes, np.ndarray],
    ) -> None:
        """Add the embeddings of `new_items` to `memory`, under the digests that their iteration adds to `unseen`."""
        first: Any = next(new_items, _NOTHING)
        if first is _NOTHING:
            return
        if modality == "text":
            embeds = self._embedder.encode_text([first, *new_items], normalize=False)
        else:
            embeds = self._embedder.encode_items(modality, SizedIterable(chain([first], new_items), at_most))
        memory.update(zip(unseen, embeds, strict=True))
        folder = self._store(modality)
        if folder is not None:
            ids = [digest.hex() for digest in unseen]
            append(folder, self._store_identity(modality), "float32", ids, torch.from_numpy(np.asarray(embeds)))

    def _read(self, modality: str) -> dict[bytes, np.ndarray]:
        folder = self._store(modality)
        if folder is None or not (folder / MANIFEST_NAME).is_file():
            return {}
        store = FeatureStore.open(folder, self._store_identity(modality))
        memory: dict[bytes, np.ndarray] = {}
        for first, vectors in store.tiles():
            ids = store.ids(range(first, first + len(vectors)))
            memory.update(zip(map(bytes.fromhex, ids), vectors.numpy(), strict=True))
        return memory

    def _store(self, modality: str) -> Path | None:
        return None if self._folder is None else self._folder / modality

    def _store_identity(self, modality: str) -> dict[str, Any]:
        return {"side": modality, "embedder": self._identity}


def content_digest(item: Any, modality: str) -> bytes:
    """128 bits that identify an item by its content: any form that the encoders take.

    Raises:
        BadItemError: If a picture or sound cannot be read.
    """
    if modality == "text":
        parts = [item.encode()]
    elif isinstance(item, bytes | bytearray | memoryview):
        parts = [bytes(item)]
    elif isinstance(item, str | os.PathLike):
        parts = [_cell_content({"bytes": None, "path": os.fspath(item)})]
    elif isinstance(item, Mapping) and item.get("array") is None:
        parts = [_cell_content(dict(item))]
    else:
        parts = _DECODED_CONTENT[modality](item)
    return hashlib.blake2b(b"\0".join(parts), digest_size=_DIGEST_BYTES).digest()


def _picture_content(item: Any) -> list[bytes]:
    """Content that is embedded; palette and orientation count."""
    upright = load_image(item)
    return [str(upright.size).encode(), upright.tobytes()]


def _sound_content(item: Any) -> list[bytes]:
    """Samples, with their rate where the item says it."""
    if isinstance(item, Mapping):
        return [str(item.get("sampling_rate")).encode(), *_array_content(item["array"])]
    if isinstance(item, np.ndarray | torch.Tensor | list | tuple):
        return _array_content(item)
    samples = item.get_all_samples()  # the item is a decoder, which returns samples at the rate of the file
    return [str(samples.sample_rate).encode(), *_array_content(samples.data)]


# Modality -> parts of the digest of a decoded item.
_DECODED_CONTENT: dict[str, Callable[[Any], list[bytes]]] = {"image": _picture_content, "audio": _sound_content}


def _array_content(samples: Any) -> list[bytes]:
    array = np.ascontiguousarray(samples)
    return [f"{array.dtype} {array.shape}".encode(), array.tobytes()]


def _cell_content(cell: dict[str, Any]) -> bytes:
    """The encoded file of an undecoded cell; for a rendered sound, the address that determines it."""
    path = cell.get("path") or ""
    if cell.get("bytes") is None and path.startswith(ADDRESS_SCHEME):
        return path.encode()
    return read_media(cell)

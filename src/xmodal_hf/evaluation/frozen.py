"""Repeated measurement of a model with frozen towers: each item runs through a frozen tower once.

Shapes: n items, H pooled width, D embedding size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..data.modalities import MODALITIES
from ..features.frozen import Side, tower_fields
from ..features.identity import processor_fields, tokenizer_fields
from ..models.modeling_dual_encoder import DualEncoder
from ..models.towers import evaluation_mode
from .cache import CachedEmbedder
from .embed import DualEncoderEmbedder, Embedder, Modality, WrappedEmbedder


class FrozenTowersEmbedder(WrappedEmbedder):
    """One of our models with frozen towers, whose pooled vectors are kept; the projections run each time.

    Args:
        embedder: Embedder of the model.
        sides: Sides whose towers are frozen: "text", "image", "audio".
        folder: Folder of the vectors, one feature store in float32 per tower and side, whose ids are digests of the
            contents. None keeps them in memory only.
    """

    def __init__(
        self, embedder: DualEncoderEmbedder, sides: Iterable[Side], folder: str | os.PathLike | None = None
    ) -> None:
        super().__init__(embedder)
        self.model = embedder.model
        pooled = _PooledEmbedder(embedder)
        self.latest: np.ndarray | None = None  # (n, H) pooled vectors of the pictures or clips that were projected last
        self._pooled = {side: CachedEmbedder(pooled, folder, _identity(embedder, side)) for side in sides}

    @property
    def text_tower(self) -> Embedder:
        return self._pooled.get("text", self._embedder.text_tower)

    def encode_text(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        if "text" not in self._pooled or isinstance(texts, str) or len(texts) == 0:
            return self._embedder.encode_text(texts, normalize)
        embeds = self.project("text", self._pooled["text"].encode_text(texts, normalize=False))
        return unit_rows(embeds) if normalize else embeds

    def project(self, side: Side, pooled: np.ndarray) -> np.ndarray:
        """(n, H) pooled vectors -> (n, D) embeddings by the model's projection as it is now, of any length."""
        projection = getattr(self.model, f"{side}_projection")
        with torch.inference_mode(), evaluation_mode(self.model):
            vectors = torch.from_numpy(pooled).to(self.model.device, self.model.dtype)
            return projection(vectors).float().cpu().numpy()

    def _encode_media(self, modality: Modality, items: Iterable[Any]) -> np.ndarray:
        if modality not in self._pooled:
            return super()._encode_media(modality, items)
        self.latest = self._pooled[modality].encode_items(modality, items)
        return unit_rows(self.project(modality, self.latest))


class _PooledEmbedder(WrappedEmbedder):
    """Embedder that returns the pooled vectors of the towers of a model of this package in place of embeddings."""

    _embedder: DualEncoderEmbedder

    def encode_text(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        return self._embedder.pooled_texts(texts)

    def _encode_media(self, modality: Modality, items: Iterable[Any]) -> np.ndarray:
        return self._embedder.pooled_items(modality, items)


def unit_rows(embeds: np.ndarray) -> np.ndarray:
    """Scale (n, D) rows to length one."""
    return embeds / np.linalg.norm(embeds, axis=1, keepdims=True).clip(min=1e-12)


def _identity(embedder: DualEncoderEmbedder, side: Side) -> str:
    """Return a name of all that a tower's pooled vectors depend on beside the item."""
    processor = embedder.processor
    if side == "text":
        inputs = tokenizer_fields(processor.tokenizer)
    else:
        inputs = processor_fields(getattr(processor, MODALITIES[side].processor_part))
    tower, long_clips = tower_fields(embedder.model, side), embedder.options.long_clips
    fields: dict[str, Any] = {"tower": tower, "input": inputs, "long_clips": long_clips}
    if embedder.options.dtype is not None:
        fields["dtype"] = str(embedder.options.dtype)
    text = json.dumps(fields, sort_keys=True, default=str)
    return f"pooled {side} {hashlib.sha256(text.encode()).hexdigest()}"


def with_memory(embedder: Embedder, folder: str | os.PathLike | None, identity: str) -> Embedder:
    """Give an embedder a cache in a folder, or only in this process.

    Of one of our dual encoders the folder keeps what its towers pool, before the projections: models that share a
    frozen tower embed each text, picture and sound once, and their text towers are measured from the same vectors.

    Args:
        embedder: Embedder of any model.
        folder: Folder of the stored vectors. None keeps embeddings in memory only.
        identity: Text that identifies the model and everything that changes its embeddings.
    """
    if (
        folder is None
        or not isinstance(embedder, DualEncoderEmbedder)
        or not isinstance(embedder.model, DualEncoder)
        or embedder.options.long_clips != "first"  # the mean over windows is taken after the projection
    ):
        return CachedEmbedder(embedder, folder, identity)
    return FrozenTowersEmbedder(embedder, ("text", embedder.model.config.modality), folder)

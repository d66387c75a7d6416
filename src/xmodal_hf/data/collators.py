"""Rows -> one dictionary of padded tensors a batch. Collators are picklable and run in the loader's workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from .sampling import SENTENCE_VIEWS
from .seeding import EpochIndex


class PairCollator:
    """Rows of `PairDataset` -> model inputs.

    Args:
        processor: an `ImageTextProcessor` or `AudioTextProcessor`, or a processor like CLIP's or CLAP's.
        max_length: longest text in tokens; longer ones are cut.
        image_augment: (image, position) -> image, applied before the processor (`ImageAugment` in training).
        feature_augment: (features of one clip, position) -> features, applied after it (`SpecAugment` in training).
        pad_to_max_length: pad texts to `max_length`, not to the longest of the batch.

    Returns (when called with B rows):
        input_ids, attention_mask (B, T) and what else the tokenizer gives; pixel_values (B, C, height, width) or
        input_features; group_ids (B,) int64; ids, a list of B str.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        max_length: int,
        image_augment: Callable[[Image.Image, EpochIndex], Image.Image] | None = None,
        feature_augment: Callable[[torch.Tensor, EpochIndex], torch.Tensor] | None = None,
        pad_to_max_length: bool = False,
    ) -> None:
        self.processor = processor
        self.max_length = max_length
        self.image_augment = image_augment
        self.feature_augment = feature_augment
        self.padding = "max_length" if pad_to_max_length else "longest"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        # Text options go in a dictionary of their own: a flat `padding` would reach the feature extractor too.
        text_kwargs = {"padding": self.padding, "truncation": True, "max_length": self.max_length}
        inputs = self.processor(
            text=[row["text"] for row in rows], text_kwargs=text_kwargs, return_tensors="pt", **self._media(rows)
        )
        if self.feature_augment is not None:
            features = zip(inputs["input_features"], rows, strict=True)
            inputs["input_features"] = torch.stack([self.feature_augment(x, row["position"]) for x, row in features])
        return {
            **inputs,
            "group_ids": torch.tensor([row["group_id"] for row in rows], dtype=torch.int64),
            "ids": [row["id"] for row in rows],
        }

    def _media(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if "audio" in rows[0]:
            sampling_rate = self.processor.feature_extractor.sampling_rate
            return {"audio": [row["audio"] for row in rows], "audio_kwargs": {"sampling_rate": sampling_rate}}
        if self.image_augment is None:
            return {"images": [row["image"] for row in rows]}
        return {"images": [self.image_augment(row["image"], row["position"]) for row in rows]}


class SentenceCollator:
    """Rows of `SentenceDataset` -> model inputs, one view after the other.

    For B rows with V of the columns anchor, positive, negative: V*B texts, all anchors, then all positives, then all
    negatives, tokenised in one call and padded to the longest: input_ids, attention_mask (V*B, T).

    Args:
        tokenizer: of the text tower.
        max_length: longest text in tokens; 32 as in SimCSE.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 32) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        views = [name for name in SENTENCE_VIEWS if name in rows[0]]
        texts = [row[view] for view in views for row in rows]
        return dict(
            self.tokenizer(texts, padding="longest", truncation=True, max_length=self.max_length, return_tensors="pt")
        )

"""One side of a model as it is embedded: the tower, and the path from a row of the data to its input.

Shapes: B batch, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from ..data.collators import PairCollator
from ..data.modalities import MODALITIES, MODALITY_NAMES
from ..data.sampling import PairDataset
from ..models.modeling_dual_encoder import DualEncoder
from ..models.modeling_sentence_encoder import SentenceEncoder, default_tokens_per_batch
from ..models.text_format import TextFormat
from ..models.text_tower import token_batches
from .identity import config_fields, data_fields, processor_fields, tokenizer_fields, weights_checksum

Side = Literal["image", "audio", "text"]
SIDES: tuple[Side, ...] = (*MODALITY_NAMES, "text")
# Precision of the computation, as Accelerate names it -> type of autocast.
COMPUTE = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class FrozenSide:
    """A tower that stays as it is, and what it sees of each row.

    Attributes:
        side: Name of the side: image, audio or text.
        model: Dual encoder, or for the text side a `SentenceEncoder`.
        rows: Data, decoded with the options of the training.
        collator: Collator that makes inputs from rows, with the options of the training.
        compute: Precision of the computation: no, bf16 or fp16.
        num_views: Number of augmented views of each picture or sound; 1 without augmentation.
        augment: Options by which the views differ; they are recorded in the manifest.
        source: Arguments of `load_pairs` for the data; they are recorded in the manifest.
    """

    side: Side
    model: PreTrainedModel
    rows: PairDataset
    collator: PairCollator
    compute: str = "no"
    num_views: int = 1
    augment: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tower(self) -> PreTrainedModel:
        """The tower that is run."""
        return getattr(self.model, f"{self.side}_model")

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Facts on which the vectors depend, for the manifest of their store."""
        views = {"number": self.num_views, **(self.augment if self.num_views > 1 else {})}
        return {
            "side": self.side,
            "tower": tower_fields(self.model, self.side),
            "input": self._input_fields(),
            "views": views,
            "compute": self.compute,
            "data": {**data_fields(self.rows.dataset, self.side), "source": dict(self.source)},
        }

    def _input_fields(self) -> dict[str, Any]:
        processor = self.collator.processor
        if self.side == "text":
            lengths = {"max_length": self.collator.max_length, "padding": self.collator.padding}
            return {"tokenizer": tokenizer_fields(processor.tokenizer), **lengths}
        part = getattr(processor, MODALITIES[self.side].processor_part)
        settings: dict[str, dict[str, Any]] = {
            "image": {"min_size": self.rows.min_image_size},
            "audio": {"max_seconds": self.rows.max_seconds, "window": self.rows.window},
        }
        return {"processor": processor_fields(part), **settings[self.side]}

    def pooled(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(B, H) float32 vectors on the CPU. The caller puts the model into evaluation mode."""
        device, dtype = self.model.device, COMPUTE[self.compute]
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}
        with torch.inference_mode(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            if isinstance(self.model, SentenceEncoder):
                pooled = self.model.encode_text(self.model.config.pooling, moved).pooler_output
            else:
                pooled = self.model(**moved, return_logits=False)[f"{self.side}_model_output"].pooler_output
        return pooled.float().cpu()

    def pooled_texts(self, texts: Sequence[str], max_tokens: int | None = None) -> torch.Tensor:
        """(n, H) float32 vectors of texts on the CPU, batched with others of similar length."""
        text_format = TextFormat.of(self.model.text_model, self.collator.processor.tokenizer, self.collator.max_length)
        rows = text_format.tokenize(texts)
        limit = max_tokens or default_tokens_per_batch(self.model.device)
        found: torch.Tensor | None = None
        for batch in token_batches(text_format.lengths(rows), limit):
            vectors = self.pooled(text_format.collate([rows[row] for row in batch]))
            if found is None:
                found = torch.empty((len(texts), vectors.shape[1]))
            found[torch.tensor(batch)] = vectors
        assert found is not None  # there is always at least one text
        return found


def tower_fields(model: PreTrainedModel, side: str) -> dict[str, Any]:
    """Facts that identify a tower: the checksum of its tensors, its config and its pooling."""
    tower = getattr(model, f"{side}_model")
    pooling = getattr(model.config, f"{side}_pooling") if isinstance(model, DualEncoder) else model.config.pooling
    fields = {"config": config_fields(tower.config), "pooling": pooling}
    return {"class": type(tower).__name__, "weights_sha256": weights_checksum(tower), **fields}

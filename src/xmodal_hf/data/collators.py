"""Rows -> one dictionary of padded tensors a batch. Collators are picklable and run in the loader's workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from transformers import ClapFeatureExtractor, PreTrainedTokenizerBase, ProcessorMixin

from ..losses.positives import NO_TEXT
from ..models.text_format import with_prefix
from .clips import check_equal_lengths, clap_features, to_clip_length
from .modalities import MODALITY_NAMES, modality_of_columns
from .sampling import SENTENCE_VIEWS, text_id
from .seeding import EpochIndex, row_generator

_MASK_STREAM, _CROP_STREAM = 4, 5  # the other streams are in sampling.py


class PairCollator:
    """Collator that makes model inputs from rows of `PairDataset`.

    Args:
        processor: `ImageTextProcessor` or `AudioTextProcessor`, or a processor with the interface of CLIP's or CLAP's.
        max_length: Maximum number of tokens per text; longer texts are truncated.
        image_augment: Function (image, position) -> image, applied before the processor (`ImageAugment` in training).
        feature_augment: Function (features of one clip, position) -> features, applied after the processor
            (`SpecAugment` in training).
        pad_to_max_length: Whether to pad texts to `max_length` rather than to the longest text of the batch.
        any_longer: Whether to mark one clip of each batch as long, for fused CLAP, so that every weight has a gradient.
            A frozen tower does not need it, and without it the features of a clip do not depend on its batch.

    Returns (when called with B rows):
        input_ids, attention_mask (B, T) and what else the tokenizer gives; pixel_values (B, C, height, width) or
        input_features (with CLAP's extractor also is_longer); group_ids (B,) int64; ids, a list of B str. Rows with
        several captions or a negative one have these as neighbouring rows of texts, and with negatives there are
        text_ids, equal for equal texts. Rows with pooled vectors of a side give
        {"image" | "audio" | "text"}_pooler_output (B, H) in the place of its inputs; rows
        of a `PairDataset` that has `defer_bad_items` also bad_items, a list.

    Raises:
        ValueError: If the clips of a batch differ in length and the feature extractor does not bring them to one
            length.

    Example:
        >>> collator = PairCollator(processor, max_length=8)
        >>> row = {"id": "1", "group_id": 1, "text": "a dog", "image": Image.new("RGB", (20, 24)), "position": None}
        >>> batch = collator([row, {**row, "id": "2", "group_id": 2, "text": "a dog runs"}])
        >>> batch["pixel_values"].shape, batch["input_ids"].shape, batch["ids"]
        (torch.Size([2, 3, 16, 16]), torch.Size([2, 5]), ['1', '2'])
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        *,
        max_length: int,
        image_augment: Callable[[Image.Image, EpochIndex], Image.Image] | None = None,
        feature_augment: Callable[[torch.Tensor, EpochIndex], torch.Tensor] | None = None,
        pad_to_max_length: bool = False,
        any_longer: bool = True,
    ) -> None:
        self.processor = processor
        self.max_length = max_length
        self.image_augment = image_augment
        self.feature_augment = feature_augment
        self.any_longer = any_longer
        self.padding = "max_length" if pad_to_max_length else "longest"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            **self.texts(rows),
            **self.media(rows),
            "group_ids": torch.tensor([row["group_id"] for row in rows], dtype=torch.int64),
            "ids": [row["id"] for row in rows],
            **({"bad_items": [item for row in rows for item in row["bad_items"]]} if "bad_items" in rows[0] else {}),
        }

    def texts(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The inputs of the text tower, or its pooled vectors (B, H) where the rows have them."""
        if "text_pooler_output" in rows[0]:
            return _stacked("text_pooler_output", rows)
        # Text options go in a dictionary of their own: a flat `padding` would reach the feature extractor too.
        text_kwargs = {"padding": self.padding, "truncation": True, "max_length": self.max_length}
        texts, text_ids = _texts_of(rows)
        inputs = dict(self.processor(text=texts, text_kwargs=text_kwargs, return_tensors="pt"))
        return inputs | ({} if text_ids is None else {"text_ids": text_ids})

    def media(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The inputs of the image or audio tower, or its pooled vectors (B, H) where the rows have them."""
        for name in (f"{modality}_pooler_output" for modality in MODALITY_NAMES):
            if name in rows[0]:
                return _stacked(name, rows)
        return {"image": self._images, "audio": self._sounds}[modality_of_columns(rows[0])](rows)

    def _images(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        images = [row["image"] for row in rows]
        if self.image_augment is not None:
            positions = [row["position"] for row in rows]
            images = [self.image_augment(*item) for item in zip(images, positions, strict=True)]
        return dict(self.processor(images=images, return_tensors="pt"))

    def _sounds(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        inputs = self._audio(rows)
        if self.feature_augment is not None:
            name = self.processor.feature_extractor.model_input_names[0]  # input_features, or AST's input_values
            augmented = [self.feature_augment(x, row["position"]) for x, row in zip(inputs[name], rows, strict=True)]
            inputs[name] = torch.stack(augmented)
        return inputs

    def _audio(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        extractor, clips = self.processor.feature_extractor, [row["audio"] for row in rows]
        if isinstance(extractor, ClapFeatureExtractor):
            seeds = [int(row_generator(0, row["position"], stream=_CROP_STREAM).integers(2**32)) for row in rows]
            return dict(clap_features(extractor, clips, seeds=seeds, any_longer=self.any_longer))
        clips = to_clip_length(extractor, clips)
        check_equal_lengths(extractor, clips)
        rate = extractor.sampling_rate
        return dict(self.processor(audio=clips, audio_kwargs={"sampling_rate": rate}, return_tensors="pt"))


def _stacked(name: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    vectors = torch.stack([row[name] for row in rows])  # (B, H), or (B, k, H) of several captions
    return {name: vectors if vectors.ndim == 2 else vectors.flatten(0, 1)}


def _texts_of(rows: Sequence[dict[str, Any]]) -> tuple[list[str], torch.Tensor | None]:
    """The captions of each row, each row's followed by its negative caption if rows have one, and the ids of all texts.

    A missing negative caption is replaced by the shortest caption of the batch, with the id -1.
    """
    captions = [row["text"] if isinstance(row["text"], list) else [row["text"]] for row in rows]
    if "negative_text" not in rows[0]:
        return [text for of_row in captions for text in of_row], None
    shortest = min((of_row[0] for of_row in captions), key=len)
    cells = [cell for of_row, row in zip(captions, rows, strict=True) for cell in [*of_row, row["negative_text"]]]
    text_ids = torch.tensor([NO_TEXT if cell is None else text_id(cell) for cell in cells], dtype=torch.int64)
    return [shortest if cell is None else cell for cell in cells], text_ids


class SentenceCollator:
    """Collator that makes model inputs from rows of `SentenceDataset`, one view after the other.

    For B rows with V of the columns anchor, positive, negative: V*B texts, all anchors, then all positives, then all
    negatives, tokenised in one call and padded to the longest: input_ids, attention_mask (V*B, T); `text_ids` (V*B,)
    int64, equal for equal texts; and `ids`, V*B str, the number of each text's row. A row without a negative has the
    shortest anchor of the batch in its place, with the text id -1: the loss does not see it.

    Args:
        tokenizer: Tokenizer of the text tower.
        max_length: Maximum number of tokens per text; 32 as in SimCSE.
        mlm_probability: Probability that a token is masked. Above 0, batches also hold `mlm_input_ids` and `mlm_labels`
            (V*B, T) for masked language modelling. BERT and SimCSE use 0.15.
        seed: Seed of the masks, which depend only on it and on each row's epoch and index.
        pad_to_max_length: Whether to pad texts to `max_length` rather than to the longest text of the batch.

    Raises:
        ValueError: If `mlm_probability` is not in [0, 1), or the tokenizer has no mask token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 32,
        mlm_probability: float = 0.0,
        seed: int = 0,
        pad_to_max_length: bool = False,
    ) -> None:
        if not 0 <= mlm_probability < 1:
            raise ValueError(f"mlm_probability must be in [0, 1), got {mlm_probability}.")
        if mlm_probability > 0 and tokenizer.mask_token_id is None:
            raise ValueError("Masked language modelling needs a tokenizer with a mask token; set mlm_probability to 0.")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.mlm_probability = mlm_probability
        self.seed = seed
        self.padding = "max_length" if pad_to_max_length else "longest"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        views = [name for name in SENTENCE_VIEWS if name in rows[0]]
        cells = [row[view] for view in views for row in rows]
        shortest = min((row[views[0]] for row in rows), key=len)
        texts = [shortest if cell is None else cell for cell in cells]
        batch = dict(
            self.tokenizer(
                with_prefix(self.tokenizer, texts),
                padding=self.padding,
                truncation=True,
                max_length=self.max_length,
                return_tensors="pt",
            )
        )
        if self.mlm_probability > 0:
            positions = [row["position"] for row in rows]
            batch |= self._masked(batch["input_ids"].view(len(views), len(rows), -1), positions)
        text_ids = torch.tensor([NO_TEXT if cell is None else text_id(cell) for cell in cells], dtype=torch.int64)
        return batch | {"text_ids": text_ids, "ids": [str(row["position"].index) for row in rows] * len(views)}

    def _masked(self, input_ids: torch.Tensor, positions: Sequence[EpochIndex]) -> dict[str, torch.Tensor]:
        """BERT's masks (Devlin et al. 2019, section 3.1): (V, B, T) ids -> (V*B, T) masked ids and labels.

        Of the drawn tokens 80 % become the mask token, 10 % a random one and 10 % stay.
        """
        masked, labels = input_ids.clone(), torch.full_like(input_ids, -100)
        special = torch.tensor(self.tokenizer.all_special_ids)
        for column, position in enumerate(positions):
            ids = input_ids[:, column]  # (V, T)
            generator = row_generator(self.seed, position, stream=_MASK_STREAM)
            # The number of draws does not depend on the padding, so that the masks of a row do not depend on its batch.
            draws = torch.from_numpy(generator.random((3, len(ids), self.max_length)))[..., : ids.shape[1]]
            chosen = (draws[0] < self.mlm_probability) & ~torch.isin(ids, special)
            labels[:, column][chosen] = ids[chosen]
            masked[:, column][chosen & (draws[1] < 0.8)] = self.tokenizer.mask_token_id
            replaced = chosen & (draws[1] >= 0.9)
            masked[:, column][replaced] = (draws[2] * len(self.tokenizer)).long()[replaced]
        return {"mlm_input_ids": masked.flatten(0, 1), "mlm_labels": labels.flatten(0, 1)}

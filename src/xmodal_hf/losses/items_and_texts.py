"""Items against texts of all processes, as the losses of pairs see them: several captions an item, and negative ones.

Legend: B local items, k captions of each, N items of all processes, E negative captions of all processes, D embedding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..distributed import RowShards, gather_with_grad
from .checks import check_group_ids, check_items_and_texts, exchange_batch
from .positives import NO_TEXT, ExcludedTexts, GroupPositives, PairPositives, text_positives
from .streaming import TileGrid, tile_edge


@dataclass(frozen=True)
class ItemsAndTexts:
    """The columns of a loss of items over texts, and which of them are positives or hidden.

    Attributes:
        columns: Embeddings of the captions of all processes, then of the negative captions of all processes, of shape
            (k N + E, D), with gradient.
        extra_texts: Embeddings of the negative captions of this process; no row if there are none.
        positives: Positives of the local items among the captions.
        excluded: Negative captions that an item does not see. None if each item sees all of them.
        shards, text_shards, extra_shards: Rows of items, captions and negative captions in each process.
        texts_per_item: Number k of captions of each item.
        grid: Tiles of the logits, whose boundary is the first negative caption.
    """

    columns: Tensor
    extra_texts: Tensor
    positives: PairPositives | GroupPositives
    excluded: ExcludedTexts | None
    shards: RowShards
    text_shards: RowShards
    extra_shards: RowShards
    texts_per_item: int
    grid: TileGrid

    @classmethod
    def of(
        cls,
        modality_embeds: Tensor,
        text_embeds: Tensor,
        extra_texts: Tensor | None,
        *,
        group_ids: Tensor | None,
        text_ids: Tensor | None,
        extra_text_ids: Tensor | None,
        chunk_size: int | None,
    ) -> "ItemsAndTexts":
        """For local items (B, D), captions (k B, D) and negative captions; the arguments are those of `clip_loss`."""
        if extra_texts is None:
            extra_texts = text_embeds.new_empty(0, *text_embeds.shape[1:])
        check_items_and_texts(modality_embeds, text_embeds, extra_texts, group_ids, chunk_size)
        _check_ids(text_embeds, extra_texts, text_ids, extra_text_ids)
        counts = len(modality_embeds), len(text_embeds), len(extra_texts)
        shards, text_shards, extra_shards = exchange_batch(modality_embeds, *counts)
        texts_per_item = _texts_per_item(shards, text_shards)
        columns = gather_with_grad(text_embeds, text_shards)  # (k N, D)
        if extra_shards.total > 0:
            columns = torch.cat([columns, gather_with_grad(extra_texts, extra_shards)])  # (k N + E, D)
        excluded = None
        if extra_text_ids is not None:
            own = modality_embeds.new_full((len(modality_embeds), 1), NO_TEXT, dtype=torch.long)
            own = own if text_ids is None else text_ids.view(len(modality_embeds), texts_per_item)
            excluded = ExcludedTexts.of(own, extra_text_ids, shards, extra_shards)
        edge = tile_edge(chunk_size, modality_embeds.device)
        return cls(
            columns,
            extra_texts,
            text_positives(group_ids, texts_per_item, modality_embeds, shards, text_shards),
            excluded,
            shards,
            text_shards,
            extra_shards,
            texts_per_item,
            TileGrid(len(modality_embeds), len(columns), edge, boundary=text_shards.total),
        )


def _texts_per_item(shards: RowShards, text_shards: RowShards) -> int:
    """Number of texts of each item, which is the same in all processes."""
    texts_per_item = text_shards.total // shards.total
    expected = tuple(size * texts_per_item for size in shards.sizes)
    if texts_per_item < 1 or text_shards.sizes != expected:
        raise ValueError(
            "text_embeds must have the same number of rows for each item in all processes; items "
            f"{list(shards.sizes)}, texts {list(text_shards.sizes)} by rank."
        )
    return texts_per_item


def _check_ids(
    text_embeds: Tensor, extra_texts: Tensor, text_ids: Tensor | None, extra_text_ids: Tensor | None
) -> None:
    if text_ids is not None and extra_text_ids is None:
        raise ValueError("text_ids say which extra_texts are equal to captions: pass extra_text_ids too")
    if text_ids is not None:
        check_group_ids("text_ids", text_ids, len(text_embeds), text_embeds.device)
    if extra_text_ids is not None:
        check_group_ids("extra_text_ids", extra_text_ids, len(extra_texts), text_embeds.device)

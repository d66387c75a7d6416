"""Cross-modal retrieval: exact ranks in tiles, many captions an item, both directions.

Legend: Q queries, G gallery rows, P (query, gold) pairs, D embedding size.

Ranks count from 1. A gold is ranked behind every non-gold row whose cosine equals its own, so a model that maps
everything to one point scores zero, not one hundred. Captions that are equal after trimming are one text: one query,
whose golds are all items that carry it, and one gallery row, or else a perfect model would score zero where captions
repeat, as class names do. Ties of different texts count against the model.

Cosines are compared in float64 with a tolerance far above its rounding and far below the distance of two different
float32 embeddings: the ranks do not depend on the tile size, on the order of the rows or on the number of threads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ..messages import progress_bar
from .bootstrap import DEFAULT_RESAMPLES, mean_resamples, with_interval
from .checks import as_embeds, as_indices, check_same_width
from .hubness import SCORES, Correction, Scores, correction

logger = logging.getLogger(__name__)

DEFAULT_KS = (1, 5, 10)
# distinct: equal captions are one text; plain: every caption is a text of its own, as in published code.
RetrievalProtocol = Literal["distinct", "plain"]
PROTOCOLS = ("distinct", "plain")
# float64 dot products of unit vectors are wrong by at most D * 2^-53 (6e-14 at D = 512); cosines of two float32
# embeddings that differ in their last bits differ by about 1e-10.
TIE_TOLERANCE = 1e-12
# Rows of one item that were embedded in different batches differ by rounding, 1e-6 in float32 and 1e-2 in bfloat16.
_SAME_ITEM_TOLERANCE = 0.05
_TILE = 2048  # a tile of 2048 x 2048 float64 cosines is 32 MiB
_SECONDS_BEFORE_BAR = 2.0


@dataclass(frozen=True)
class GoldRanks:
    """The rank of every gold of every query, sorted by query and, within a query, from the best.

    Attributes:
        ranks: Ranks, of shape (P,), int64, counted from 1.
        query_index: Index of the query of each rank, of shape (P,), int64.
    """

    ranks: np.ndarray
    query_index: np.ndarray

    @property
    def best(self) -> np.ndarray:
        """(Q,) the rank of each query's best gold."""
        return self.ranks[self._first_of_query()]

    @property
    def num_golds(self) -> np.ndarray:
        """(Q,) how many golds each query has."""
        return np.diff(self._first_of_query(), append=len(self.ranks))

    def position(self) -> np.ndarray:
        """(P,) 1 for a query's best gold, 2 for its second, and so on."""
        return np.arange(len(self.ranks)) - np.repeat(self._first_of_query(), self.num_golds) + 1

    def _first_of_query(self) -> np.ndarray:
        return np.flatnonzero(np.diff(self.query_index, prepend=-1))


def retrieval_ranks(
    query_embeds: Any, gallery_embeds: Any, gold: Any = None, *, texts: Sequence[str] | None = None
) -> GoldRanks:
    """Rank every gold in the gallery by cosine, without ever holding the Q x G matrix.

    Args:
        query_embeds: Query embeddings of shape (Q, D), array or tensor; rows are normalised here.
        gallery_embeds: Gallery embeddings of shape (G, D), each item once; rows are normalised here.
        gold: Gallery index of each query's gold, of shape (Q,), or Q sequences of indices if a query has several. None
            pairs row i with row i. Without texts, pairs whose rows are equal to the bit on both sides are then one pair
            that is listed several times, which a line of the log says: none of them counts against another. If all
            pairs are equal, the model maps everything to one point, and the ties count against it.
        texts: Texts of queries that are captions, of shape (Q,). Equal texts become one query with the golds of all of
            them, in the order of the texts' first rows. Without texts, queries with equal embeddings stay different
            queries.

    Raises:
        ValueError: If a matrix is empty or not finite, the widths differ, or the gold of a query is missing, out of
            range or named twice.

    Example:
        >>> retrieval_ranks([[1.0, 0.0]], [[1.0, 0.1], [1.0, 0.0], [0.0, 1.0]], gold=[[0, 2]]).ranks
        array([2, 3])
        >>> same = retrieval_ranks([[1.0, 0.0]] * 2, [[1.0, 0.0]] * 2, texts=["a dog", "a dog "])
        >>> same.ranks
        array([1, 2])
    """
    queries, gallery = as_embeds(query_embeds, "query_embeds"), as_embeds(gallery_embeds, "gallery_embeds")
    pairs = gold_pairs(gold, len(queries), len(gallery))
    if gold is None and texts is None:
        first_rows, number_of = _distinct_pairs(queries, gallery)
        distinct = np.arange(len(first_rows))
        ranks = _rank_directions(queries[first_rows], gallery[first_rows], distinct, distinct, backward=False)[0].ranks
        return GoldRanks(ranks[number_of], pairs[0])
    queries, pair_query, pair_gallery = _merge_equal_texts(queries, *pairs, texts)
    return _rank_directions(queries, gallery, pair_query, pair_gallery, backward=False)[0]


def _distinct_pairs(queries: torch.Tensor, gallery: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(M,) the first row of each distinct pair, and (Q,) the number of each row's; each is one where all are equal."""
    numbers: dict[bytes, int] = {}
    rows = zip(queries.cpu().numpy(), gallery.cpu().numpy(), strict=True)
    number_of = np.array([numbers.setdefault(query.tobytes() + item.tobytes(), len(numbers)) for query, item in rows])
    if len(numbers) in (1, len(number_of)):
        return np.arange(len(number_of)), np.arange(len(number_of))
    logger.warning(
        "%d of %d pairs are equal to an earlier one on both sides and taken for repetitions of it: pass texts=... or "
        "gold=... to say which rows belong together",
        *(len(number_of) - len(numbers), len(number_of)),
    )
    return np.unique(number_of, return_index=True)[1], number_of


def both_directions(
    modality_embeds: Any, text_embeds: Any, text_to_item: Any = None, *, texts: Sequence[str] | None = None
) -> tuple[GoldRanks, GoldRanks]:
    """Ranks of text to item and of item to text from one product of the matrices; arguments as `evaluate_retrieval`.

    With `texts`, equal ones are one query and one gallery row, in the order of their first rows.
    """
    return _both_directions(modality_embeds, text_embeds, text_to_item, texts)[:2]


def _both_directions(
    modality_embeds: Any,
    text_embeds: Any,
    text_to_item: Any,
    texts: Sequence[str] | None,
    scores: Scores = "cosine",
    query_bank: Any = None,
) -> tuple[GoldRanks, GoldRanks, np.ndarray]:
    """The ranks of both directions, and (T,) the first item that carries each text."""
    items, rows = as_embeds(modality_embeds, "modality_embeds"), as_embeds(text_embeds, "text_embeds")
    pairs = gold_pairs(text_to_item, len(rows), len(items))
    rows, pair_text, pair_item = _merge_equal_texts(rows, *pairs, texts)
    captions_of_item = np.bincount(pair_item, minlength=len(items))
    if captions_of_item.min() == 0:
        raise ValueError(f"item {int(captions_of_item.argmin())} has no caption, so item to text has no gold for it")
    corrections = _corrections(scores, rows, items, query_bank)
    to_item, to_text = _rank_directions(rows, items, pair_text, pair_item, backward=True, corrections=corrections)
    return to_item, to_text, pair_item[np.searchsorted(pair_text, np.arange(len(rows)))]


def _corrections(
    scores: Scores, rows: torch.Tensor, items: torch.Tensor, query_bank: Any
) -> tuple[Correction | None, Correction | None]:
    """Corrections of the cosines of texts to items, and of items to texts."""
    if scores == "cosine":
        return None, None
    check_same_width(rows, items, "queries and gallery")
    texts, gallery = _unit_rows(rows), _unit_rows(items.to(rows.device))
    if query_bank is None:
        return correction(scores, texts, gallery, None), correction(scores, gallery, texts, None)
    bank = _unit_rows(as_embeds(query_bank, "query_bank").to(rows.device))
    check_same_width(rows, bank, "queries and query_bank")
    return correction(scores, texts, gallery, bank), None


def distinct_texts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Find texts that are equal after trimming.

    Returns:
        First row of each distinct text, in order, of shape (T,), and number of the text of each row, of shape (M,).

    Example:
        >>> distinct_texts(["a dog", "rain", " a dog"])
        (array([0, 1]), array([0, 1, 0]))
    """
    numbers: dict[str, int] = {}
    number_of = np.array([numbers.setdefault(text.strip(), len(numbers)) for text in texts], dtype=np.int64)
    _, first_rows = np.unique(number_of, return_index=True)
    return first_rows, number_of


def _merge_equal_texts(
    rows: torch.Tensor, pair_text: np.ndarray, pair_item: np.ndarray, texts: Sequence[str] | None
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """(M, D) rows of texts and their (P,) pairs -> the same of distinct texts, each pair once, sorted by text."""
    if texts is None:
        return rows, pair_text, pair_item
    if len(texts) != len(rows):
        raise ValueError(f"{len(rows)} rows of text_embeds need as many texts, not {len(texts)}")
    first_rows, number_of = distinct_texts(texts)
    pairs = np.unique(np.stack([number_of[pair_text], pair_item], axis=1), axis=0)
    return rows[torch.from_numpy(first_rows)], pairs[:, 0], pairs[:, 1]


def score_ranks(scores: Any, gold: Any = None) -> GoldRanks:
    """Rank every gold by given scores (Q, G), higher is better; exact equality is a tie, counted against the gold.

    Raises:
        ValueError: For the same reasons as `retrieval_ranks`.

    Example:
        >>> score_ranks([[0.9, 0.9, 0.1]], gold=[0]).ranks
        array([2])
    """
    matrix = as_embeds(scores, "scores").double()
    rows, columns = gold_pairs(gold, *matrix.shape)
    golds = _Golds(rows, columns, matrix[rows.tolist(), columns.tolist()], tolerance=0.0)
    golds.count_tile(matrix.clone(), 0, 0)
    return golds.rank()


def gold_pairs(gold: Any, num_queries: int, num_gallery: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn any accepted form of `gold` into the (P,) query and gallery index of each pair, sorted by query."""
    if gold is None:
        if num_queries != num_gallery:
            raise ValueError(
                f"{num_queries} queries and {num_gallery} gallery rows cannot be paired row by row: say which gallery "
                "row is each query's gold"
            )
        return np.arange(num_queries), np.arange(num_gallery)
    if isinstance(gold, torch.Tensor):
        gold = gold.cpu().numpy()
    if isinstance(gold, np.ndarray) and gold.shape == (num_queries,) and gold.dtype != object:
        # with one gold per query, no loop over queries is needed
        return np.arange(num_queries), as_indices(gold, "gold", num_gallery)
    golds = [np.atleast_1d(np.asarray(of_query)) for of_query in gold]
    if len(golds) != num_queries:
        raise ValueError(f"{num_queries} queries need as many golds, not {len(golds)}")
    for query, of_query in enumerate(golds):
        if len(of_query) == 0 or len(np.unique(of_query)) != len(of_query):
            raise ValueError(f"query {query} needs at least one gold and each once; it has {of_query.tolist()}")
    pair_query = np.repeat(np.arange(num_queries), [len(of_query) for of_query in golds])
    return pair_query, as_indices(np.concatenate(golds), "gold", num_gallery)


def gold_counts(text_to_item: Any, texts: Sequence[str], *, distinct: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Count the golds of each text and of each item.

    Args:
        text_to_item: Item of each caption, of shape (M,).
        texts: Captions of shape (M,).
        distinct: Whether equal captions are one text, as in the protocol `distinct` of `evaluate_retrieval`.

    Returns:
        Number of items of each text, of shape (T,), and number of texts of each item, of shape (N,).

    Example:
        >>> gold_counts([0, 1, 1], ["a dog", "a dog", "rain"])
        (array([2, 1]), array([1, 2]))
    """
    items = np.asarray(text_to_item)
    rows = distinct_texts(texts)[1] if distinct else np.arange(len(items))
    pairs = np.unique(np.stack([rows, items], axis=1), axis=0)  # (P, 2)
    return np.bincount(pairs[:, 0]), np.bincount(pairs[:, 1])


def recall_at_k(ranks: GoldRanks, k: int) -> float:
    """Share of the queries with a gold among the first k, in [0, 1]. With k at or above the gallery's size it is 1."""
    return float((ranks.best <= _checked_k(k)).mean())


def median_rank(ranks: GoldRanks) -> float:
    """Median over the queries of the best gold's rank (from 1)."""
    return float(np.median(ranks.best))


def mean_average_precision(ranks: GoldRanks, k: int = 10) -> float:
    """mAP@k in [0, 1]: mean over the queries of the sum over golds ranked within k of (i / rank_i), divided by the
    number of golds, where rank_i is the i-th smallest."""
    return float(average_precisions(ranks, k).mean())


def average_precisions(ranks: GoldRanks, k: int = 10) -> np.ndarray:
    """(Q,) the summands of `mean_average_precision`."""
    precisions = np.where(ranks.ranks <= _checked_k(k), ranks.position() / ranks.ranks, 0.0)
    return np.bincount(ranks.query_index, weights=precisions) / ranks.num_golds


def evaluate_retrieval(
    modality_embeds: Any,
    text_embeds: Any,
    text_to_item: Any = None,
    *,
    texts: Sequence[str] | None = None,
    protocol: RetrievalProtocol = "distinct",
    scores: Scores = "cosine",
    query_bank: Any = None,
    modality: str = "image",
    ks: Sequence[int] = DEFAULT_KS,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = 0,
) -> dict[str, float]:
    """Retrieval in both directions, each item once.

    Text to item: a text finds one of the items that carry it. Item to text: a hit if any caption of the item is among
    the first k. Captions that are equal after trimming are one text, as query and in the gallery.

    Args:
        modality_embeds: Image or audio embeddings of shape (N, D), one row per item.
        text_embeds: Caption embeddings of shape (M, D).
        text_to_item: Item of each caption, of shape (M,). None means one caption per item, row i for row i.
        texts: Captions of shape (M,), which tell which captions are equal (`PairEmbeddings.texts`). Without them all
            captions are taken to be different, and a warning is logged if embeddings are equal: a model that maps all
            texts to one point must not look like one text.
        protocol: Treatment of equal captions: "distinct" as above; "plain" treats every caption as a text of its own,
            as published code does, so that equal captions of different items tie and count against each other.
        scores: Name of the scores: "cosine"; "csls" (Lample et al. 2018) or "querybank" (Bogolin et al. 2022), which
            rank hubs lower (`hubness`).
        query_bank: Embeddings of training captions, of shape (K, D), which "querybank" requires. With "csls" the
            neighbours come from them; without them, from the queries of the test, which is transductive. A bank of
            captions does not apply to item to text retrieval, whose numbers are then left out.
        modality: Name of the modality, which occurs in the keys.
        ks: Cut-offs of the recall.
        num_resamples: Number of resamples of the bootstrap over items; 0 leaves the intervals out. A text is drawn with
            the first item that carries it.
        seed: Seed of the bootstrap.

    Returns:
        For both directions, `text_to_image_...` and `image_to_text_...`: `recall@k` and `map@10` in percent, each with
        `_ci95_low` and `_ci95_high`, and `median_rank` (from 1), all after the name of scores that are not cosines
        (`csls_text_to_image_recall@1`); then `num_items`, `num_texts` (captions) and
        `num_distinct_texts`, in either protocol.

    Raises:
        ValueError: For the same reasons as `retrieval_ranks`, and if the protocol or the scores are unknown, or
            `querybank` has no query bank. An item without a caption counts as a missing gold.

    Example:
        >>> images, embeds = np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.2]])
        >>> results = evaluate_retrieval(images, embeds, text_to_item=[0, 1, 1], num_resamples=0)
        >>> round(results["text_to_image_recall@1"], 2), results["image_to_text_recall@1"]
        (66.67, 100.0)
        >>> perfect = np.eye(2).repeat(2, axis=0)
        >>> for protocol in ("distinct", "plain"):
        ...     texts = ["a dog", "a dog", "a cat", "a cat"]
        ...     evaluate_retrieval(perfect, perfect, texts=texts, protocol=protocol)["text_to_image_recall@1"]
        100.0
        0.0
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if scores not in SCORES:
        raise ValueError(f"scores must be one of {', '.join(SCORES)}, got {scores!r}")
    num_texts = len(as_embeds(text_embeds, "text_embeds"))
    if texts is None and protocol == "distinct":
        _warn_of_equal_rows(text_embeds)
    merged = texts if protocol == "distinct" else None
    ranked = _both_directions(modality_embeds, text_embeds, text_to_item, merged, scores, query_bank)
    to_item, to_text, text_item = ranked
    num_items = len(to_text.best)
    bootstrap = {"num_resamples": num_resamples, "seed": seed}
    prefix = "" if scores == "cosine" else f"{scores}_"
    results = _direction_metrics(f"{prefix}text_to_{modality}", to_item, text_item, ks, **bootstrap)
    if scores == "cosine" or query_bank is None:
        results |= _direction_metrics(f"{prefix}{modality}_to_text", to_text, np.arange(num_items), ks, **bootstrap)
    num_distinct = num_texts if texts is None else len(distinct_texts(texts)[0])
    return results | {"num_items": num_items, "num_texts": num_texts, "num_distinct_texts": num_distinct}


def _warn_of_equal_rows(text_embeds: Any) -> None:
    rows = as_embeds(text_embeds, "text_embeds").cpu().numpy()
    equal = len(rows) - len({row.tobytes() for row in rows})
    if equal:
        logger.warning(
            "%d of %d texts have the embedding of another one: if they are the same text, pass texts=..., which counts "
            "equal ones once; they are taken for different texts that the model does not tell apart.",
            *(equal, len(rows)),
        )


def distinct_items(modality_embeds: Any, item_ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """Convert one row per (caption, item) pair to one row per item.

    Args:
        modality_embeds: Item embeddings of shape (M, D), one row beside each caption of the item.
        item_ids: Integers or strings of shape (M,), equal for the captions of one item.

    Returns:
        Embeddings of the items, of shape (N, D), and `text_to_item`, of shape (M,).

    Raises:
        ValueError: If the numbers of rows and ids differ, or two embeddings have one id.

    Example:
        >>> distinct_items(np.array([[2.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), ["b", "a", "b"])
        (array([[0., 1.],
               [2., 0.]]), array([1, 0, 1]))
    """
    embeds = as_embeds(modality_embeds, "modality_embeds").cpu().numpy()
    if len(embeds) != len(item_ids):
        raise ValueError(f"{len(embeds)} rows need as many item_ids, not {len(item_ids)}")
    _, first_rows, text_to_item = np.unique(np.asarray(item_ids), return_index=True, return_inverse=True)
    items = embeds[first_rows]
    differences = np.abs(embeds - items[text_to_item]).max(axis=1)
    if differences.max() > _SAME_ITEM_TOLERANCE * np.abs(embeds).max():
        name = item_ids[int(differences.argmax())]
        raise ValueError(
            f"item {name!r} has different embeddings in its rows: use unique ids, and do not augment items"
        )
    return items, text_to_item


def _direction_metrics(
    direction: str, ranks: GoldRanks, query_items: np.ndarray, ks: Sequence[int], *, num_resamples: int, seed: int
) -> dict[str, float]:
    """One direction's metrics; `query_items` (Q,) says which item each query belongs to, for the bootstrap."""
    per_query = {f"recall@{k}": (ranks.best <= _checked_k(k)).astype(np.float64) for k in ks}
    per_query["map@10"] = average_precisions(ranks, 10)
    results: dict[str, float] = {}
    for name, values in per_query.items():
        percent, key = 100 * values, f"{direction}_{name}"
        if num_resamples:
            resamples = mean_resamples(percent, query_items, num_resamples=num_resamples, seed=seed)
            results |= with_interval(key, float(percent.mean()), resamples)
        else:
            results[key] = float(percent.mean())
    return results | {f"{direction}_median_rank": median_rank(ranks)}


class _Golds:
    """The (row, gold column) pairs of one direction, sorted by row, and how many non-golds stand ahead of each."""

    def __init__(self, rows: np.ndarray, columns: np.ndarray, scores: torch.Tensor, tolerance: float):
        self.rows, self.columns, self.scores, self.tolerance = rows, columns, scores, tolerance
        self.ahead = torch.zeros(len(rows), dtype=torch.int64, device=scores.device)  # (P,)
        self.number = np.arange(len(rows)) - np.searchsorted(rows, rows)  # (P,) number of a gold within its row

    def transposed(self) -> _Golds:
        """The same pairs seen from the columns."""
        order = np.argsort(self.columns, kind="stable")
        return _Golds(self.columns[order], self.rows[order], self.scores[order.tolist()], self.tolerance)

    def count_tile(self, scores: torch.Tensor, first_row: int, first_column: int) -> None:
        """Add what the tile (r, c) of the score matrix that starts there says. Overwrites its golds."""
        first, last = np.searchsorted(self.rows, [first_row, first_row + len(scores)])
        rows = torch.from_numpy(self.rows[first:last] - first_row).to(scores.device)
        columns = torch.from_numpy(self.columns[first:last] - first_column).to(scores.device)
        inside = (columns >= 0) & (columns < scores.shape[1])
        scores[rows[inside], columns[inside]] = -torch.inf  # no gold is ahead of a gold
        number = self.number[first:last]
        for gold in range(number.max(initial=-1) + 1):
            # the rows that have this number of golds, each once
            chosen = torch.from_numpy(np.flatnonzero(number == gold)).to(scores.device)
            block = scores if len(chosen) == len(scores) else scores[rows[chosen]]
            pairs = chosen + first
            at_least = block >= (self.scores[pairs] - self.tolerance).unsqueeze(1)  # (rows, c)
            # Sums of bytes take a third of the time of sums of booleans.
            self.ahead[pairs] += at_least.view(torch.uint8).sum(dim=1, dtype=torch.int32)

    def rank(self) -> GoldRanks:
        """Within a row the golds come in the order of their scores, each behind the non-golds ahead of it."""
        order = np.lexsort((-self.scores.cpu().numpy(), self.rows))
        ordered = GoldRanks(self.ahead.cpu().numpy()[order], self.rows[order])
        return GoldRanks(ordered.ranks + ordered.position(), ordered.query_index)


def _rank_directions(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    pair_query: np.ndarray,
    pair_gallery: np.ndarray,
    *,
    backward: bool,
    corrections: tuple[Correction | None, Correction | None] = (None, None),
) -> list[GoldRanks]:
    """Ranks of each query's golds and, with `backward`, of each gallery row's golds among the queries."""
    check_same_width(queries, gallery, "queries and gallery")
    gallery = gallery.to(queries.device)
    cosines_of_pairs = _pair_cosines(queries, gallery, pair_query, pair_gallery)
    places = torch.from_numpy(pair_query), torch.from_numpy(pair_gallery)
    to_gallery, to_queries = corrections
    golds = cosines_of_pairs if to_gallery is None else cosines_of_pairs - to_gallery.of_pairs(*places)
    directions = [_Golds(pair_query, pair_gallery, golds, TIE_TOLERANCE)]
    if backward:
        golds = cosines_of_pairs if to_queries is None else cosines_of_pairs - to_queries.of_pairs(*places[::-1])
        directions.append(_Golds(pair_query, pair_gallery, golds, TIE_TOLERANCE).transposed())
    starts = [(row, column) for row in range(0, len(queries), _TILE) for column in range(0, len(gallery), _TILE)]
    for row, column in progress_bar(starts, desc="ranking", unit="tile", delay=_SECONDS_BEFORE_BAR):
        if column == 0:
            unit_queries = _unit_rows(queries[row : row + _TILE])
        cosines = unit_queries @ _unit_rows(gallery[column : column + _TILE]).T  # (q, g)
        tiles = (cosines, row, column), (cosines.T, column, row)
        for direction, fix, (tile, first_row, first_column) in zip(directions, corrections, tiles, strict=False):
            direction.count_tile(_corrected(tile, fix, first_row, first_column), first_row, first_column)
    return [direction.rank() for direction in directions]


def _corrected(tile: torch.Tensor, fix: Correction | None, first_row: int, first_column: int) -> torch.Tensor:
    """The scores (r, c) of a tile of cosines; a new tensor where something is subtracted."""
    if fix is None:
        return tile
    rows, columns = slice(first_row, first_row + len(tile)), slice(first_column, first_column + tile.shape[1])
    return tile - fix.of_tile(rows, columns)


def _unit_rows(embeds: torch.Tensor) -> torch.Tensor:
    """(n, D) float64 rows of length one; a row of zeros stays so and ties with everything."""
    return torch.nn.functional.normalize(embeds.double(), dim=1)


def _pair_cosines(
    queries: torch.Tensor, gallery: torch.Tensor, pair_query: np.ndarray, pair_gallery: np.ndarray
) -> torch.Tensor:
    """(P,) float64 cosine of each query with its gold."""
    parts = []
    for start in range(0, len(pair_query), _TILE):
        chunk = slice(start, start + _TILE)
        rows, columns = torch.from_numpy(pair_query[chunk]), torch.from_numpy(pair_gallery[chunk])
        parts.append((_unit_rows(queries[rows]) * _unit_rows(gallery[columns])).sum(dim=1))
    return torch.cat(parts)


def _checked_k(k: int) -> int:
    if k < 1:
        raise ValueError(f"k, the number of results, must be at least 1, got {k}")
    return k

"""Hubs: gallery rows that are near to many queries, and scores that take it into account.

The k-occurrence of a gallery row is how many queries have it among their k nearest; in high dimensions its distribution
is skewed (Radovanovic et al. 2010), and the rows at its long end are wrong answers to many queries.

Both corrections subtract a number of each gallery row from the cosines, which changes the order within a query:

- CSLS (Lample et al. 2018, eq. 4): 2 cos(q, g) - r(q) - r(g), r the mean cosine with the k nearest rows of the other
  side; r(q) is the same for all rows of the gallery, so cos(q, g) - r(g) / 2 has the same order.
- Querybank normalisation with the dynamic inverted softmax (Bogolin et al. 2022, eq. 4 and 5): exp(b cos(q, g)) over
  its sum over the queries of a bank, for queries whose nearest row is the nearest one of a query of the bank; the
  others keep their cosines.

Legend: Q queries, G gallery rows, K queries of a bank, D embedding size. Rows are unit-norm float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from .checks import as_embeds, check_same_width

Scores = Literal["cosine", "csls", "querybank"]
SCORES = ("cosine", "csls", "querybank")
# Number k of nearest neighbours. The result hardly depends on k between 5 and 50 (Lample et al. 2018, section 3.2).
NUM_NEIGHBOURS = 10
# Inverse temperature of the inverted softmax: 20 in Bogolin et al. 2022, section 4.2.
INVERSE_TEMPERATURE = 20.0
_TILE = 2048  # a tile of 2048 x 2048 float64 cosines is 32 MiB


@dataclass(frozen=True)
class Correction:
    """Numbers that are subtracted from the cosines of queries and gallery rows.

    Attributes:
        offsets: Numbers that are subtracted, of shape (G,), float64.
        applies: Mask of the queries to which the correction applies, of shape (Q,), bool; None stands for all.
    """

    offsets: torch.Tensor
    applies: torch.Tensor | None = None

    def of_pairs(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Numbers that are subtracted from the cosines of queries (P,) with gallery rows (P,)."""
        offsets = self.offsets[columns]
        return offsets if self.applies is None else offsets * self.applies[rows]

    def of_tile(self, rows: slice, columns: slice) -> torch.Tensor:
        """Numbers that are subtracted from the cosines of a tile, (r, c) or (c,)."""
        offsets = self.offsets[columns]
        return offsets if self.applies is None else offsets * self.applies[rows, None]


def correction(
    scores: Scores, queries: torch.Tensor, gallery: torch.Tensor, bank: torch.Tensor | None
) -> Correction | None:
    """Correction of the cosines of queries (Q, D) and a gallery (G, D) by `scores`; None for plain cosines.

    Args:
        scores: Name of the scores: "cosine", "csls" or "querybank".
        queries, gallery: Query and gallery embeddings of the test, of shapes (Q, D) and (G, D).
        bank: Embeddings of other queries, of shape (K, D), from which the neighbours of the gallery rows are taken. If
            None, CSLS takes the queries of the test and is then transductive: it uses all queries to answer each one.

    Raises:
        ValueError: If the scores are unknown, or `querybank` has no query bank.
    """
    if scores == "cosine":
        return None
    if scores == "csls":
        return Correction(mean_of_nearest(gallery, queries if bank is None else bank) / 2)
    if scores != "querybank":
        raise ValueError(f"scores must be one of {', '.join(SCORES)}, got {scores!r}")
    if bank is None:
        raise ValueError("querybank normalisation needs a bank of training queries: pass query_bank")
    sums = torch.cat([(INVERSE_TEMPERATURE * tile).logsumexp(dim=1) for tile in _bands(gallery, bank)])  # (G,)
    hubs = torch.zeros(len(gallery), dtype=torch.bool, device=gallery.device)
    hubs[nearest(bank, gallery, 1).flatten()] = True  # the activation set
    return Correction(sums / INVERSE_TEMPERATURE, hubs[nearest(queries, gallery, 1)[:, 0]])


def mean_of_nearest(rows: torch.Tensor, others: torch.Tensor, k: int = NUM_NEIGHBOURS) -> torch.Tensor:
    """(n,) mean cosine of each of (n, D) rows with its k nearest of `others`, or with all of fewer."""
    k = min(k, len(others))
    return torch.cat([tile.topk(k, dim=1).values.mean(dim=1) for tile in _bands(rows, others)])


def nearest(rows: torch.Tensor, others: torch.Tensor, k: int) -> torch.Tensor:
    """(n, k) indices of the k nearest of `others` of each of (n, D) rows."""
    return torch.cat([tile.topk(k, dim=1).indices for tile in _bands(rows, others)])


def k_occurrence_skewness(query_embeds: Any, gallery_embeds: Any, k: int = NUM_NEIGHBOURS) -> float:
    """Skewness of the k-occurrence of the gallery (Radovanovic et al. 2010, section 2): 0 where none is a hub.

    Args:
        query_embeds: Query embeddings of shape (Q, D); rows are normalised here.
        gallery_embeds: Gallery embeddings of shape (G, D); rows are normalised here. With no more than k rows, each is
            a neighbour of every query, and the skewness is 0.
        k: Number of neighbours that are counted.

    Example:
        >>> queries, gallery = [[1.0, 0.0], [1.0, 0.1], [1.0, -0.1]], [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]
        >>> round(k_occurrence_skewness(queries, gallery, k=1), 4)
        0.7071
    """
    queries, gallery = (_unit_rows(embeds) for embeds in (query_embeds, gallery_embeds))
    check_same_width(queries, gallery, "queries and gallery")
    if len(gallery) <= k:
        return 0.0
    counts = torch.bincount(nearest(queries, gallery, k).flatten(), minlength=len(gallery)).double()
    centred = counts - counts.mean()
    deviation = centred.pow(2).mean().sqrt()
    return float(centred.pow(3).mean() / deviation.pow(3)) if deviation > 0 else 0.0


def _bands(rows: torch.Tensor, others: torch.Tensor) -> Iterator[torch.Tensor]:
    """The cosines of (n, D) rows with others (m, D), some rows at a time: (r, m)."""
    edge = max(1, _TILE * _TILE // len(others))
    for start in range(0, len(rows), edge):
        yield rows[start : start + edge] @ others.T


def _unit_rows(embeds: Any) -> torch.Tensor:
    return torch.nn.functional.normalize(as_embeds(embeds, "embeds").double(), dim=1)

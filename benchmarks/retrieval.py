"""Tiled retrieval ranks beside dense computations: time, memory, equality.

    python benchmarks/retrieval.py                     # writes benchmarks/results/retrieval_cpu.json
    python benchmarks/retrieval.py --sizes 1000 5000

Both directions of N items and N captions, D = 512. The peers hold the whole float32 matrix of cosines:

- `CLIP_benchmark`'s way to recall: a second matrix tells which pairs are positive; for each k, the best k of a row as
  one-hot rows against it, 64 rows at a time.
- `top 10`: the ten best of each row and column once, which is all that recall at 1, 5 and 10 needs.
- `sorted`: the order of each row and column, which ranks need.

Ours gives ranks, in float64. Every measurement is a process of its own, its memory what is added to the embeddings, at
the peak. The recalls must agree. Peers stop at --dense_limit items, where their matrices fill gigabytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from common import MIB, PeakMemory, in_own_process, median_ratio, option_parser, seconds_of, write_results
from xmodal_hf.evaluation.retrieval import both_directions

WIDTH = 512
NOISE = 6.0  # of a caption about its item: a median rank of 3 among 20,000, neither trivial nor random
OURS, ONE_HOT, TOP, SORTED = "tiled", "CLIP_benchmark", "top 10", "sorted"
KS = (1, 5, 10)
ROWS_AT_ONCE = 64


def main() -> None:
    options = parse_options()
    if options.measure:
        print(json.dumps(measure(**json.loads(options.measure))))
        return
    rows = [compare(size, options) for size in options.sizes]
    for row in rows:
        print_row(row)
    write_results(options, {"width": WIDTH, "retrieval": rows})


def parse_options() -> argparse.Namespace:
    parser = option_parser(__doc__, "retrieval", rounds=2)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 20_000, 100_000], help="numbers of items")
    parser.add_argument("--dense_limit", type=int, default=20_000, help="largest number of items for the peers")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device != "cpu":
        parser.error("ranks are computed on the CPU")
    return options


def compare(size: int, options: argparse.Namespace) -> dict[str, Any]:
    """All methods in turns at one size; ours alone, once, above the limit."""
    methods = (OURS, ONE_HOT, TOP, SORTED) if size <= options.dense_limit else (OURS,)
    seen: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    for _ in tqdm(range(options.rounds if len(methods) > 1 else 1), desc=f"{size} items"):
        for method in methods:
            seen[method].append(in_own_process(__file__, {"method": method, "size": size}))
    recalls = {method: results[0]["recalls"] for method, results in seen.items()}
    if any(values != recalls[OURS] for values in recalls.values()):
        raise RuntimeError(f"{size} items: the recalls differ, nothing to compare: {recalls}")
    seconds = {method: [result["seconds"] for result in results] for method, results in seen.items()}
    memory = {method: statistics.median(result["mib"] for result in results) for method, results in seen.items()}
    return {
        "items": size,
        "recalls": recalls[OURS],
        "methods": {
            method: {"seconds": statistics.median(seconds[method]), "mib": memory[method]} for method in methods
        },
        # Ours over the peer's: less is better.
        "ratios": {
            peer: {"time": 1 / median_ratio(seconds[OURS], seconds[peer]), "memory": memory[OURS] / memory[peer]}
            for peer in methods[1:]
        },
    }


def print_row(row: dict[str, Any]) -> None:
    print(f"\n{row['items']} items, recalls {row['recalls']}")
    for name, method in row["methods"].items():
        ratio = row["ratios"].get(name)
        compared = f"   ours / peer: time {ratio['time']:.2f}, memory {ratio['memory']:.3f}" if ratio else ""
        print(f"{name:<16}{method['seconds']:>9.2f} s{method['mib']:>9.0f} MiB{compared}")


# ---- one measurement, in its own process ----------------------------------------------------------------------------


def measure(method: str, size: int) -> dict[str, Any]:
    """Recalls at 1, 5 and 10 of seeded pairs in both directions."""
    rng = np.random.default_rng(0)
    items = rng.standard_normal((size, WIDTH), dtype=np.float32)
    texts = items + NOISE * rng.standard_normal((size, WIDTH), dtype=np.float32)
    recalls_of = {OURS: tiled_recalls, ONE_HOT: one_hot_recalls, TOP: top_recalls, SORTED: sorted_recalls}[method]
    recalls: list[float] = []
    with PeakMemory("cpu") as memory:
        seconds = seconds_of(lambda: recalls.extend(recalls_of(items, texts)), "cpu")
    recalls = [round(recall, 3) for recall in recalls]
    return {"seconds": seconds, "mib": memory.bytes / MIB, "recalls": recalls}


def tiled_recalls(items: np.ndarray, texts: np.ndarray) -> list[float]:
    """Ours: exact ranks."""
    return [recall for ranks in both_directions(items, texts) for recall in recalls_of_ranks(ranks.best)]


def one_hot_recalls(items: np.ndarray, texts: np.ndarray) -> list[float]:
    """From the whole matrices of cosines and of positive pairs."""
    cosines = cosines_of(items, texts)
    positive = torch.eye(len(items), dtype=torch.bool)  # (N, N)
    recalls = []
    for matrix in (cosines, cosines.T):
        for k in KS:
            hits = 0
            parts = zip(matrix.split(ROWS_AT_ONCE), positive.split(ROWS_AT_ONCE), strict=True)
            for rows, own in parts:
                best = torch.nn.functional.one_hot(rows.topk(k, dim=1).indices, len(items))  # (rows, k, N)
                hits += int((best * own[:, None]).sum())
            recalls.append(100 * hits / len(items))
    return recalls


def directions(items: np.ndarray, texts: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(N, N) cosines, queries in rows, and the column (N, 1) of each query's own answer."""
    cosines = cosines_of(items, texts)
    own = torch.arange(len(items)).unsqueeze(1)
    yield cosines, own
    yield cosines.T, own


def top_recalls(items: np.ndarray, texts: np.ndarray) -> list[float]:
    """From the best of each row and column."""
    recalls = []
    for matrix, own in directions(items, texts):
        found = matrix.topk(max(KS), dim=1).indices == own  # (N, K)
        recalls += [100 * float(found[:, :k].any(dim=1).double().mean()) for k in KS]
    return recalls


def sorted_recalls(items: np.ndarray, texts: np.ndarray) -> list[float]:
    """From the order of each row and column."""
    recalls = []
    for matrix, own in directions(items, texts):
        ranks = (matrix.argsort(dim=1, descending=True) == own).int().argmax(dim=1) + 1
        recalls += recalls_of_ranks(ranks.numpy())
    return recalls


def recalls_of_ranks(ranks: np.ndarray) -> list[float]:
    return [100 * float((ranks <= k).mean()) for k in KS]


def cosines_of(items: np.ndarray, texts: np.ndarray) -> torch.Tensor:
    unit_items, unit_texts = (torch.nn.functional.normalize(torch.from_numpy(rows), dim=1) for rows in (items, texts))
    return unit_texts @ unit_items.T  # (N, N)


if __name__ == "__main__":
    main()

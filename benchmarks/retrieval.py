"""Tiled retrieval ranks beside the dense computation: time, peak memory, equality.

    python benchmarks/retrieval.py                     # writes benchmarks/results/retrieval.json; the full size is last
    python benchmarks/retrieval.py --sizes 1000,5000

Both directions of N items and N captions, D = 512. Dense: one float32 matrix of cosines, its rows and its columns
sorted, the way evaluation scripts usually do it. Every measurement is a process of its own, so that peak memory is its
own; it includes PyTorch itself (about 0.4 GiB) and the embeddings (0.38 GiB at N = 100,000).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from typing import Any

import numpy as np

from common import MIB, RESULTS, describe_machine, in_own_process

OUTPUT = RESULTS / "retrieval.json"
WIDTH = 512
NOISE = 6.0  # of a caption about its item: a median rank of 3 among 20,000, neither trivial nor random
DENSE_LIMIT = 10_000  # above, cosines and their order take many GiB


def main() -> None:
    """Measure each size and method in its own process; print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="5000,10000,100000", help="Numbers of items, comma-separated.")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(**json.loads(options.measure))))
        return
    rows = []
    print(f"{'items':>8} {'method':>8} {'seconds':>9} {'CPU s':>9} {'peak MiB':>9} {'R@1 t2i':>8} {'R@1 i2t':>8}")
    for size in (int(size) for size in options.sizes.split(",")):
        for method in ("dense", "tiled") if size <= DENSE_LIMIT else ("tiled",):
            rows.append(in_own_process(__file__, {"method": method, "size": size}))
            print_row(rows[-1])
    threads = os.environ.get("OMP_NUM_THREADS", "one a core")
    machine = describe_machine("cpu") | {"threads": threads}
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps({"width": WIDTH, "machine": machine, "rows": rows}, indent=2) + "\n")
    print(OUTPUT)


def print_row(row: dict[str, Any]) -> None:
    """One line of the table."""
    seconds = f"{row['seconds']:>9.1f} {row['cpu_seconds']:>9.1f}"
    measured = f"{row['peak_mib']:>9.0f} {row['t2i']:>8.2f} {row['i2t']:>8.2f}"
    print(f"{row['items']:>8} {row['method']:>8} {seconds} {measured}", flush=True)


def measure(method: str, size: int) -> dict[str, Any]:
    """Ranks of seeded pairs; peak memory of this process."""
    rng = np.random.default_rng(0)
    items = rng.standard_normal((size, WIDTH), dtype=np.float32)
    texts = items + NOISE * rng.standard_normal((size, WIDTH), dtype=np.float32)
    ranks = {"dense": dense_ranks, "tiled": tiled_ranks}[method]
    started, cpu_started = time.perf_counter(), time.process_time()
    to_item, to_text = ranks(items, texts)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB
    recalls = {name: 100 * float((best == 1).mean()) for name, best in (("t2i", to_item), ("i2t", to_text))}
    return {
        "items": size,
        "method": method,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_mib": peak_mib,
        **recalls,
    }


def dense_ranks(items: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort every row of the whole matrix, and every column."""
    import torch

    unit_items, unit_texts = (torch.nn.functional.normalize(torch.from_numpy(rows), dim=1) for rows in (items, texts))
    cosines = unit_texts @ unit_items.T  # (N, N)
    own = torch.arange(len(items)).unsqueeze(1)

    def ranks(matrix: torch.Tensor) -> np.ndarray:
        return (matrix.argsort(dim=1, descending=True) == own).int().argmax(dim=1).numpy() + 1

    return ranks(cosines), ranks(cosines.T)


def tiled_ranks(items: np.ndarray, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ours."""
    from xmodal_hf.evaluation.retrieval import both_directions

    to_item, to_text = both_directions(items, texts)
    return to_item.best, to_text.best


if __name__ == "__main__":
    main()

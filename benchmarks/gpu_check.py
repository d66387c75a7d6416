"""Check of a GPU: correctness and speed in parts, each of which writes its results after every measurement.

    bash benchmarks/gpu_check.sh                                    # all parts, each within its own time limit
    python benchmarks/gpu_check.py losses --output build/gpu_check  # one part
    python benchmarks/gpu_check.py merge --output build/gpu_check   # one results file of what the parts wrote

A part writes `<part>.json`: whole or not at all, again after every measurement, so that a part that is cut keeps what
it has measured. `merge` writes `gpu_check.json`: the parts, the card, the versions, and under `cut` what is missing
and why. A measurement that raises is recorded with its error, and the others go on.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Name of a part -> the module whose `run(record, options)` measures it.
PARTS = {
    "correctness": "gpu_correctness",
    "losses": "gpu_losses",
    "step": "gpu_step",
    "study": "gpu_study",
}
PEERS = ("open_clip_torch", "memeff", "triton", "peft", "datasets", "evaluate", "timm")
MERGED_NAME = "gpu_check.json"
# Exit statuses of `timeout`: at the limit, and of what had to be killed after it.
_STOPPED = (124, 137)
_TRACEBACK_LINES = 6


class Record:
    """The results of one part, on the disk after every measurement.

    Args:
        folder: Folder of the results.
        part: Name of the part.
        about: Facts about the whole part: device, machine, sizes.
    """

    def __init__(self, folder: Path, part: str, about: Mapping[str, Any]) -> None:
        self.path = folder / f"{part}.json"
        self.contents: dict[str, Any] = {"part": part, "finished": False, **about, "measurements": {}}
        self._write()

    def measure(self, name: str, action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Call an action, and keep its result, or its error, under a name; return it."""
        start = time.perf_counter()
        try:
            result = action()
        except Exception as error:
            lines = traceback.format_exc().strip().splitlines()[-_TRACEBACK_LINES:]
            result = {"ok": False, "error": f"{type(error).__name__}: {error}", "traceback": lines}
        result = {**result, "wall_seconds": round(time.perf_counter() - start, 3)}
        self.contents["measurements"][name] = result
        self._write()
        print(f"{name}: {_in_words(result)}", flush=True)
        return result

    def finish(self) -> bool:
        """Mark the part as complete; return whether no measurement failed."""
        self.contents["finished"] = True
        self._write()
        return all(result.get("ok", True) for result in self.contents["measurements"].values())

    def _write(self) -> None:
        write_whole(self.path, self.contents)


def write_whole(path: Path, contents: Mapping[str, Any]) -> None:
    """Write JSON under another name, then give it its own: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _in_words(result: Mapping[str, Any]) -> str:
    """Return the numbers and short texts of a result in one line."""
    shown = {name: value for name, value in result.items() if isinstance(value, bool | int | float | str)}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in shown.items()
    )


def run_part(options: argparse.Namespace) -> bool:
    """Run one part; return whether every measurement of it succeeded."""
    import torch

    from common import describe_machine

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "gpu_check.py: error: --device cuda, and torch sees no GPU: for a smoke test, pass --device cpu --tiny"
        )
    about = {
        "device": options.device,
        "tiny": options.tiny,
        "machine": describe_machine(options.device, *PEERS),
        "seconds_allowed": options.seconds,
    }
    record = Record(options.output, options.part, about)
    importlib.import_module(PARTS[options.part]).run(record, options)
    return record.finish()


def merge(folder: Path, statuses: Mapping[str, str]) -> dict[str, Any]:
    """Write one file of all parts: results, the machine, and what was cut.

    Args:
        folder: Folder of the parts' files, and of the merged one.
        statuses: Statuses of the parts that were started or left out: an exit status, or the reason in words.
    """
    parts: dict[str, Any] = {}
    cut: dict[str, str] = {}
    for part in PARTS:
        path = folder / f"{part}.json"
        contents = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        if contents is not None:
            parts[part] = contents
        reason = _why_cut(contents, statuses.get(part))
        if reason is not None:
            cut[part] = reason
    about: dict[str, Any] = next(iter(parts.values()), {})
    merged = {
        "machine": about.get("machine"),
        "device": about.get("device"),
        "tiny": about.get("tiny"),
        "cut": cut,
        "failed": _failed(parts),
        "parts": {name: contents["measurements"] for name, contents in parts.items()},
    }
    write_whole(folder / MERGED_NAME, merged)
    return merged


def _why_cut(contents: Mapping[str, Any] | None, status: str | None) -> str | None:
    """Return why a part is not complete, None when it is."""
    if contents is not None and contents["finished"]:
        return None
    wrote = "nothing measured" if contents is None else f"{len(contents['measurements'])} measurements kept"
    if status is None:
        return f"not run; {wrote}"
    if not status.isdigit():
        return f"{status}; {wrote}"
    if int(status) in _STOPPED:
        return f"stopped at its time limit; {wrote}"
    return f"ended with exit status {status}; {wrote}"


def _failed(parts: Mapping[str, Any]) -> list[str]:
    """Return the measurements that raised or were wrong, as part/name."""
    return [
        f"{part}/{name}"
        for part, contents in parts.items()
        for name, result in contents["measurements"].items()
        if not result.get("ok", True)
    ]


def main(args: Sequence[str] | None = None) -> int:
    """Run a part, or merge; the exit status is 1 when something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=(*PARTS, "merge"))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="smoke test: smallest sizes, whose numbers are of no use")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=600.0, help="time that the part may take, start included")
    parser.add_argument(
        "--status", nargs="*", default=[], metavar="PART=STATUS", help="merge: exit statuses of the parts, or reasons"
    )
    options = parser.parse_args(args)
    if options.part == "merge":
        merged = merge(options.output, dict(entry.partition("=")[::2] for entry in options.status))
        print(json.dumps({"cut": merged["cut"], "failed": merged["failed"]}, indent=2))
        return int(bool(merged["cut"] or merged["failed"]))
    options.started = time.perf_counter()
    return int(not run_part(options))


def seconds_left(options: argparse.Namespace) -> float:
    """Return how much of its time a part has left."""
    return options.seconds - (time.perf_counter() - options.started)


if __name__ == "__main__":
    sys.exit(main())

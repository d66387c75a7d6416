"""The demo on sounds from pretrained towers and from scratch, on the same held-out clips.

    make demo-audio demo-audio-scratch
    python benchmarks/demo_audio.py    # writes benchmarks/results/demo_audio.json and prints the table

Both have one seed. They differ in towers, projections, epochs, batch size and the number of training sounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "demo_audio.json"
WAYS = ("text_to_audio", "audio_to_text")
NAMES = {"pretrained": "aiSFX and MiniLM", "from_scratch": "from scratch"}


def compare(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the numbers in which the results of the demo differ.

    Args:
        runs: Dictionary of way to begin to the `results.json` of the demo.

    Raises:
        ValueError: If the demos were measured on different clips or have different seeds.
    """
    conditions = [{key: run["meta"][key] for key in ("dataset", "num_held_out", "seed")} for run in runs.values()]
    if any(condition != conditions[0] for condition in conditions):
        raise ValueError(f"the demos were not measured alike: {conditions}")
    return {**conditions[0], "chance_recall@10": next(iter(runs.values()))["meta"]["chance_recall@10"]} | {
        name: {
            "retrieval": {key: value for key, value in run["retrieval_after"].items() if key.startswith(WAYS)},
            "zero_shot_top1_accuracy": run["zero_shot_after"]["top1_accuracy"],
            "cpu_seconds": run["meta"]["cpu_seconds"],
            # From pretrained towers the search covers the sounds that were embedded for the training too.
            "search": {query: [one["caption"] for one in answers] for query, answers in run["search"].items()},
        }
        for name, run in runs.items()
    }


def table(results: Mapping[str, Any]) -> str:
    """Return the headline numbers as a Markdown table."""
    lines = [
        "| towers | text→audio R@1 | R@10 | audio→text R@1 | R@10 | families top-1 | seconds of a core |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, title in NAMES.items():
        one = results[name]
        recalls = [one["retrieval"][f"{way}_recall@{k}"] for way in WAYS for k in (1, 10)]
        numbers = [f"{value:.2f}" for value in (*recalls, one["zero_shot_top1_accuracy"])]
        lines.append(f"| {' | '.join([title, *numbers, format(one['cpu_seconds'], '.0f')])} |")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """Read both results, write what differs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", type=Path, default=Path("outputs/demo_audio"), help="Folder of that demo.")
    parser.add_argument(
        "--from_scratch", type=Path, default=Path("outputs/demo_audio_scratch"), help="Folder of that demo."
    )
    parser.add_argument("--output", type=Path, default=RESULTS, help="Path of the results.")
    options = parser.parse_args(args)
    folders = {"pretrained": options.pretrained, "from_scratch": options.from_scratch}
    runs = {name: json.loads((folder / "results.json").read_text(encoding="utf-8")) for name, folder in folders.items()}
    results = compare(runs)
    options.output.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()

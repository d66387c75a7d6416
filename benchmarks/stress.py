"""Kills, damage and faults of a Hub: whatever happens to a run, it ends as the run that was left alone.

    make stress                                     # 100 kills, 30 kinds of damage, the faults of the Hub
    python benchmarks/stress.py --kills 20          # goes on where the last call stopped

The run is as demanding as this package knows: pairs from two sets of streamed parquet shards and sentences jointly, a
moving average, loader workers, items that cannot be used, validation that chooses the weights; in one process and in
two. Kills are SIGKILLs of all its processes at moments drawn at random over its whole length, start and end included;
after each the same command goes on with `--resume auto`. A course that gets to its end is compared with the run that
was left alone: weights, both logs, the best step, the list of bad items, byte for byte. Damage is done to the files of
a run that was stopped between two states, and to its data.

The runs are forked from this process, where everything is imported already; they are processes of their own otherwise.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from safetensors.torch import load_file

from common import RESULTS, describe_machine

ROOT = Path(__file__).parents[1]
WORDS = ("red", "blue", "green", "white", "black", "grey", "pink", "brown", "gold", "lime", "navy", "teal")
STEPS, EVERY = 24, 3
NUM_BAD = 2
SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
# A run that takes this many times as long as the one that was left alone hangs.
PATIENCE = 20
COMPARED = ("model.safetensors", "train_log.jsonl", "validation_log.jsonl", "bad_items.jsonl")
# What is done to the output of a run and to its data.
Damage: TypeAlias = Callable[[Path, Path], object]
HUB_TESTS = "fault or lost or at_once or stall or retr or html"


# ---- the run --------------------------------------------------------------------------------------------------------


def make_data(folder: Path) -> None:
    """Write parquet shards of two sets, one of them with items that cannot be used, held-out pairs and sentences."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(48):
        Image.new("RGB", (20 + number, 16), WORDS[number % len(WORDS)]).save(folder / f"{number}.png")
    rows = [
        {"image": f"{number}.png", "text": f"a {WORDS[number % len(WORDS)]} picture, number {number}"}
        for number in range(48)
    ]
    for shard in range(6):
        part = range(8 * shard, 8 * shard + 8)
        images = [(folder / f"{number}.png").read_bytes() for number in part]
        if shard < NUM_BAD:
            images[3] = images[3][:40]
        table = pa.table({"image": images, "captions": [rows[number]["text"] for number in part]})
        pq.write_table(table, folder / f"{'ab'[shard % 2]}-{shard}.parquet", row_group_size=3)
    (folder / "held_out.jsonl").write_text("\n".join(map(json.dumps, rows[:12])), encoding="utf-8")
    sentences = [f"{word} is number {number} here" for word in WORDS for number in range(4)]
    (folder / "sentences.txt").write_text("\n".join(sentences), encoding="utf-8")


def run_options(data: Path, output: Path, processes: int) -> list[str]:
    """Return the command line, with the global batch of any number of processes."""
    options = {
        "text_config": json.dumps({"model_type": "bert", **SHAPE}),
        "image_config": json.dumps({"model_type": "vit", "patch_size": 8, **SHAPE}),
        "sentences": data / "sentences.txt",
        "eval_dataset": data / "held_out.jsonl",
        "best_metric": "retrieval.text_to_image_recall@1",
        "output_dir": output,
        "batch_size": 8 // processes,
        **{"image_size": 16, "projection_dim": 8, "vocab_size": 300, "max_length": 8, "report_to": "none"},
        **{"num_epochs": 9, "max_steps": STEPS, "checkpoint_steps": EVERY, "eval_steps": 2, "learning_rate": 0.01},
        **{"ema_decay": 0.9, "num_workers": 2, "shuffle_buffer": 7, "max_bad_fraction": 0.1, "resume": "auto"},
    }
    lists = ["--dataset", str(data / "a-*.parquet"), str(data / "b-*.parquet"), "--dataset_weights", "0.7", "0.3"]
    flags = ["--streaming", "--augment"]
    return [*lists, *flags, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]


def load_script() -> Any:
    """Return the module of the training script."""
    path = ROOT / "training_scripts" / "train_contrastive.py"
    specification = importlib.util.spec_from_file_location("train_contrastive", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def enter_script(script: Any, options: list[str], environment: dict[str, str], log: Path) -> None:
    """What a process of a run does."""
    with log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    script.main(options)


class Runner:
    """Starts runs of the training script in processes of their own.

    Args:
        folder: Folder of data and outputs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.script = load_script()
        for name in ("dry_run", "loop", "output", "phases", "validation"):  # which the script imports when it starts
            importlib.import_module(f"xmodal_hf.training.{name}")
        self.context = multiprocessing.get_context("fork")

    def start(self, output: Path, processes: int, *options: str, data: Path | None = None) -> list[Any]:
        """Start the processes of a run."""
        output.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = [*run_options(data or self.data, output, processes), *options]
        running = []
        for rank in range(processes):
            environment = {"ACCELERATE_USE_CPU": "true"}
            if processes > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
                environment |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
                environment |= {"MASTER_PORT": str(port)}
            log = output / f"output-{rank}.log"
            process = self.context.Process(target=enter_script, args=(self.script, arguments, environment, log))
            process.start()
            running.append(process)
        return running

    def finish(self, output: Path, processes: int, *options: str, data: Path | None = None) -> list[int | None]:
        """Run to the end; return the exit statuses, None for one that hangs."""
        running = self.start(output, processes, *options, data=data)
        deadline = time.monotonic() + 600
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
        statuses = [process.exitcode for process in running]
        kill(running)
        return statuses


def kill(running: list[Any]) -> bool:
    """Send SIGKILL to all processes; return whether one of them was running."""
    killed = False
    for process in running:
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed = True
    for process in running:
        process.join()
    return killed


def difference(output: Path, expected: Path) -> str | None:
    """Say in what a finished run differs from the one that was left alone; None for nothing."""
    for name in COMPARED:
        if (output / name).read_bytes() != (expected / name).read_bytes():
            return name
    found, wanted = (json.loads((path / "run.json").read_text(encoding="utf-8")) for path in (output, expected))
    for name in ("steps", "items", "best", "last_log", "bad_steps", "skipped_items"):
        if found[name] != wanted[name]:
            return f"{name} of run.json"
    return best_is_wrong(output, found["best"])


def best_is_wrong(output: Path, best: dict[str, float]) -> str | None:
    """Say where the best step is not that of the log, or the released weights are not those of the best file."""
    lines = (output / "validation_log.jsonl").read_text(encoding="utf-8").splitlines()
    values = {entry["step"]: entry["retrieval.text_to_image_recall@1"] for entry in map(json.loads, lines)}
    if best != {"step": max(values, key=lambda step: (values[step], -step)), "value": max(values.values())}:
        return "the best step of the log"
    released, chosen = load_file(output / "model.safetensors"), load_file(output / "checkpoints" / "best.safetensors")
    same = all((released[name] == chosen[name]).all() for name in released.keys() & chosen.keys())
    return None if same and released.keys() & chosen.keys() else "the released weights"


# ---- kills ----------------------------------------------------------------------------------------------------------


def kill_at_random(runner: Runner, processes: int, number: int, progress: dict[str, Any], save: Callable) -> None:
    """Kill runs until a number of kills is reached, and compare every course that comes to its end."""
    expected = runner.folder / f"alone-{processes}"
    entry = progress.setdefault(f"{processes}", {"kills": 0, "courses": 0, "differences": [], "failures": []})
    if not (expected / "run.json").exists() or "seconds_alone" not in entry:
        shutil.rmtree(expected, ignore_errors=True)
        started = time.monotonic()
        statuses = runner.finish(expected, processes)
        assert statuses == [0] * processes, f"the run that is left alone ends with {statuses}"
        entry["seconds_alone"] = time.monotonic() - started
    output = runner.folder / f"killed-{processes}"
    draw = random.Random(1000 * processes + entry["kills"])
    while entry["kills"] < number or output.exists():
        running = runner.start(output, processes)
        # Beyond `number`, the course is left to its end; some draws lie beyond the end too.
        wait = draw.uniform(0, 1.1 * entry["seconds_alone"]) if entry["kills"] < number else None
        deadline = time.monotonic() + (PATIENCE * entry["seconds_alone"] if wait is None else wait)
        while any(process.is_alive() for process in running) and time.monotonic() < deadline:
            time.sleep(0.002)
        was_killed = kill(running)
        entry["kills"] += was_killed
        if was_killed and wait is None:
            entry["failures"].append(f"after {entry['kills']} kills the run hangs")
        elif not was_killed:
            statuses = [process.exitcode for process in running]
            if statuses != [0] * processes:
                entry["failures"].append(f"after {entry['kills']} kills: {statuses}: {last_line(output)}")
            elif (wrong := difference(output, expected)) is not None:
                entry["differences"].append(f"after {entry['kills']} kills: {wrong}")
            entry["courses"] += 1
        if not was_killed or wait is None:
            if entry["failures"] or entry["differences"]:
                shutil.copytree(output, runner.folder / f"wrong-{processes}-{entry['kills']}", dirs_exist_ok=True)
            shutil.rmtree(output)
        save()


def last_line(output: Path) -> str:
    """The last line that the main process printed."""
    lines = (output / "output-0.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else ""


# ---- damage ---------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damages() -> dict[str, tuple[str, Damage]]:
    """Name -> how the run then has to end, and what is done to (its output, a copy of its data).

    "same": as the run that was left alone. "passed over": so too, and the output says what is damaged. "stopped": with
    an exit status other than 0, and an error that names the file.
    """
    state = f"checkpoints/step_{3 * EVERY:08d}"
    names = ("model.safetensors", "optimizer.bin", "random_states_0.pkl", "schedule.json", "average.safetensors")
    found: dict[str, tuple[str, Damage]] = {}
    for name in (*names, "best.safetensors", "state.json", "SHA256SUMS"):
        if name != "SHA256SUMS":  # without it, the state would be one of an older version
            found[f"{name} missing"] = ("passed over", of_output(f"{state}/{name}", Path.unlink))
        found[f"{name} flipped"] = ("passed over", of_output(f"{state}/{name}", flip))
        found[f"{name} cut"] = ("passed over", of_output(f"{state}/{name}", cut))
    found["random states of another process"] = (
        "passed over",
        of_output(state, lambda path: shutil.copy(path / "random_states_0.pkl", path / "random_states_1.pkl")),
    )
    found["an empty state"] = ("passed over", of_output(state, empty))
    found["best.tmp left"] = ("same", of_output("checkpoints/best.tmp", Path.touch))
    found["a half state left"] = ("same", of_output("checkpoints/step_00000012.tmp", half_a_state))
    found["best.safetensors of the run missing"] = ("same", of_output("checkpoints/best.safetensors", Path.unlink))
    found["best.safetensors of the run flipped"] = ("same", of_output("checkpoints/best.safetensors", flip))
    found["half a line in train_log.jsonl"] = ("same", of_output("train_log.jsonl", half_a_line))
    found["a lock of a dead process"] = ("same", of_output("run.lock", lambda path: path.write_text("1\n")))
    found["a shard gone"] = ("stopped", of_data("a-4.parquet", Path.unlink))
    found["a held-out picture cut"] = ("stopped or skipped", of_data("3.png", cut))
    found["held-out pairs gone"] = ("stopped", of_data("held_out.jsonl", Path.unlink))
    return found


def of_output(name: str, change: Callable[[Path], object]) -> Damage:
    """Return a change of a file in the output as one of (output, data)."""
    return lambda output, _: change(output / name)


def of_data(name: str, change: Callable[[Path], object]) -> Damage:
    """Return a change of a file of the data as one of (output, data)."""
    return lambda _, data: change(data / name)


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def half_a_state(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"half")


def half_a_line(path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 10, "lo')


def check_damage(runner: Runner, name: str, ends: str, damage: Damage) -> str | None:
    """Damage a copy of the stopped run or of its data, and let it go on; say what is wrong then."""
    output, data = runner.folder / "damaged", runner.folder / "damaged-data"
    for folder, original in ((output, runner.folder / "stopped"), (data, runner.data)):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(original, folder)
    damage(output, data)
    # The same paths as before, as far as the run's options tell.
    hidden = runner.data.with_name("data-put-aside")
    runner.data.rename(hidden)
    data.rename(runner.data)
    try:
        (status,) = runner.finish(output, 1)
    finally:
        runner.data.rename(data)
        hidden.rename(runner.data)
    said = (output / "output-0.log").read_text(encoding="utf-8", errors="replace")
    if status is None:
        return "hangs"
    if ends.startswith("stopped"):
        return None if status > 0 or ends.endswith("skipped") else "goes on as if nothing had happened"
    if status != 0:
        return f"ends with {status}: {last_line(output)}"
    if ends == "passed over" and "is damaged" not in said:
        return "says nothing of the damage"
    return difference(output, runner.folder / "alone-1")


def stop_between_states(runner: Runner) -> None:
    """Leave a run with two states and some steps after them."""
    output = runner.folder / "stopped"
    shutil.rmtree(output, ignore_errors=True)
    for _ in range(20):
        running = runner.start(output, 1)
        state = output / "checkpoints" / f"step_{3 * EVERY:08d}"
        while running[0].is_alive() and not state.exists():
            time.sleep(0.001)
        kill(running)
        if sorted(path.name for path in (output / "checkpoints").glob("step_*[0-9]")) == [
            f"step_{step * EVERY:08d}" for step in (2, 3)
        ]:
            return
        shutil.rmtree(output)
    raise RuntimeError("the run is too fast to be stopped between two states")


# ---- the Hub --------------------------------------------------------------------------------------------------------


def hub_faults() -> dict[str, Any]:
    """Run the tests that publish to a Hub on this machine while something goes wrong there."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests" / "hub" / "test_publish.py")]
        command += ["-k", HUB_TESTS, f"--junitxml={report}", "-m", "slow or not slow"]
        subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
        cases = list(ElementTree.parse(report).iter("testcase"))
    wrong = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return {"faults": len(cases), "wrong": wrong}


# ---- all of it ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Do what is left of the work, and write the results after each piece."""
    parser = argparse.ArgumentParser(description="Kill, damage and disturb runs, and compare how they end.")
    parser.add_argument("--kills", type=int, default=100, help="Kills in all, half of them in two processes.")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "stress", help="Of data, runs and progress.")
    parser.add_argument("--output", type=Path, default=RESULTS / "stress_cpu.json", help="Results file.")
    arguments = parser.parse_args()
    folder: Path = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "data" / "sentences.txt").exists():
        make_data(folder / "data")
    path = folder / "progress.json"
    progress: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def save() -> None:
        path.write_text(json.dumps(progress, indent=2), encoding="utf-8")

    runner = Runner(folder)
    note_sources(folder, progress)
    # The first kills, then the damage, then the others: a call that is cut short has seen something of everything.
    for share in (0.1, 0.4, 0.7, 1.0):
        for processes in (1, 2):
            kill_at_random(
                runner, processes, round(arguments.kills * share / 2), progress.setdefault("kills", {}), save
            )
        if "damage" not in progress:
            stop_between_states(runner)
        done = progress.setdefault("damage", {})
        for name, (ends, damage) in damages().items():
            if name not in done:
                try:
                    done[name] = check_damage(runner, name, ends, damage) or "right"
                except Exception:
                    done[name] = traceback.format_exc()
                save()
        if "hub" not in progress:
            progress["hub"] = hub_faults()
            save()
        write_results(arguments.output, progress)
    print(arguments.output.read_text(encoding="utf-8"))


def note_sources(folder: Path, progress: dict[str, Any]) -> None:
    """Note the commit of this call; where it is another one, the runs to compare with are made anew."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--match", ""]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or None
    if commit not in progress.setdefault("commits", []):
        progress["commits"].append(commit)
        for processes, entry in progress.get("kills", {}).items():
            entry.pop("seconds_alone", None)
            shutil.rmtree(folder / f"killed-{processes}", ignore_errors=True)


def write_results(path: Path, progress: dict[str, Any]) -> None:
    """Write what was done and what went wrong."""
    kills = progress["kills"]
    results = {
        "kills": sum(entry["kills"] for entry in kills.values()),
        "finished_courses": sum(entry["courses"] for entry in kills.values()),
        "courses_that_differ": [text for entry in kills.values() for text in entry["differences"] + entry["failures"]],
        "by_processes": {name: {key: entry[key] for key in ("kills", "courses")} for name, entry in kills.items()},
        "kinds_of_damage": len(progress["damage"]),
        "damage_that_went_wrong": {name: text for name, text in progress["damage"].items() if text != "right"},
        "hub_faults": progress["hub"]["faults"],
        "hub_faults_that_went_wrong": progress["hub"]["wrong"],
        "commits": progress["commits"],
        "machine": describe_machine("cpu"),
    }
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

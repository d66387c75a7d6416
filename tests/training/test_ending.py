"""Every way out of a training ends the process and its workers, with the right status: real processes, real signals.

The processes are forked from this one, where everything is imported already, and end as Python processes do.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import Dataset

from xmodal_hf.data.errors import BadItemError
from xmodal_hf.features import extraction
from xmodal_hf.features import processes as launched
from xmodal_hf.features.extraction import extract
from xmodal_hf.objectives import CrossModalObjective
from xmodal_hf.training import checkpoint, faults, feature_extraction
from xmodal_hf.training.arguments import PairArguments, TrainingArguments, ValidationArguments
from xmodal_hf.training.batches import JointLoader, _bad_item_log, build_loader
from xmodal_hf.training.checkpoint import CheckpointManager, find_states, read_state
from xmodal_hf.training.faults import BadStepsError, StopRequested
from xmodal_hf.training.feature_arguments import FeatureArguments
from xmodal_hf.training.log import StepLog, TrainingResult
from xmodal_hf.training.loop import build_accelerator, run_phase
from xmodal_hf.training.output import finish_output
from xmodal_hf.training.validation import Validation

# Far above what any of this takes, far below what a process that hangs would.
SECONDS = 60
ROWS, BATCH = 32, 4


class Pairs(Dataset):
    """Rows that can be bad, hang or kill their worker; each worker leaves its number in a folder."""

    def __init__(self, batch, folder, faults, rank=0):
        self.batch, self.folder, self.faults = batch, folder, faults.get(rank, {})

    def __len__(self):
        return len(self.batch["input_ids"])

    def __getitem__(self, position):
        if torch.utils.data.get_worker_info() is not None:
            (self.folder / f"worker-{os.getpid()}").touch()
        for fault, epoch in self.faults.items():
            if position.epoch >= epoch:
                self.fail(fault)
        return {name: value[position.index] for name, value in self.batch.items()}

    def fail(self, fault):
        if fault == "bad":
            raise BadItemError("corrupt image", "made so")
        if fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / "hangs").touch()
        (self.folder / "pipe").open("rb").read()  # nobody ever writes to it


def collate(rows):
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0] if name != "ids"}
    return batch | {"ids": [row["ids"] for row in rows]}


def train(batch, build_model, objective, folder, faults, rank, validate, options):
    """What a process does."""
    os.environ.pop("PYTEST_CURRENT_TEST", None)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.stderr = (folder / f"errors-{rank}").open("w", buffering=1)
    arguments = TrainingArguments(
        output_dir=str(folder),
        report_to="none",
        batch_size=BATCH,
        num_epochs=10_000,
        **{"num_workers": 2, "max_bad_steps": 0, **options},
    )
    accelerator = build_accelerator(arguments)
    loader = build_loader(accelerator, Pairs(batch, folder, faults, rank), collate, arguments)
    validation = None
    if validate is not None:
        often = ValidationArguments(eval_steps=3, eval_sts="x")
        validation = Validation(accelerator, validate, often, str(folder))
    run_phase(accelerator, build_model(), objective, loader, arguments, "test", validation=validation)


@pytest.fixture
def start(dual_encoder, pair_batch, tmp_path, monkeypatch):
    """Start a training in one or two processes, which are killed at the end of the test if they are there still."""
    context, running = multiprocessing.get_context("fork"), []
    os.mkfifo(tmp_path / "pipe")

    def start_all(faults=None, processes=1, validate=None, pairs=None, objective=None, **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(processes):
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
            with monkeypatch.context() as patch:
                for name, value in environment.items() if processes > 1 else ():
                    patch.setenv(name, str(value))
                batch = pair_batch(ROWS) if pairs is None else pairs
                model = (dual_encoder, objective or CrossModalObjective("clip"))
                arguments = (batch, *model, tmp_path, faults or {}, rank, validate, options)
                process = context.Process(target=train, args=arguments)
                process.start()
            running.append(process)
        return running

    yield start_all
    for process in running:
        process.kill()
        process.join()


def wait_until(condition, running):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline and any(process.is_alive() for process in running)
        time.sleep(0.01)


def number_of_steps(folder):
    log = folder / "train_log.jsonl"
    return len(log.read_bytes().splitlines()) if log.exists() else 0


def check_ended(running, folder, *statuses):
    """All processes end with one of these statuses, and no worker is left."""
    for process in running:
        process.join(SECONDS)
        assert process.exitcode in statuses, (folder / "errors-0").read_text(encoding="utf-8")[-3000:]
    workers = [int(path.name.partition("-")[2]) for path in folder.glob("worker-*")]
    assert workers  # else nothing is checked
    deadline = time.monotonic() + SECONDS
    while any(is_running(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(process_id):
    try:
        with open(f"/proc/{process_id}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def fail_to_measure(model):
    raise OSError("the validation set is gone")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("fault", ["bad", "die"])
def test_a_reader_that_fails(fault, processes, start, tmp_path):
    running = start({processes - 1: {fault: 2}}, processes)
    check_ended(running, tmp_path, 1)
    assert number_of_steps(tmp_path) > 0
    errors = (tmp_path / f"errors-{processes - 1}").read_text(encoding="utf-8")
    assert "corrupt image: made so" in errors if fault == "bad" else "killed by signal" in errors
    if fault == "bad" and processes == 2:
        assert "another process of this run has failed" in (tmp_path / "errors-0").read_text(encoding="utf-8")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_a_reader_hangs(number, processes, start, tmp_path):
    running = start({processes - 1: {"hang": 2}}, processes)
    wait_until((tmp_path / "hangs").exists, running)
    steps = 2 * ROWS // (BATCH * processes)
    wait_until(lambda: number_of_steps(tmp_path) >= steps - 4, running)  # what the other worker has read is used up
    for process in running:  # as launchers and terminals do
        os.kill(process.pid, number)
    check_ended(running, tmp_path, 128 + number)
    state = read_state(find_states(tmp_path)[-1])
    assert state["step"] == number_of_steps(tmp_path) and f"stopped after step {state['step']}" in (
        tmp_path / "errors-0"
    ).read_text(encoding="utf-8")


def test_a_stop_while_the_only_process_reads_itself(start, tmp_path):
    (tmp_path / "worker-0").touch()
    running = start({0: {"hang": 1}}, num_workers=0)
    wait_until((tmp_path / "hangs").exists, running)
    os.kill(running[0].pid, signal.SIGTERM)
    check_ended(running, tmp_path, 143)
    assert read_state(find_states(tmp_path)[-1])["step"] == number_of_steps(tmp_path) == ROWS // BATCH


def test_one_process_fails_and_the_readers_of_the_other_hang(start, tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "_TELL_SECONDS", 0.5)  # for which the first one waits in vain
    running = start({0: {"bad": 2}, 1: {"hang": 2}}, 2)
    running[0].join(SECONDS)
    assert running[0].exitcode == 1
    os.kill(running[1].pid, signal.SIGTERM)  # as launchers do
    check_ended(running, tmp_path, 1)


def test_killed_while_a_reader_hangs(start, tmp_path):
    """Nothing in Python can end a worker then; the kernel does."""
    running = start({0: {"hang": 0}})
    wait_until((tmp_path / "hangs").exists, running)
    running[0].kill()
    check_ended(running, tmp_path, -signal.SIGKILL)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_that_is_bad(processes, start, pair_batch, tmp_path):
    pairs = pair_batch(ROWS)
    pairs["pixel_values"][:] = float("nan")
    check_ended(start(processes=processes, pairs=pairs), tmp_path, 1)
    assert BadStepsError.__name__ in (tmp_path / "errors-0").read_text(encoding="utf-8")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_validation_that_fails_costs_no_step(processes, start, tmp_path):
    check_ended(start(processes=processes, validate=fail_to_measure), tmp_path, 1)
    assert "the validation set is gone" in (tmp_path / f"errors-{processes - 1}").read_text(encoding="utf-8")
    state = read_state(find_states(tmp_path)[-1])
    assert state["step"] == 3 and state["validates"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stop_while_the_validation_hangs(processes, start, tmp_path):
    def hang(model):
        (tmp_path / "hangs").touch()
        (tmp_path / "pipe").open("rb").read()

    running = start(processes=processes, validate=hang)
    wait_until((tmp_path / "hangs").exists, running)
    for process in running:
        os.kill(process.pid, signal.SIGTERM)
    check_ended(running, tmp_path, 143)
    state = read_state(find_states(tmp_path)[-1])
    assert state["step"] == 3 and state["validates"]


def test_a_second_interrupt_in_a_validation(start, tmp_path):
    def hang(model):
        (tmp_path / "hangs").touch()
        try:
            (tmp_path / "pipe").open("rb").read()
        except StopRequested:  # by the first one; some libraries swallow everything
            (tmp_path / "swallowed").touch()
        (tmp_path / "pipe").open("rb").read()

    running = start(validate=hang)
    wait_until((tmp_path / "hangs").exists, running)
    os.kill(running[0].pid, signal.SIGINT)
    wait_until((tmp_path / "swallowed").exists, running)
    os.kill(running[0].pid, signal.SIGINT)
    check_ended(running, tmp_path, 130)
    assert read_state(find_states(tmp_path)[-1])["validates"]


def test_a_second_interrupt_in_a_step(start, tmp_path):
    class Hangs(CrossModalObjective):
        def __call__(self, model, batch):
            (tmp_path / "hangs").touch()
            return (tmp_path / "pipe").open("rb").read()

    running = start(objective=Hangs("clip"))
    wait_until((tmp_path / "hangs").exists, running)
    os.kill(running[0].pid, signal.SIGINT)
    time.sleep(0.2)  # two of them at once are one
    os.kill(running[0].pid, signal.SIGINT)
    check_ended(running, tmp_path, 1)  # of a forked process; that of a Python process is -SIGINT
    assert "KeyboardInterrupt" in (tmp_path / "errors-0").read_text(encoding="utf-8")


def test_one_part_of_a_joint_batch_fails(pair_batch, tmp_path):
    """The traceback of the error keeps the other part and its workers, which have to end all the same."""
    arguments = TrainingArguments(report_to="none", batch_size=BATCH, num_workers=1)
    accelerator = build_accelerator(arguments)
    parts = [
        build_loader(accelerator, Pairs(pair_batch(ROWS), tmp_path, {0: faults}), collate, arguments)
        for faults in ({"bad": 1}, {})
    ]
    with pytest.raises(BadItemError) as error, closing(iter(JointLoader(*parts))) as batches:
        for _ in batches:
            assert len(multiprocessing.active_children()) == 2
    assert error.traceback and multiprocessing.active_children() == []


@pytest.mark.parametrize(
    "work",
    [
        lambda accelerator, folder: CheckpointManager(accelerator, folder, 1).check_room(torch.nn.Linear(1, 1)),
        lambda accelerator, folder: StepLog(accelerator, folder, {}).__enter__(),
        lambda accelerator, folder: of_best(accelerator, folder).restore_best(folder, None, {}),
        lambda accelerator, folder: of_best(accelerator, folder).load_best(torch.nn.Linear(1, 1)),
        lambda accelerator, folder: finish_output(
            accelerator, TrainingArguments(output_dir=str(folder)), TrainingResult(), torch.nn.Linear(1, 1), None
        ),
        lambda accelerator, folder: _bad_item_log(
            accelerator, ["row"], TrainingArguments(output_dir=str(folder)), PairArguments(dataset=["x"])
        ),
    ],
    ids=["room for a state", "log", "best weights of a state", "best weights", "finished output", "list of bad items"],
)
def test_what_the_main_process_cannot_do_ends_the_others(work, monkeypatch, tmp_path):
    """They do not wait for it in vain."""
    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(Accelerator, "wait_for_everyone", lambda self: None)
    monkeypatch.setattr(launched, "broadcast_object_list", lambda outcome: outcome.__setitem__(1, "OSError: no room"))
    with pytest.raises(launched.OtherProcessError, match="the main process failed: OSError: no room"):
        work(accelerator, tmp_path)


def of_best(accelerator, folder):
    return Validation(accelerator, fail_to_measure, ValidationArguments(eval_steps=3, eval_sts="x"), str(folder))


def test_no_room_for_a_state_in_two_processes(start, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    running = start(processes=2)
    for process in running:
        process.join(SECONDS)
        assert process.exitcode == 1
    assert "make room" in (tmp_path / "errors-0").read_text(encoding="utf-8")
    assert "OtherProcessError" in (tmp_path / "errors-1").read_text(encoding="utf-8")


def test_what_the_main_process_cannot_load_ends_the_others(monkeypatch):
    accelerator = SimpleNamespace(is_main_process=False, num_processes=2)
    calls = []
    monkeypatch.setattr(launched, "broadcast_object_list", lambda outcome: calls.append("told"))
    assert launched.main_process_first(accelerator, lambda: calls.append("loads") or 5) == 5
    assert calls == ["told", "loads"]  # the caches are there by then
    monkeypatch.setattr(
        launched, "broadcast_object_list", lambda outcome: outcome.__setitem__(1, "ValueError: no column")
    )
    with pytest.raises(launched.OtherProcessError, match="the main process failed: ValueError: no column"):
        launched.main_process_first(accelerator, lambda: pytest.fail("there is nothing to load"))
    accelerator.is_main_process = True
    with pytest.raises(ValueError, match="not there"):
        launched.main_process_first(accelerator, lambda: int("not there"))


@pytest.mark.parametrize("fails", ["loading", "finishing"])
def test_what_the_main_process_cannot_embed_ends_the_others(fails, monkeypatch, tmp_path):
    """A data set that it cannot load, a store that it cannot finish."""
    state = SimpleNamespace(is_main_process=False, num_processes=2, process_index=1, device="cpu")
    state.wait_for_everyone = lambda: None
    monkeypatch.setattr(
        launched, "broadcast_object_list", lambda outcome: outcome.__setitem__(1, "OSError: no space left")
    )
    if fails == "loading":
        monkeypatch.setattr(feature_extraction, "launched_processes", lambda: state)
        monkeypatch.setattr(feature_extraction, "load_side", lambda *_: (torch.nn.Linear(1, 1), None))
    else:
        monkeypatch.setattr(extraction, "PartialState", lambda: state)
        monkeypatch.setattr(extraction, "_missing_shards", lambda *_: [])
    side = SimpleNamespace(rows=SimpleNamespace(dataset=["row"]), identity={"side": "text"})
    with pytest.raises(launched.OtherProcessError, match="the main process failed: OSError: no space left"):
        if fails == "loading":
            feature_extraction.run_extraction(FeatureArguments(text_model="x"), PairArguments(dataset=["x"]))
        else:
            extract(tmp_path, side)

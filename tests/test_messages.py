"""What commands print: messages by level, progress as a bar or as lines of the log."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from xmodal_hf import messages
from xmodal_hf.messages import progress_bar


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """Each test begins without handlers of the package, and without what the environment says of progress."""
    for name in ("TQDM_DISABLE", "RANK", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "1")  # put back after the test, whatever it sets
        monkeypatch.delenv(name)
    log = logging.getLogger("xmodal_hf")
    monkeypatch.setattr(log, "handlers", [])
    level = log.level
    log.setLevel(logging.NOTSET)
    yield log
    log.setLevel(level)


def show_messages(verbosity: str = "info", root: list[logging.Handler] | None = None) -> None:
    """Call it as a command does: without the handlers by which pytest reads the log."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(logging.getLogger(), "handlers", root or [])
        messages.show_messages(verbosity)


class Terminal(io.StringIO):
    """A standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [("debug", "diwe"), ("info", "iwe"), ("warning", "we"), ("error", "e")],
)
def test_verbosity(verbosity: str, shown: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"):
        monkeypatch.setenv(name, "warning")
    show_messages(verbosity)
    log = logging.getLogger("xmodal_hf.data")
    for level in ("debug", "info", "warning", "error"):
        getattr(log, level)(level[0])
    assert capsys.readouterr().err == "".join(f"{letter}\n" for letter in shown)


def test_a_log_of_the_program_is_kept(own_log: logging.Logger) -> None:
    show_messages(root=[logging.NullHandler()])
    assert own_log.handlers == []


def test_other_processes_print_nothing(monkeypatch: pytest.MonkeyPatch, own_log: logging.Logger) -> None:
    monkeypatch.setenv("RANK", "1")
    show_messages()
    assert own_log.handlers == []


def test_without_a_terminal_progress_is_lines(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "_SECONDS_BETWEEN_LINES", 0.0)
    show_messages()
    with progress_bar(total=4, desc="embedding", unit=" items", miniters=1) as bar:
        bar.update(2)
        bar.set_postfix({"loss": "0.5"}, refresh=False)
        bar.update(2)
    error = capsys.readouterr().err
    assert "\r" not in error and "█" not in error
    assert error.splitlines()[1].startswith("embedding: 2 of 4 items in 00:00, ")
    assert error.splitlines()[2].startswith("embedding: 4 of 4 items") and "loss=0.5" in error.splitlines()[2]


def test_lines_come_every_half_minute_only(capsys: pytest.CaptureFixture) -> None:
    show_messages()
    assert list(progress_bar(range(10_000), desc="work")) == list(range(10_000))
    assert len(capsys.readouterr().err.splitlines()) <= 2  # the first and the last state


def test_of_an_unknown_total(capsys: pytest.CaptureFixture) -> None:
    show_messages()
    list(progress_bar(iter([1, 2]), desc="work", unit=" rows"))
    assert "work: 0 of ? rows" in capsys.readouterr().err


def test_on_a_terminal_progress_is_a_bar_below_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show_messages()
    for _ in progress_bar([1], desc="work"):
        logging.getLogger("xmodal_hf").info("a message")
    assert "\r" in terminal.getvalue() and "a message\n" in terminal.getvalue()
    assert "a message" not in [line.rpartition("\r")[2] for line in terminal.getvalue().splitlines() if "%" in line]


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_tqdm_disable(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal too, and for bars that this package asks for in so many words."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TQDM_DISABLE", value)
    show_messages()
    assert list(progress_bar([1, 2], desc="work", silent=False)) == [1, 2]
    assert terminal.getvalue() == ""


@pytest.mark.parametrize("value", ["", "0", "false"])
def test_tqdm_is_not_disabled(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TQDM_DISABLE", value)
    list(progress_bar([1, 2], desc="work"))
    assert "work" in terminal.getvalue()


def test_no_progress_without_info(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    show_messages("warning")
    list(progress_bar([1, 2], desc="work"))
    assert terminal.getvalue() == "" and os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_every_command_has_the_option() -> None:
    from xmodal_hf.cli import SCRIPT_OF

    code = (
        "import json, sys; from xmodal_hf.cli import main\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    try: main([name, '--help'])\n"
        "    except SystemExit: pass\n"
    )
    names = list(SCRIPT_OF)
    done = subprocess.run([sys.executable, "-c", code, json.dumps(names)], capture_output=True, text=True)
    assert done.stdout.count("--verbosity {debug,info,warning,error}") >= len(names), done.stderr

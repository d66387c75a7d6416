"""Scripts in processes of their own that start at once: imports, 10 seconds of a processor, are done for all of them.

A job of a study takes a minute or less where towers are frozen or small. The server from which processes are forked
(`multiprocessing`'s "forkserver") has no threads and touches no accelerator.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

import torch

_PRELOADED = f"{__package__}.preloaded"


def start_server(environment: Mapping[str, str]) -> None:
    """Start the server, unless it runs: with the environment of the processes, which libraries read when imported."""
    multiprocessing.get_context("forkserver").set_forkserver_preload([_PRELOADED])
    with _environment(environment):
        forkserver.ensure_running()


def run_script(script: Path, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """Run a script as the main module of a new process, to its end.

    Args:
        script: Path of the script.
        arguments: Command line arguments of the script.
        log: File to which its output is appended.
        environment: Environment variables of the process.

    Returns:
        Exit status; negative for a signal.
    """
    options = (str(script), [*arguments], str(log), dict(environment))
    process = multiprocessing.get_context("forkserver").Process(target=_run, args=options)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(script: str, arguments: list[str], log: str, environment: dict[str, str]) -> None:
    with open(log, "ab", buffering=0) as file:
        for number in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(environment)
    if "OMP_NUM_THREADS" in environment:  # the server may be older than this environment
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = [script, *arguments]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        # What an interpreter does at its end, in its order. A process of multiprocessing never calls the functions of
        # atexit, and waits for the processes that it started before `threading._shutdown` tells those of joblib to
        # end, which then takes five minutes.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before, during = dict(os.environ), dict(variables)
    os.environ.clear()
    os.environ.update(during)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)

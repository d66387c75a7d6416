"""What all workers of pytest-xdist share, and the fixtures of `shared_fixtures.py` for whoever runs tests."""

import contextlib
import gc
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SERVER = pytest.StashKey[str]()
# Files whose tests take most of the time: first, so that at the end no worker waits for one that has just begun such a
# file.
LONG = (
    *("scripts/test_demo.py", "scripts/test_run_study.py", "scripts/test_resume.py", "scripts/test_processes.py"),
    *("test_packaging.py", "test_site.py", "training/test_compilation.py", "scripts/test_dry_run.py"),
    *("distributed/test_losses.py", "distributed/test_objectives.py", "test_import.py", "test_notebooks.py"),
)


def _load(name: str) -> ModuleType:
    """Import a module beside this file; tests are no package, from which it could be imported."""
    if name not in sys.modules:
        specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixtures, which import large packages: a process that only hands tests out starts without."""
    if hasattr(config, "workerinput") or config.getoption("dist", "no") == "no":
        config.pluginmanager.register(_load("shared_fixtures"), "shared_fixtures")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Start one server of interpreters for all workers of pytest-xdist, and tell each of them where it is."""
    if SERVER not in node.config.stash:
        running = contextlib.ExitStack()
        node.config.add_cleanup(running.close)
        node.config.stash[SERVER] = running.enter_context(_load("interpreter_server").running_server()).folder
    node.workerinput["interpreters"] = node.config.stash[SERVER]


@pytest.fixture(scope="session")
def interpreters(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The server of `interpreter_server.py`: new Python processes that have imported the large packages already."""
    module = _load("interpreter_server")
    folder = getattr(request.config, "workerinput", {}).get("interpreters")
    with contextlib.nullcontext(module.InterpreterServer(folder)) if folder else module.running_server() as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest; the others keep their order."""
    rank = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """Take what has been imported out of the collections of garbage, of which some tests make many."""
    gc.collect()
    gc.freeze()

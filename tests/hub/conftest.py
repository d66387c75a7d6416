"""A Hub on this machine, and processes that have nothing but the packages that are named."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers.utils.hub
from packaging.requirements import Requirement


def closure(names: list[str]) -> dict[str, metadata.Distribution]:
    """Return the installed distributions that some need, as pip would install them, by name."""
    found: dict[str, metadata.Distribution] = {}
    waiting = list(names)
    while waiting:
        distribution = metadata.distribution(waiting.pop())
        if distribution.name in found:
            continue
        found[distribution.name] = distribution
        requirements = [Requirement(line) for line in distribution.requires or []]
        waiting += [item.name for item in requirements if not item.marker or item.marker.evaluate({"extra": ""})]
    return found


def link_packages(names: list[str], folder: Path) -> None:
    """Fill a folder with links to what some distributions installed, their requirements and nothing else."""
    folder.mkdir()
    for distribution in closure(names).values():
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))


@pytest.fixture(scope="session")
def run_with_only(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Give `run_with_only(packages, code, **environment)`: what the code prints in a new process with those alone.

    It has an empty cache, no network, and as many threads as this process, for sums in the same order.
    """

    def run(packages: list[str], code: str, **environment: str) -> str:
        folder = tmp_path_factory.mktemp("process")
        link_packages(packages, folder / "packages")
        # -I and -S: no environment variables of Python's, no site-packages, no links of an editable installation.
        start = (
            f"import sys; sys.path.append({str(folder / 'packages')!r})\n"
            "import importlib.util; assert importlib.util.find_spec('xmodal_hf') is None\n"
            f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
        )
        environment = {
            **{name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ},
            **{"HOME": str(folder), "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"},
            **environment,
        }
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", start + code], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def loopback() -> ModuleType:
    """The module beside this file; tests are no package, from which it could be imported."""
    specification = importlib.util.spec_from_file_location("loopback", Path(__file__).with_name("loopback.py"))
    module = importlib.util.module_from_spec(specification)
    sys.modules["loopback"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def hub(loopback: ModuleType) -> Iterator[Any]:
    """A Hub of its own, empty."""
    with loopback.running_hub() as hub:
        yield hub


@pytest.fixture
def client(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Have huggingface_hub's client in this process talk to `hub`, with a token that may write, and never sleep."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    # transformers' client keeps the address at which it was made, and a connection there outlives its Hub.
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # as CI sets it
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", hub.write_token)
    return hub


@pytest.fixture
def client_environment(hub: Any, tmp_path: Path) -> dict[str, str]:
    """The environment of a process whose client talks to `hub`, with an empty cache and a token that may write."""
    own = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf_home"),
        "HF_TOKEN": hub.write_token,
        "OMP_NUM_THREADS": "1",
    }
    return {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | own


@pytest.fixture
def run_script(interpreters: Any, client_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess]:
    """Give `run_script(script, *options, **environment)`, which runs it to its end in a process that talks to `hub`."""

    def run(*command: object, **environment: str) -> subprocess.CompletedProcess:
        return interpreters.run(command, environment={**client_environment, **environment})

    return run

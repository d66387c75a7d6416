"""Processes that have nothing but the packages that are named."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch
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

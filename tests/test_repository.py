"""The files around the package: workflows, templates, citation and changelog agree with it."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from xmodal_hf import __version__
from xmodal_hf.hub.citations import STUDY

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
# The line of the changelog's newest release.
RELEASE = re.compile(r"^## (\d+\.\d+\.\d+) - (\d{4}-\d{2}-\d{2})$", re.MULTILINE)


# Programs of the runner, and what the workflows install: they are there whatever this repository holds.
OF_THE_RUNNER = {"grep", "cd", "python", "python -m pip", "python -m venv"}
INSTALLED = {"python -m build": "build", "python -m twine": "twine", "python -m pytest": "[demo,dev]"}


def steps_of(name: str) -> list[dict[str, Any]]:
    """The steps of all jobs of a workflow."""
    workflow = yaml.safe_load((GITHUB / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def programs_of(step: dict[str, Any]) -> list[str]:
    """What the commands of a step begin with; with `python -m`, the module too."""
    found = []
    for line in step.get("run", "").splitlines():
        for command in re.split(r"\s&&\s", line):
            words = shlex.split(command)
            found.append(" ".join(words[:3]) if words[:2] == ["python", "-m"] else words[0])
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows(path: Path) -> None:
    """Each job ends in time, and has no more rights than it says."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    assert set(workflow[True]) <= {"push", "pull_request"}  # YAML takes `on` for a truth value
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60 and set([job.get("needs")]) <= {None, *workflow["jobs"]}
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_the_workflows_run_is_there(path: Path) -> None:
    steps = steps_of(path.stem)
    runs = "\n".join(step.get("run", "") for step in steps)
    for target in re.findall(r"\bmake ([a-z-]+)", runs):
        assert target in TARGETS
    for program in [program for step in steps for program in programs_of(step)]:
        if program.startswith(".ci/"):
            assert os.access(ROOT / program, os.X_OK)
        elif program in INSTALLED:
            assert re.search(rf"pip install .*{re.escape(INSTALLED[program])}", runs)
        else:
            assert program in OF_THE_RUNNER or program == "make" or program.startswith(("fresh/", "$GITHUB_WORKSPACE/"))
    for step in steps:
        cached = step.get("with", {}).get("cache-dependency-path")
        assert cached is None or (ROOT / cached).is_file()


def test_the_site_is_published_from_where_it_is_built() -> None:
    (published,) = [step["with"]["path"] for step in steps_of("docs") if "upload-pages" in step.get("uses", "")]
    assert re.search(rf"-m sphinx .* {published}$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_a_tag_of_another_version_is_not_released() -> None:
    (check,) = [step["run"] for step in steps_of("wheel") if "GITHUB_REF_NAME" in step.get("run", "")]
    status = {
        tag: subprocess.run(
            ["bash", "-e", "-c", check], cwd=ROOT, env={**os.environ, "GITHUB_REF_NAME": tag}
        ).returncode
        for tag in (f"v{__version__}", "v99.0.0")
    }
    assert status == {f"v{__version__}": 0, "v99.0.0": 1}


def test_the_workflow_runs_every_version_that_is_declared() -> None:
    minors = re.search(
        r"3\.\{minor\}\" for minor in range\((\d+), (\d+)\)", (ROOT / "setup.py").read_text(encoding="utf-8")
    )
    declared = {f"3.{minor}" for minor in range(*map(int, minors.groups()))}
    workflow = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    run = set(workflow["jobs"]["versions"]["strategy"]["matrix"]["python-version"])
    settings = [step.get("with", {}) for step in workflow["jobs"]["everything"]["steps"]]
    everything = {setting["python-version"] for setting in settings if "python-version" in setting}
    assert run | everything == declared and not run & everything


def test_there_are_workflows_for_tests_documents_and_wheel() -> None:
    assert {path.stem for path in WORKFLOWS} >= {"tests", "docs", "wheel"}


def test_the_workflow_installs_what_make_installs_apart_from_the_extras() -> None:
    """Without it the tests of the built-in sounds and of the audio tower fail or are skipped."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (apart,) = re.findall(r"pip install .*--no-deps (aisfx .*)$", makefile, re.MULTILINE)
    steps = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text())["jobs"]["versions"]["steps"]
    assert any(step.get("run", "").endswith(f"pip install --no-deps {apart}") for step in steps)


@pytest.mark.parametrize("path", sorted((GITHUB / "ISSUE_TEMPLATE").glob("*_*.yml")), ids=lambda path: path.stem)
def test_issue_templates(path: Path) -> None:
    template = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert template["name"] and template["description"]
    assert any(field.get("validations", {}).get("required") for field in template["body"])


def test_the_changelog_has_this_version_with_its_date() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, date = RELEASE.search(text).groups()
    assert version == __version__ and text.index("## Unreleased") < text.index(f"## {version}")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["date-released"]) == (version, date)


def test_the_citation_is_that_of_the_cards() -> None:
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["preferred-citation"]
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert " and ".join(names) in re.sub(r"\s+", " ", STUDY)
    for value in (paper["title"], paper["year"], f"{paper['start']}--{paper['end']}"):
        assert f"{{{value}}}" in STUDY

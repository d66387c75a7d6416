"""The files around the package: workflows, templates, citation and changelog agree with it."""

import re
from pathlib import Path

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


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows(path: Path) -> None:
    """Each job ends in time, has no more rights than it says, and runs what is there."""
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 60
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            for target in re.findall(r"\bmake ([a-z-]+)", step.get("run", "")):
                assert target in TARGETS
            for script in re.findall(r"^\.ci/\w+", step.get("run", ""), re.MULTILINE):
                assert (ROOT / script).is_file()


def test_there_are_workflows_for_tests_documents_and_wheel() -> None:
    assert {path.stem for path in WORKFLOWS} >= {"tests", "docs", "wheel"}
    versions = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text())["jobs"]["versions"]["strategy"][
        "matrix"
    ]
    assert versions["python-version"] == ["3.10", "3.12", "3.13"]  # 3.11 runs everything


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

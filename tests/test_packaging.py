"""The distributions: what they hold and say, and that an installed wheel trains away from the sources."""

import csv
import email
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://example.org/xmodal_hf"
BUILD = "import setuptools.build_meta as b, sys; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"
# Left by work in the checkout: no part of the sources.
LEFT_OUT = shutil.ignore_patterns(
    *(".git", ".venv", "outputs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "_build")
)
TEXT = '{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}'


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, where building leaves its files."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("sources") / "xmodal_hf", ignore=LEFT_OUT)


def build(kind: str, sources: Path, target: Path, **environment: str) -> Path:
    """Build a distribution as pip does, with the setuptools that is here."""
    command = [sys.executable, "-c", BUILD, kind, str(target)]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    done = subprocess.run(command, cwd=sources, env=variables | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", sources, tmp_path_factory.mktemp("wheel"), XMODAL_HF_REPOSITORY=REPOSITORY)


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_the_wheel_holds_the_package_and_its_scripts(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    scripts = [path for pattern in ("*.py", "*/*.yaml") for path in (ROOT / "training_scripts").glob(pattern)]
    assert len(scripts) > 35
    for path in scripts:
        assert found[f"xmodal_hf/training_scripts/{path.relative_to(ROOT / 'training_scripts')}"] == path.read_bytes()
    source = ROOT / "src" / "xmodal_hf"
    files = [path for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {f"xmodal_hf/{path.relative_to(source)}" for path in files} <= set(found)
    assert "xmodal_hf/py.typed" in found and not any(name.startswith("tests") for name in found)


def test_metadata(wheel: Path) -> None:
    metadata = metadata_of(wheel)
    addresses = dict(entry.split(", ", 1) for entry in metadata.get_all("Project-URL"))
    assert addresses["Source"] == REPOSITORY and addresses["Paper"] == "https://aclanthology.org/2024.findings-acl.293"
    assert {"Changelog", "Documentation", "Issues"} <= set(addresses)
    assert metadata["Author"] and metadata["Requires-Python"] == ">=3.10"
    assert metadata.get("License-Expression", metadata.get("License")) == "Apache-2.0"
    classifiers = metadata.get_all("Classifier")
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)} <= set(classifiers)


def test_links_of_the_description_are_absolute(wheel: Path) -> None:
    """On a package index there are no files beside the README."""
    text = metadata_of(wheel).get_payload()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 10 and all(re.match(r"https?://|#", link) for link in links)
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures and all(link.startswith(f"{REPOSITORY}/raw/main/") for link in pictures)


def test_without_a_known_repository_the_description_has_no_dead_links(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XMODAL_HF_REPOSITORY", "GITHUB_SERVER_URL", "GITHUB_REPOSITORY"):
        monkeypatch.delenv(name, raising=False)
    given: dict = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    text = given["long_description"]
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 1 and all(re.match(r"https?://", link) for link in links)
    assert "(all numbers)" in re.sub(r"\s+", " ", text) and "[all" not in text
    assert all(re.match(r"https?://", address) for address in [given["url"], *given["project_urls"].values()])


def test_every_optional_package_has_an_extra_that_installs_it(wheel: Path) -> None:
    from xmodal_hf.messages import EXTRA_OF

    required = metadata_of(wheel).get_all("Requires-Dist")
    packages = {"faiss": "faiss-cpu"}
    for module, extra in EXTRA_OF.items():
        name = packages.get(module, module).replace("_", "[-_]")
        assert any(re.match(rf'{name}\b.*extra == "{extra}"', entry) for entry in required), module


@pytest.mark.slow
def test_the_source_distribution_builds_the_same_wheel(sources: Path, wheel: Path, tmp_path: Path) -> None:
    """It also holds what tests and documents need."""
    archive_path = build("sdist", sources, tmp_path)
    with tarfile.open(archive_path) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive_path.name.removesuffix(".tar.gz")
    again = build("wheel", unpacked, tmp_path, XMODAL_HF_REPOSITORY=REPOSITORY)
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert {name: first.read(name) for name in first.namelist()} == {
            name: second.read(name) for name in second.namelist()
        }
    # One of its tests, from its own sources, which needs none of the fixtures and what they import.
    test = ["--noconftest", "tests/test_cli.py", "-k", "recipe_names"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *test]
    environment = os.environ | {"PYTHONPATH": str(unpacked / "src")}
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    for name in ("tests", "docs", "benchmarks/results", "model_cards", "training_scripts/recipes"):
        ours = {path.relative_to(ROOT) for path in (ROOT / name).rglob("*") if path.is_file()}
        assert all((unpacked / path).is_file() for path in ours if not {"__pycache__", "_build"} & set(path.parts))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Make a new environment with this package alone, installed by pip; the dependencies are those of this one."""

    def make(*install: str) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, with_pip=False, symlinks=True)
        python = folder / "bin" / "python"
        purelib = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
        # Only the path: `.pth` files in there, such as that of an editable install of this package, are not read.
        Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = ["-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--no-build-isolation"]
        done = subprocess.run([sys.executable, *pip, *install], env=clean_variables(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return folder / "bin"

    return make


def clean_variables() -> dict[str, str]:
    """The variables of this process without its paths of modules."""
    left_out = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in left_out} | {"HF_HUB_OFFLINE": "1"}


@pytest.mark.slow
def test_an_installed_wheel_trains(wheel: Path, environment: Callable, tmp_path: Path) -> None:
    """Two steps of phase 1 by the console command, two of phase 2 through Accelerate, with the quickstart's recipes."""
    bin_folder = environment(str(wheel))
    (tmp_path / "sentences.txt").write_text("\n".join(f"the number {n} is a word" for n in range(16)))
    from PIL import Image

    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "text"])
        for index, colour in enumerate(("red", "blue", "green", "white") * 3):
            Image.new("RGB", (16, 16 + index), colour).save(tmp_path / f"{index}.png")
            writer.writerow([f"{index}.png", f"a {colour} picture {index}"])

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=clean_variables(), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        return done.stdout

    short = ["--max_steps", "2", "--batch_size", "4", "--report_to", "none"]
    phase1 = ["--recipe", "demo_scratch_sentences", "--sentences", "sentences.txt", "--text_config", TEXT, *short]
    run(str(bin_folder / "xmodal-hf"), "train-sentence", *phase1, "--output_dir", "phase1")
    launch = [str(bin_folder / "python"), "-m", "accelerate.commands.launch", "-m"]
    config = json.dumps(json.loads(TEXT) | {"model_type": "vit", "patch_size": 8})
    phase2 = ["--recipe", "demo_scratch_pairs", "--dataset", "pairs.csv", "--text_model", "phase1"]
    phase2 += ["--image_config", config, "--image_size", "16", *short]
    run(*launch, "xmodal_hf.training_scripts.train_contrastive", *phase2, "--output_dir", "phase2")
    for name, program in (("phase1", "xmodal-hf train-sentence"), ("phase2", "train_contrastive.py")):
        summary = json.loads((tmp_path / name / "run.json").read_text())
        assert summary["steps"] == 2 and summary["command"].startswith(f"{program} --")
        assert summary["git_commit"] is None
    where = run(str(bin_folder / "python"), "-c", "import xmodal_hf; print(xmodal_hf.__file__)").strip()
    assert where.startswith(str(bin_folder.parent)) and str(ROOT) not in where
    assert run(str(bin_folder / "xmodal-hf"), "launch-config", "fsdp2").startswith(str(bin_folder.parent))


@pytest.mark.slow
def test_an_editable_install_finds_the_scripts(sources: Path, environment: Callable, tmp_path: Path) -> None:
    bin_folder = environment("--editable", str(sources))
    done = subprocess.run(
        [str(bin_folder / "python"), "-m", "xmodal_hf.training_scripts.search", "--help"],
        cwd=tmp_path,
        env=clean_variables(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "usage: search.py" in done.stdout, done.stderr
    done = subprocess.run(
        [str(bin_folder / "xmodal-hf"), "recipe", "demo_pairs"], env=clean_variables(), capture_output=True, text=True
    )
    assert done.stdout == f"{sources / 'training_scripts' / 'recipes' / 'demo_pairs.yaml'}\n"

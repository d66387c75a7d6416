"""Metrics as Spaces: what is sent, the page, and loading one from the Hub."""

import ast
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import evaluate
import pytest
import yaml

from xmodal_hf.hub.metric_space import stage_metric
from xmodal_hf.hub.publish import push_folder
from xmodal_hf.metrics import metric_path

NAMES = sorted(path.parent.name for path in Path(metric_path("retrieval_recall")).parent.glob("*/README.md"))
SCRIPT = Path(__file__).parents[2] / "training_scripts" / "publish_model.py"
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics_cache"))


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_is_right(name: str, tmp_path: Path) -> None:
    folder = stage_metric(name, tmp_path / name)
    assert {path.name for path in folder.iterdir()} == {"README.md", "app.py", "requirements.txt", f"{name}.py"}
    metadata = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    assert metadata["sdk"] == "gradio" and metadata.get("app_file", "app.py") == "app.py"
    assert {metadata["colorFrom"], metadata["colorTo"]} <= COLOURS
    assert metadata["title"] and metadata["emoji"] and "metric" in metadata["tags"]
    assert "xmodal_hf" in (folder / "requirements.txt").read_text().split()


@pytest.mark.parametrize("name", NAMES)
def test_the_page_computes_the_example_of_the_docstring(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))  # a Space has it
    folder = stage_metric(name, tmp_path / name)
    specification = importlib.util.spec_from_file_location(f"app_{name}", folder / "app.py")
    app = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(app)
    arguments = re.search(r">>> \w+\.compute\((.*?)\)", app.METRIC.inputs_description)[1]
    columns = {key: value for key, value in eval(f"dict({arguments})").items() if key in app.FEATURES}
    assert list(app.FEATURES) == list(columns)
    assert app.compute(*map(json.dumps, columns.values())) == app.METRIC.compute(**columns)


def test_pushed_and_loaded(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo_id = "someone/retrieval_recall"
    folder = stage_metric("retrieval_recall", tmp_path / "folder")
    published = push_folder(folder, repo_id, repo_type="space", space_sdk="gradio")
    repo = client.repos["space", repo_id]
    assert repo.sdk == "gradio" and client.commit_count(repo_id, kind="space") == 1
    assert {path: file.content for path, file in repo.files.items() if path != ".gitattributes"} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    assert published.url.endswith(f"/spaces/{repo_id}")
    assert push_folder(folder, repo_id, repo_type="space", space_sdk="gradio").sent == []

    monkeypatch.setattr(evaluate.config, "HF_ENDPOINT", client.url)
    monkeypatch.setattr(evaluate.config, "HUB_EVALUATE_URL", client.url + "/spaces/{path}/resolve/{revision}/{name}")
    metric = evaluate.load(repo_id, module_type="metric", cache_dir=str(tmp_path / "cache"))
    example = {"predictions": [[0.9, 0.1, 0.5], [0.8, 0.3, 0.6]], "references": [[0], [1, 2]], "k": [1, 2]}
    assert metric.compute(**example) == {"recall@1": 0.5, "recall@2": 1.0, "median_rank": 1.5}


def test_the_script(hub: Any, run_script: Callable) -> None:
    options = ("--metric", "sts_correlation", "--repo_id")
    done = run_script(SCRIPT, *options, "someone/sts_correlation")
    assert done.returncode == 0, done.stderr
    assert "app.py" in done.stdout and ("space", "someone/sts_correlation") in hub.repos
    done = run_script(SCRIPT, *options, "someone/other")
    assert done.returncode == 2 and "pass --repo_id user/sts_correlation" in done.stderr
    done = run_script(SCRIPT, "--metric", "bleu", "--repo_id", "someone/bleu")
    assert done.returncode == 2 and "error: no metric 'bleu': one of" in done.stderr


def test_the_app_is_one_file_for_all() -> None:
    """It finds the metric by the one other file beside it."""
    tree = ast.parse((Path(__file__).parents[2] / "src/xmodal_hf/hub/templates/metric_app.py").read_text())
    names = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert names.isdisjoint(NAMES)

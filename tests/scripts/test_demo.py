"""The demo from end to end, cut to two steps a phase, and the README's downstream code on what it made."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory):
    """A working folder in which the demo ran; its results are in outputs/demo, as after `make demo`."""
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, str(ROOT / "training_scripts" / "run_demo.py"), "--max_steps", "2"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_results_hold_everything_that_is_reported(demo_folder):
    results = json.loads((demo_folder / "outputs/demo/results.json").read_text(encoding="utf-8"))
    for state in ("before", "after"):
        retrieval = results[f"retrieval_{state}"]
        for way in ("text_to_image", "image_to_text"):
            recalls = [retrieval[f"{way}_recall@{k}"] for k in (1, 5, 10)]
            assert recalls == sorted(recalls) and recalls[0] >= 0 and recalls[-1] <= 100
        assert retrieval["num_items"] == 300
        assert {"alignment", "text_uniformity", "image_uniformity"} <= results[f"representation_{state}"].keys()
    assert len(results["search"]) == 6
    assert all(len(answers) == 5 for answers in results["search"].values())
    # Two steps with warm-up move the model, and the untrained copy is no copy of the trained one.
    assert results["representation_before"]["alignment"] != results["representation_after"]["alignment"]


def test_pictures_are_drawn(demo_folder):
    for name in ("contact_sheet", "map", "loss_curves", "cosines", "alignment_uniformity"):
        with Image.open(demo_folder / f"outputs/demo/{name}.png") as picture:
            assert min(picture.size) > 200


def readme_code(containing: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if containing in block)
    return block


def test_the_code_of_the_readme_runs_as_shown(demo_folder):
    code = readme_code("AutoProcessor.from_pretrained")
    assert len(code.splitlines()) <= 12
    done = subprocess.run([sys.executable, "-c", code], cwd=demo_folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(eval(done.stdout)) == 2


def test_the_loss_example_of_the_readme_runs_as_shown():
    done = subprocess.run([sys.executable, "-c", readme_code("clip_loss")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]

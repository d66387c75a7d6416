"""The notebooks run from top to bottom, in this process and in an empty folder, and show what they say."""

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict]:
    """Give `run(name)`: the variables after the last cell of a notebook."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
    monkeypatch.setenv("TQDM_DISABLE", "1")

    def execute(name: str) -> dict:
        notebook = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))
        variables: dict = {"__name__": "notebook"}
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                assert not cell["outputs"]  # numbers of one machine
                exec(compile("".join(cell["source"]), f"{name}, {cell['id']}", "exec"), variables)
        return variables

    return execute


@pytest.mark.slow
def test_train_and_search(run: Callable) -> None:
    variables = run("train_and_search")
    assert variables["outputs"].logits_per_text.argmax(dim=1).tolist() == [0, 1, 2]
    gallery = variables["gallery"]
    for query, hits in variables["answers"].items():
        assert gallery.caption(hits[0].id) == query


@pytest.mark.slow
def test_evaluate_and_compare(run: Callable, capsys: pytest.CaptureFixture) -> None:
    variables = run("evaluate_and_compare")
    recall = variables["results"]["retrieval"]["text_to_image_recall@1"]
    assert recall > 3 * 100 / len(list(Path("held_out").glob("*.png")))  # chance
    printed = capsys.readouterr().out
    assert "cyclip" in printed and "clip" in printed
    # The function gives what the command wrote.
    written = json.loads(Path("cyclip/evaluation/results.json").read_text())["retrieval"]
    assert variables["numbers"]["text_to_image_recall@1"] == pytest.approx(written["text_to_image_recall@1"])

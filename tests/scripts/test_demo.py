"""The demo from end to end, cut to two steps a phase and few held-out items, and the README's code on what it made."""

import ast
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def run_demo(interpreters, folder: Path, *options: str) -> Path:
    """A working folder in which the demo ran; its results are where `make` leaves them."""
    command = [ROOT / "training_scripts" / "run_demo.py", "--max_steps", "2", "--max_held_out", "40", *options]
    done = interpreters.run(command, folder=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def demo_folder(interpreters, tmp_path_factory):
    return run_demo(interpreters, tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def audio_results(interpreters, tmp_path_factory):
    return run_demo(interpreters, tmp_path_factory.mktemp("demo_audio"), "--modality", "audio") / "outputs/demo_audio"


def check_results(folder: Path, modality: str, top_k: int, num_items: int = 40) -> dict:
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    for state in ("before", "after"):
        retrieval = results[f"retrieval_{state}"]
        for way in (f"text_to_{modality}", f"{modality}_to_text"):
            recalls = [retrieval[f"{way}_recall@{k}"] for k in (1, 5, 10)]
            assert recalls == sorted(recalls) and recalls[0] >= 0 and recalls[-1] <= 100
        assert retrieval["num_items"] == num_items
        expected = {"alignment", "text_uniformity", f"{modality}_uniformity"}
        assert expected <= results[f"representation_{state}"].keys()
    assert results["meta"]["chance_recall@10"] == 1000 / num_items
    assert len(results["search"]) == 6
    assert all(len(answers) == top_k for answers in results["search"].values())
    # Two steps with warm-up move the model, and the untrained copy is no copy of the trained one.
    assert results["representation_before"]["alignment"] != results["representation_after"]["alignment"]
    for name in ("contact_sheet", "map", "loss_curves", "cosines", "alignment_uniformity"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 200
    return results


def test_images(demo_folder):
    folder = demo_folder / "outputs/demo"
    check_results(folder, "image", top_k=5)
    model = json.loads((folder / "model" / "config.json").read_text())
    assert (
        model["image_config"]["architecture"] == "tf_efficientnet_lite0" and model["text_config"]["hidden_size"] == 384
    )
    # The towers stay as they are in phase 2; phase 1 trains the text tower.
    towers = {name: load_file(folder / name / "model.safetensors") for name in ("towers/text", "phase1", "model")}
    name = "encoder.layer.0.output.dense.weight"
    phase1, phase2 = (towers[part][f"text_model.{name}"] for part in ("phase1", "model"))
    assert torch.equal(phase1, phase2) and not torch.equal(phase1, towers["towers/text"][name])


def test_both_ways_to_begin_have_recipes():
    options = runpy.run_path(str(ROOT / "training_scripts" / "run_demo.py"))
    assert options["FROM_SCRATCH"].keys() == options["PRETRAINED"].keys() == {"image", "audio"}
    for demo in (*options["FROM_SCRATCH"].values(), *options["PRETRAINED"].values()):
        pairs = yaml.safe_load((ROOT / "training_scripts" / "recipes" / demo.recipes[1]).read_text())
        assert pairs["dataset"] == demo.dataset and bool(demo.towers) != (f"{demo.modality}_config" in pairs)


def test_audio(audio_results):
    results = check_results(audio_results, "audio", top_k=4)
    zero_shot = results["zero_shot_after"]
    assert 0 < zero_shot["num_items"] < 40 and zero_shot["num_classes"] == 17
    assert zero_shot["chance_top1_accuracy"] == pytest.approx(100 / 17)
    assert {"text_to_audio_map@10", "audio_to_text_map@10"} <= results["retrieval_after"].keys()
    model = json.loads((audio_results / "model" / "config.json").read_text())
    assert model["audio_config"]["model_type"] == "aisfx" and model["text_config"]["hidden_size"] == 384


def test_a_search_covers_the_training_items_whose_vectors_were_kept(monkeypatch, tmp_path):
    """Those of the recipe's `max_samples`, by their own vectors; two steps keep none."""
    import numpy as np
    from datasets import Dataset

    from xmodal_hf.data import sources
    from xmodal_hf.features import FeatureStore, frozen
    from xmodal_hf.training_scripts import run_demo

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "recipe.yaml").write_text("dataset: soundfont\nmodality: audio\nmax_samples: 2\n")
    kept = {"a": [3.0, 4.0], "b": [0.0, 2.0]}

    class Store:
        def __init__(self, tower):
            self.identity = {"tower": {"weights": tower}}

        def __contains__(self, item_id):
            return item_id in kept

        def __getitem__(self, ids):
            assert self.identity["tower"] == {"weights": "audio-1"}
            return torch.tensor([kept[name] for name in ids])

    class Projections:
        model = "audio-1"

        def project(self, side, vectors):
            assert side == "audio"
            return vectors

        def encode_text(self, texts):
            return np.ones((len(texts), 2), np.float32)

    def load_pairs(dataset, *, modality, split, max_samples):
        assert (dataset, modality, split) == ("soundfont", "audio", "train")
        return Dataset.from_dict({"id": ["a", "b", "c"], "text": [["A", "x"], ["B"], ["C"]]}).select(range(max_samples))

    monkeypatch.setattr(sources, "load_pairs", load_pairs)
    monkeypatch.setattr(FeatureStore, "open", lambda path: Store(path.name))
    monkeypatch.setattr(frozen, "tower_fields", lambda model, side: {"weights": model})
    demo = run_demo.PRETRAINED["audio"]
    rows, embeds = run_demo.trained_on(demo, tmp_path, Projections())
    assert rows is None and embeds.shape == (0, 2)
    for name in ("audio-0", "audio-1"):  # the first one is of another tower
        (tmp_path / "features" / name).mkdir(parents=True)
    rows, embeds = run_demo.trained_on(demo, tmp_path, Projections())
    assert rows["text"][:] == ["A", "B"]
    np.testing.assert_allclose(embeds, [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)
    del kept["b"]
    rows, embeds = run_demo.trained_on(demo, tmp_path, Projections())
    assert rows is None and embeds.shape == (0, 2)


def test_a_missing_renderer_is_named_before_any_training(monkeypatch, tmp_path):
    """The extra `demo` cannot install it."""
    from xmodal_hf.data.builtin import soundfont
    from xmodal_hf.training_scripts import run_demo

    monkeypatch.setattr(soundfont, "_SYNTHESIZER", soundfont._Synthesizer())
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    monkeypatch.setattr(run_demo, "train_phases", lambda *_: pytest.fail("trains"))
    with pytest.raises(ImportError, match="pip install --no-deps tinysoundfont"):
        run_demo.main(["--modality", "audio", "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(("modality", "name"), [("image", "demo_scratch"), ("audio", "demo_audio_scratch")])
def test_every_process_of_the_demo_prints_as_much(monkeypatch, tmp_path, modality, name):
    """Both phases and the search are processes of their own; from scratch, none is given a tower."""
    from xmodal_hf.training_scripts import run_demo

    commands = []
    monkeypatch.setattr(run_demo, "run", commands.append)
    for function in ("check_queries", "check_items", "print_summary"):
        monkeypatch.setattr(run_demo, function, lambda *_: None)
    monkeypatch.setattr(run_demo, "evaluate_before_and_after", lambda *_: {"meta": {}})
    (tmp_path / "search.json").write_text("{}")
    run_demo.main(["--modality", modality, "--from_scratch", "--output_dir", str(tmp_path), "--verbosity", "warning"])
    assert len(commands) == 3 and all(command[-2:] == ["--verbosity", "warning"] for command in commands)
    assert [Path(command[3]).stem for command in commands[:2]] == [f"{name}_sentences", f"{name}_pairs"]
    assert not any(part == f"--{modality}_model" for command in commands for part in command)


def check_answers(output: str, answers: dict) -> None:
    """What the README's code prints, "query -> [captions]" a line, are the demo's best held-out items."""
    lines = [line.split(" -> ") for line in output.strip().splitlines()]
    assert len(lines) == 3
    for query, listed in lines:
        captions = ast.literal_eval(listed)
        # The demo may answer from its training pictures too, and says then which are held out.
        known = [
            answer["caption"] if isinstance(answer, dict) else answer
            for answer in answers[query]
            if not isinstance(answer, dict) or answer["held_out"]
        ]
        assert len(captions) == 3
        assert captions[: len(known)] == known[: len(captions)]


def test_the_code_of_the_readme_runs_as_shown(interpreters, demo_folder):
    """On the few held-out items of the short demo."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line]) == 10 and "max_samples=300" in code
    done = interpreters.run(["-c", code.replace("max_samples=300", "max_samples=40")], folder=demo_folder)
    assert done.returncode == 0, done.stderr[-3000:]
    check_answers(done.stdout, json.loads((demo_folder / "outputs/demo/search.json").read_text()))

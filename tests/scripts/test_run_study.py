"""A study of two small models, end to end, through the real scripts."""

import json

import numpy as np
import pytest
import yaml

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path, image_rows, tower_configs):
    """None against unsupervised sentences first, two steps each."""
    text_config, image_config = tower_configs
    short = {"max_steps": 2, "batch_size": 8, "report_to": "none"}
    study = {
        "title": "A small study",
        "variables": {"pairs": "nowhere"},
        "prepare": {
            "tokenizer": {"kind": "tokenizer", "sentences": ["{pairs}"], "vocab_size": 300, "max_length": 16},
        },
        "phase1": {"text_config": text_config, "tokenizer": "{study}/tokenizer", **short},
        "phase2": {
            "text_config": text_config,
            "tokenizer": "{study}/tokenizer",
            "dataset": ["{pairs}"],
            "image_config": image_config,
            "image_size": 16,
            "projection_dim": 8,
            **short,
        },
        "evaluation": {"tasks": "retrieval,representation", "pairs": "{pairs}", "num_resamples": 50},
        "axes": {"language": {"none": {}, "unsup": {"phase1": {"sentences": "{pairs}"}}}},
        "columns": {"R@10": "retrieval.text_to_image_recall@10", "alignment": "representation.alignment"},
        "questions": [
            {
                "claim": "Sentences help",
                "compare": {"language": ["none", "unsup"]},
                "metrics": {"retrieval.text_to_image_recall@10": "higher"},
            }
        ],
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    return path, f"pairs={image_rows}"


def test_study_is_run_resumed_and_reported(recipe, run_script, tmp_path):
    path, variable = recipe
    folders = ("--output_dir", tmp_path / "out", "--card_dir", tmp_path / "card")
    options = ("--recipe", path, "--set", variable, *folders, "--jobs", "2")
    run_script("run_study.py", *options)
    results = json.loads((tmp_path / "card" / "results.json").read_text())
    assert set(results["cells"]) == {"none_seed0", "unsup_seed0"}
    measured = json.loads((tmp_path / "out" / "evaluations" / "unsup_seed0" / "results.json").read_text())
    assert results["cells"]["unsup_seed0"]["retrieval"] == measured["retrieval"]
    (found,) = results["answers"]
    recalls = [results["cells"][name]["retrieval"]["text_to_image_recall@10"] for name in ("none_seed0", "unsup_seed0")]
    assert found["difference"] == recalls[1] - recalls[0] and found["low"] is not None
    drawn = [np.load(tmp_path / "out" / "evaluations" / name / "resamples.npz") for name in results["cells"]]
    drawn_none, drawn_unsup = (resamples["retrieval.text_to_image_recall@10"] for resamples in drawn)
    low, high = np.percentile(drawn_unsup - drawn_none, [2.5, 97.5])
    assert found["paired"] and found["high"] - found["low"] == pytest.approx(high - low)
    assert {path.name for path in (tmp_path / "card").iterdir()} == {
        *("README.md", "results.json", "results.png", "claims.png", "geometry.png")
    }
    trained = yaml.safe_load((tmp_path / "out" / "models" / "unsup_seed0" / "recipe.yaml").read_text())
    assert trained["text_model"] == str(tmp_path / "out" / "phase1" / "unsup_seed0")

    weights = tmp_path / "out" / "models" / "none_seed0" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    (tmp_path / "out" / "evaluations" / "none_seed0" / "results.json").unlink()
    listed = run_script("run_study.py", *options, "--list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["done", "open", "done", "done", "done"]
    run_script("run_study.py", *options)
    assert weights.stat().st_mtime_ns == before
    again = json.loads((tmp_path / "card" / "results.json").read_text())
    assert again["cells"] == results["cells"]

    run = tmp_path / "out" / "run.json"
    elsewhere = json.loads(run.read_text()) | {"hardware": {"processor": "another machine", "cores": 64}}
    run.write_text(json.dumps(elsewhere), encoding="utf-8")
    run_script("run_study.py", *options)  # trains nothing, so that the machine stays
    run_script("run_study.py", *options, "--report_only")
    meta = json.loads((tmp_path / "card" / "results.json").read_text())["meta"]
    assert meta["hardware"] == elsewhere["hardware"] and meta["versions"] == results["meta"]["versions"]


def test_unknown_options_end_before_any_work(recipe, run_script, tmp_path):
    path, _ = recipe
    done = run_script("run_study.py", "--recipe", path, "--set", "pair=x", returncode=2)
    assert "unknown key 'pair': did you mean 'pairs'" in done.stderr
    done = run_script("run_study.py", "--recipe", path, "--output_dir", tmp_path / "new", "--report_only", returncode=2)
    assert "holds no finished job to report on" in done.stderr


def test_a_study_of_failures_says_so(recipe, run_script, tmp_path):
    path, variable = recipe
    study, folder = yaml.safe_load(path.read_text(encoding="utf-8")), tmp_path / "out"
    for phase in ("phase1", "phase2"):
        study[phase]["batch_size"] = 10**6
    path.write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    done = run_script("run_study.py", "--recipe", path, "--set", variable, "--output_dir", folder, returncode=1)
    assert "no model has been evaluated" in done.stderr and f"{folder}/models/none_seed0: exit status" in done.stderr
    elsewhere = tmp_path / "elsewhere"
    nowhere = f"pairs={tmp_path / 'nowhere.jsonl'}"
    done = run_script("run_study.py", "--recipe", path, "--set", nowhere, "--output_dir", elsewhere, returncode=2)
    assert "There is no file or folder" in done.stderr


def test_an_adapter_is_a_model_of_a_study(run_script, tiny_base, image_rows, tmp_path):
    """Beside its base, of which its text tower differs and its image tower does not."""
    options = ("--dataset", image_rows, "--batch_size", 8, "--max_steps", 2, "--max_length", 8, "--report_to", "none")
    lora = ("--model", tiny_base, "--lora_rank", 2, "--learning_rate", 0.1, "--output_dir", tmp_path / "adapter")
    run_script("train_contrastive.py", *options, *lora)
    recall = "retrieval.text_to_image_recall@10"
    study = {
        "title": "An adapter",
        "evaluation": {"tasks": "retrieval", "pairs": str(image_rows), "num_resamples": 20},
        "axes": {"model": {"base": {"model": str(tiny_base)}, "adapter": {"model": str(tmp_path / "adapter")}}},
        "columns": {"R@10": recall},
        "questions": [{"claim": "It helps", "compare": {"model": ["base", "adapter"]}, "metrics": {recall: "higher"}}],
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False), encoding="utf-8")
    run_script("run_study.py", "--recipe", tmp_path / "study.yaml", "--output_dir", tmp_path / "out", "--jobs", 2)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["cells"]) == {"base_seed0", "adapter_seed0"} and len(results["answers"]) == 1
    identity = json.loads((tmp_path / "out" / "evaluations" / "adapter_seed0" / "results.json").read_text())["meta"]
    assert " on " in identity["identity"]  # the adapter's, and that of its base

"""Dry runs of a study: what other jobs and preparations make is replaced by its shape."""

from pathlib import Path

import pytest
import yaml

from xmodal_hf.study.estimate import trainings_to_estimate
from xmodal_hf.study.grid import Study

RECIPES = Path(__file__).parents[2] / "training_scripts" / "recipes"
STUDY = {
    "title": "A study",
    "seeds": [0, 1],
    "prepare": {
        "bert": {
            **{"kind": "language_model", "sentences": ["wiki.txt"], "vocab_size": 300, "max_length": 16, "steps": 1},
            "config": {"model_type": "bert", "hidden_size": 8},
        }
    },
    "phase1": {"text_model": "{study}/bert", "max_steps": 3},
    "phase2": {"text_model": "{study}/bert", "image_model": "resnet", "dataset": ["pairs"], "projection_dim": 4},
    "evaluation": {"tasks": "sts"},
    "axes": {
        "language": {
            "raw": {},
            "unsup first": {"phase1": {"sentences": "wiki.txt"}},
            "longer": {"phase2": {"model": "{study}/models/raw_seed{seed}", "max_steps": 5}},
        }
    },
    "columns": {"STS": "sts.average"},
}
SHAPE = {"vocab_size": 300, "max_position_embeddings": 16, "model_type": "bert", "hidden_size": 8}


def test_what_the_study_makes_is_replaced_by_its_shape(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY, sort_keys=False), encoding="utf-8")
    found = trainings_to_estimate(Study.read(path, tmp_path / "out"), tmp_path / "out")
    assert list(found) == ["models/raw", "phase1/unsup-first", "models/unsup-first", "models/longer"]
    assert [number for _, number in found.values()] == [2] * 4
    raw, first, second, longer = (job.options for job, _ in found.values())
    assert all(options["text_config"] == SHAPE and "text_model" not in options for options in (raw, first, second))
    assert "model" not in longer and (longer["text_config"], longer["image_model"]) == (SHAPE, "resnet")
    assert (longer["max_steps"], longer["projection_dim"], longer["seed"]) == (5, 4, 0)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("study_*.yaml")), ids=lambda path: path.stem)
def test_no_training_of_a_recipe_needs_what_its_study_makes_but_towers_of_packages(path):
    folder = Path("outputs/study")
    study = Study.read(path, folder)
    assert len({cell.seed for cell in study.cells}) >= 3
    for job, _ in trainings_to_estimate(study, folder).values():
        named = [str(job.options.get(name)) for name in ("model", "text_model", "image_model", "audio_model")]
        assert all(not name.startswith("outputs/study") or "/towers/" in name for name in named)

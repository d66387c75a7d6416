"""The document of a study: every number in it is one of results.json."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from xmodal_hf.study.plots import figures
from xmodal_hf.study.report import NOTES_NAME, closed_forms, headline_table, paired_resamples, render

CARDS = Path(__file__).parents[2] / "model_cards"


def metric(value, width=0.5):
    return {"average": value, "average_ci95_low": value - width, "average_ci95_high": value + width}


@pytest.fixture
def results():
    answers = {
        "claim": "It helps",
        "source": "somebody",
        "metric": "sts.average",
        "expected": "higher",
        "before": "none",
        "after": "sup",
        "difference": 7.125,
        "low": 6.0,
        "high": 8.25,
        "paired": True,
        "num_pairs": 1,
        "num_seeds": 1,
        "agreeing": 1,
        "verdict": "reproduced",
        "pairs": [],
    }
    geometry = {"text_uniformity": -2.0, "alignment": 1.0}
    return {
        "cells": {
            "none_seed0": {"levels": {"language": "none"}, "seed": 0, "sts": metric(40.0), "representation": geometry},
            "sup_seed0": {"levels": {"language": "sup"}, "seed": 0, "sts": metric(47.125), "representation": geometry},
        },
        "answers": [answers],
        "meta": {
            "title": "A study",
            "columns": {"STS": "sts.average", "alignment": "representation.alignment"},
            "num_cells": 3,
            "failed": {"models/x": "exit status 1"},
            "tasks": {"sts": {"dataset": "sts", "sha256": "0123456789abcdef", "protocol": "simcse"}},
            "trainings": {"none_seed0": {"steps": 5, "items": 640, "seconds": 90.0, "device": "cpu"}},
            "seconds": {"train_contrastive.py": 90.0, "all": 150.0},
            "hardware": {"processor": "A processor", "cores": 2},
            "versions": {"torch": "2.11.0"},
            "git_commit": None,
            "recipe": {"title": "A study"},
        },
    }


def write(folder, results):
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")


def test_page(tmp_path, results):
    write(tmp_path, results)
    (tmp_path / "claims.png").write_bytes(b"")
    page = render(tmp_path)
    assert "| none | 40.00 (0.50) | 1.00 |" in page and "| sup | 47.12 (0.50) | 1.00 |" in page
    assert "| sts.average | none → sup | higher | +7.12 | 6.00 to 8.25 | 1 of 1 | reproduced |" in page
    assert "in 2.5 minutes on\n2 cores of A processor" in page and "models/x (exit status 1)" in page
    assert "There is one seed" in page and "![claims.png](claims.png)" in page
    assert "SHA-256 0123456789ab" in page and "torch 2.11.0." in page and "\n\n\n" not in page


def test_resamples_of_other_data_or_draws_are_not_paired(tmp_path):
    np.savez(tmp_path / "resamples.npz", **{"sts.average": np.ones(3), "retrieval.recall": np.ones(3)})
    tasks = {"sts": {"sha256": "a", "seed": 0}, "retrieval": {"sha256": "b", "seed": 0}}
    first = {"meta": {"tasks": tasks}}
    for changed in ({"seed": 1}, {"sha256": "c"}, {"num_resamples": 5}):
        own = {"meta": {"tasks": {**tasks, "sts": tasks["sts"] | changed}}}
        assert set(paired_resamples(tmp_path, own, {"x": first, "y": own})) == {"retrieval.recall"}
    assert set(paired_resamples(tmp_path, first, {"x": first, "y": own})) == {"sts.average", "retrieval.recall"}


def test_several_seeds_are_summarised(results):
    results["cells"]["sup_seed1"] = {"levels": {"language": "sup"}, "seed": 1, "sts": metric(49.125)}
    # mean of 47.125 and 49.125, and their deviation, sqrt(2)
    assert "| sup | 48.12 ± 1.41 | 1.00 |" in headline_table(results)


def test_baselines_and_phases_1_are_rows_above_the_models(results, tmp_path):
    results["baselines"] = {
        "chance": {"name": "chance", "seed": None, "sts": {"average": 0.0}},
        "constant classifier": {"name": "constant classifier", "seed": None, "transfer": {"average": 50.0}},
        "words_seed0": {"name": "random word vectors", "seed": 0, "sts": metric(50.0)},
        "words_seed1": {"name": "random word vectors", "seed": 1, "sts": metric(52.0)},
    }
    results["phase1"] = {"phase1_sup_seed0": {"name": "phase 1 alone: sup", "seed": 0, "sts": metric(60.0)}}
    rows = headline_table(results).splitlines()[2:]
    assert rows == [
        "| *chance* | 0.00 |  |",
        "| *random word vectors* | 51.00 ± 1.41 |  |",
        "| *phase 1 alone: sup* | 60.00 (0.50) |  |",
        "| none | 40.00 (0.50) | 1.00 |",
        "| sup | 47.12 (0.50) | 1.00 |",
    ]
    write(tmp_path, results)
    assert "In italics: what needs no training" in render(tmp_path)


def test_closed_forms_that_differ_between_cells_are_left_out():
    def measured(recall):
        return {"meta": {"tasks": {"retrieval": {"baselines": {"chance": {"recall": recall, "same": 5.0}}}, "sts": {}}}}

    found = closed_forms({"a": measured(1.0), "b": measured(2.0), "c": measured(1.0)})
    assert found == {"chance": {"name": "chance", "seed": None, "retrieval": {"same": 5.0}}}


def test_notes_are_put_beside_their_claims(tmp_path, results):
    write(tmp_path, results)
    notes = {"description": "What it is.", "limitations": "Small.", "readings": {"It helps": "Because."}}
    (tmp_path / NOTES_NAME).write_text(yaml.safe_dump(notes), encoding="utf-8")
    page = render(tmp_path)
    assert page.index("What it is.") < page.index("### It helps") < page.index("Because.") < page.index("Small.")
    (tmp_path / NOTES_NAME).write_text(yaml.safe_dump({"readings": {"It hurts": "x"}}), encoding="utf-8")
    with pytest.raises(ValueError, match="reads 'It hurts', to which the results have no answer"):
        render(tmp_path)


def test_figures(results):
    drawn = figures(results)
    assert list(drawn) == ["results.png", "claims.png", "geometry.png"]
    headings = [axes.get_title() for axes in drawn["results.png"].axes]
    assert headings == ["STS", "alignment"]
    dots = drawn["results.png"].axes[0].containers
    assert [float(dot[0].get_xdata()[0]) for dot in dots] == [40.0, 47.125]
    labels = [label.get_text() for label in drawn["claims.png"].axes[0].get_yticklabels()]
    assert labels == ["It helps", "none → sup: sts.average"]
    # 7.125 in half-widths of 1.125, to the right
    assert float(drawn["claims.png"].axes[0].containers[0][0].get_xdata()[0]) == pytest.approx(7.125 / 1.125)


@pytest.mark.parametrize("folder", sorted(CARDS.glob("study-*")), ids=lambda folder: folder.name)
def test_studies_of_this_repository_are_rendered_from_their_files(folder):
    """As `run_study.py --report_only --card_dir ...` does; what people wrote has no numbers of its own."""
    assert (folder / "README.md").read_text(encoding="utf-8") == render(folder)
    notes = yaml.safe_load((folder / NOTES_NAME).read_text(encoding="utf-8"))
    for text in notes["readings"].values():
        assert not re.search(r"\d+\.\d", text)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert len(results["cells"]) == results["meta"]["num_cells"] and not results["meta"]["failed"]

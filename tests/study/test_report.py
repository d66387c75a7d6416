"""The document of a study: every number in it is one of results.json."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from xmodal_hf.study.comparisons import VERDICTS
from xmodal_hf.study.plots import answers_figure, figures, geometry_figure, metrics_figure
from xmodal_hf.study.report import NOTES_NAME, _still_failed, closed_forms, compare_with, paired_resamples, render
from xmodal_hf.study.tables import headline_table

CARDS = Path(__file__).parents[2] / "model_cards"


def metric(value, width=0.5):
    return {"average": value, "average_ci95_low": value - width, "average_ci95_high": value + width}


@pytest.fixture
def results():
    answers = {
        "claim": "It helps",
        "source": "somebody",
        "of_paper": False,
        "confounds": "The levels differ in the texts too.",
        "metric": "sts.average",
        "expected": "higher",
        "before": "none",
        "after": "sup",
        "difference": 7.125,
        "low": 6.0,
        "high": 8.25,
        "p_value": 0.0001,
        "p_holm": 0.012,
        "paired": True,
        "num_pairs": 1,
        "num_seeds": 1,
        "agreeing": 1,
        "verdict": "too few seeds",
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


def test_the_training_of_a_language_model_is_on_the_page(tmp_path, results):
    trained = {"sentences": 12_000, "steps": 1500, "batch_size": 64, "seconds": 90.0, "mask_probability": 0.4}
    results["meta"]["language_models"] = {"bert": trained | {"first_loss": 9.0, "last_loss": 6.5}}
    write(tmp_path, results)
    page = re.sub(r"\s+", " ", render(tmp_path))
    assert (
        "The language model `bert` was trained by masked language modelling for 1,500 steps of 64 of 12,000 sentences "
        "with 40 % of the tokens masked, in 1.5 minutes; its loss fell from 9.00 to 6.50."
    ) in page


def test_gains_beside_another_study_are_on_the_page(tmp_path, results):
    other = tmp_path / "other"
    other.mkdir()
    known = results["answers"][0] | {"standard_error": 1.0, "degrees": None}
    write(
        other, {"answers": [known | {"claim": "It helps there", "difference": 3.0}], "meta": {"title": "Another study"}}
    )
    results["answers"] = [known | {"beside": "It helps there"}]
    compare_with(results, other)
    write(tmp_path, results)
    page = render(tmp_path)
    assert 'than those of "Another study"' in page
    assert "| sts.average | none → sup | +7.12 | +3.00 | +4.12 | 1.35 to 6.90 | 0.004 |" in page
    results["answers"] = [known]
    with pytest.raises(ValueError, match="no answer of this study is compared with an answer of 'Another study'"):
        compare_with(results, other)


def test_page(tmp_path, results):
    write(tmp_path, results)
    (tmp_path / "claims.png").write_bytes(b"")
    page = render(tmp_path)
    assert "| none | 40.00 (0.50) | 1.00 |" in page and "| sup | 47.12 (0.50) | 1.00 |" in page
    assert "| sts.average | none → sup | higher | +7.12 | 6.00 to 8.25 | 0.012 | 1 of 1 | 1 | too few seeds |" in page
    assert "Confounded: The levels differ in the texts too." in page
    assert "covers the seeds alone" not in page
    results["answers"][0] |= {"num_missing": 3, "pairs": [{"half_width": None}]}
    write(tmp_path, results)
    assert "Of a metric without a bootstrap, it covers the seeds alone." in render(tmp_path)
    assert "| 0.012 | 1 of 1, 3 not measured | 1 | too few seeds |" in render(tmp_path)
    assert (
        "2 of the 3 models of the grid, trained and evaluated in 2.5 minutes on\n2 cores of A processor" in page
        and "models/x (exit status 1)" in page
    )
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
    page = render(tmp_path)
    assert "In italics: what the models are compared with" in page and "There is one seed" in page
    results["cells"]["sup_seed1"] = results["cells"]["sup_seed0"] | {"seed": 1}
    write(tmp_path, results)
    assert "Mean and standard deviation over seeds; in parentheses, of a single model, half of its 95 %" in render(
        tmp_path
    )


def test_a_finished_model_stands_under_the_axes_that_concern_it_alone(results):
    """A phase 1 has no contrastive objective and no pairs, and is one model for all of them."""
    axes = {
        "objective": {"CLIP": {}, "CyCLIP": {"phase2": {"objective": "cyclip"}}},
        "pairs": {1500: {"phase2": {"max_samples": 1500}}, 6000: {}},  # numbers, as YAML reads them
        "language": {
            "raw": None,
            "sup": {"phase1": {"triplets": "nli.jsonl"}},
            "sup, phase 1": {"model": "{study}/phase1/sup_seed{seed}", "evaluation": {"tasks": "sts"}},
            "of the objective": {"model": "{study}/models/{objective}_6000_raw_seed{seed}"},
            "of the Hub": {"model": "openai/clip-vit-base-patch32"},
        },
    }
    results["meta"]["recipe"] = {"title": "A study", "axes": axes}
    results["meta"]["columns"] = {"STS": "sts.average"}
    results["cells"] = {
        f"{objective}_{language}_{seed}": {
            "levels": {"objective": objective, "pairs": "6000", "language": language},
            "seed": seed,
            "sts": metric(40.0 + 2 * seed),
        }
        for objective in ("CLIP", "CyCLIP")
        for language in axes["language"]
        for seed in (0, 1)
    }
    assert headline_table(results).splitlines()[2:] == [
        "| CLIP | 6000 | raw | 41.00 ± 1.41 |",
        "| CLIP | 6000 | sup | 41.00 ± 1.41 |",
        "|  |  | sup, phase 1 | 41.00 ± 1.41 |",
        "| CLIP |  | of the objective | 41.00 ± 1.41 |",
        "|  |  | of the Hub | 41.00 ± 1.41 |",
        "| CyCLIP | 6000 | raw | 41.00 ± 1.41 |",
        "| CyCLIP | 6000 | sup | 41.00 ± 1.41 |",
        "| CyCLIP |  | of the objective | 41.00 ± 1.41 |",
    ]
    rows = [label.get_text() for label in metrics_figure(results).axes[0].get_yticklabels()]
    assert rows[2:5] == ["sup, phase 1", "CLIP, of the objective", "of the Hub"]
    # Options of phase 1 and of the evaluation change what is measured of it.
    axes["pairs"][1500]["phase1"] = {"max_steps": 5}
    assert "|  | 6000 | sup, phase 1 |" in headline_table(results) and "|  |  | of the Hub |" in headline_table(results)
    axes["objective"]["CyCLIP"]["evaluation"] = {"max_pairs": 7}
    assert "| CLIP | 6000 | sup, phase 1 |" in headline_table(results)
    assert "| CyCLIP |  | of the Hub |" in headline_table(results)


def test_failures_of_an_earlier_run_that_were_made_good_are_not_told(tmp_path):
    failed = {f"{tmp_path}/models/{name}": f"exit status 1, see {tmp_path}/models/{name}/log" for name in "abc"}
    told = _still_failed(failed, tmp_path, {tmp_path / "models" / "b"})  # a is done, c is no longer in the grid
    assert told == {"models/b": "exit status 1, see models/b/log"}


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
    with pytest.raises(ValueError, match="has a reading of 'It hurts', which the results do not answer"):
        render(tmp_path)


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def test_figure_of_the_headline_metrics(results):
    results["baselines"] = {
        "chance": {"name": "chance", "seed": None, "sts": {"average": 0.0}},
        "words_seed0": {"name": "random word vectors", "seed": 0, "sts": metric(50.0)},
    }
    results["meta"]["columns"]["transfer"] = "transfer.average"  # which nobody measured: no empty panel
    drawn = figures(results)["results.png"]
    assert titles(drawn) == ["STS\n(higher is better →)\nchance: 0.0", "alignment\n(← lower is better)"]
    first = drawn.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["random word vectors", "none", "sup"]
    assert [float(dot[0].get_xdata()[0]) for dot in first.containers] == [50.0, 40.0, 47.125]


def test_figure_of_the_answers_is_in_units_of_the_metric(results):
    (found,) = results["answers"]
    more = [found | {"metric": f"retrieval.recall@{k}", "expected": "lower"} for k in (1, 5, 10)]
    uniform = found | {"claim": "It spreads", "metric": "representation.text_uniformity", "verdict": "opposite"}
    drawn = answers_figure([found, *more, uniform], {"STS": "sts.average"})
    assert titles(drawn) == [
        *("STS  (claimed →)", "retrieval.recall@1  (← claimed)", "retrieval.recall@5  (← claimed)"),
        "retrieval.recall@10  (← claimed)",
        "representation.text_uniformity\n(claimed →)",
    ]
    assert [axes.get_xlabel() for axes in drawn.axes[2:]] == [*["difference in points"] * 2, "difference"]
    claims = [part.get_suptitle() for part in drawn.subfigs]
    assert claims == ["It helps", "It helps (continued)", "It spreads"]
    (bar,) = drawn.axes[0].containers
    assert float(bar[0].get_xdata()[0]) == 7.125 and bar[2][0].get_segments()[0][:, 0].tolist() == [6.0, 8.25]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["opposite", "too few seeds"]


def test_figure_of_the_geometry_has_a_colour_for_each_arm_and_a_marker_for_each_setting():
    def cell(objective, language, seed, alignment):
        geometry = {"text_uniformity": -2.0, "alignment": alignment}
        return {"levels": {"objective": objective, "language": language}, "seed": seed, "representation": geometry}

    arms = {"raw": 1.0, "first": 2.0, "joint": 3.0}
    cells = {
        f"{objective}_{language}_{seed}": cell(objective, language, seed, place + 0.1 * seed)
        for objective in ("CLIP", "CyCLIP")
        for language, place in arms.items()
        for seed in (0, 1)
    }
    drawn = geometry_figure(cells)
    large = [points for points in drawn.axes[0].collections if points.get_sizes()[0] == 60]
    assert [points.get_offsets()[0].tolist() for points in large] == [
        [-2.0, place + 0.05] for place in arms.values()
    ] * 2
    colours = [tuple(points.get_facecolor()[0]) for points in large]
    shapes = [points.get_paths()[0].vertices.tobytes() for points in large]
    assert colours[:3] == colours[3:] and len(set(colours)) == 3
    assert len(set(shapes[:3])) == len(set(shapes[3:])) == 1 and shapes[0] != shapes[3]
    named = [[text.get_text() for text in legend.get_texts()] for legend in drawn.legends]
    assert named == [["raw", "first", "joint"], ["CLIP", "CyCLIP"]]


def test_all_verdicts_have_a_meaning_and_a_colour(results):
    (found,) = results["answers"]
    drawn = answers_figure([found | {"verdict": verdict} for verdict in VERDICTS], {})
    assert {text.get_text() for text in drawn.legends[0].get_texts()} == set(VERDICTS)


def boxes(figure):
    """The places of all names in a figure: of rows, panels, claims and legends."""
    figure.draw_without_rendering()
    texts = [axes.title for axes in figure.axes]
    for axes in figure.axes:
        low, high = sorted(axes.get_ylim())
        texts += [name for name in axes.get_yticklabels() if low <= name.get_position()[1] <= high]
    texts += [text for legend in figure.legends for text in (legend.get_title(), *legend.get_texts())]
    texts += [part._suptitle for part in figure.subfigs]
    return [text.get_window_extent() for text in texts if text.get_text() and text.get_visible()]


@pytest.mark.filterwarnings("error::UserWarning")  # such as of a layout that has no place for its panels
@pytest.mark.parametrize("num_arms", [1, 11])
def test_names_of_any_length_and_number_overlap_nowhere(results, num_arms):
    long = "sentence training of a language encoder that was trained before on very many sentences of other domains"
    arms = [f"{number}, {long}" for number in range(num_arms)]
    geometry = {"text_uniformity": -2.0, "alignment": 1.0}
    results["cells"] = {
        f"{objective}_{arm}": {
            "levels": {"objective with a long name": objective, "language": arm},
            "seed": 0,
            "sts": metric(40.0),
            "retrieval": metric(40.0),
            "representation": geometry,
        }
        for objective in ("CLIP with a learned temperature and a learned bias", "CyCLIP")
        for arm in arms
    }
    named = {f"{long}, 1": "sts.average", f"{long}, 2": "retrieval.average"}
    results["meta"]["columns"] = {**named, "alignment": "representation.alignment"}
    (found,) = results["answers"]
    results["answers"] = [
        found | {"claim": f"{long} {long}", "before": arms[0], "after": arm, "metric": name}
        for arm in arms
        for name in (*named.values(), "representation.alignment", "representation.text_uniformity")
    ]
    for name, drawn in figures(results).items():
        places, whole = boxes(drawn), drawn.bbox
        assert all(
            box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y0 >= whole.y0 and box.y1 <= whole.y1 for box in places
        ), name
        overlapping = [(a, b) for a, b in itertools.combinations(places, 2) if a.padded(-1).overlaps(b.padded(-1))]
        assert len(places) > num_arms and not overlapping, name
    drawn = geometry_figure(results["cells"])
    colours = {tuple(points.get_facecolor()[0]) for points in drawn.axes[0].collections}
    assert len(colours) == max(num_arms, 2)


@pytest.mark.parametrize("folder", sorted(CARDS.glob("study-*")), ids=lambda folder: folder.name)
def test_studies_of_this_repository_are_rendered_from_their_files(folder):
    """As `run_study.py --report_only --card_dir ...` does; what people wrote has no numbers of its own."""
    assert (folder / "README.md").read_text(encoding="utf-8") == render(folder)
    notes = yaml.safe_load((folder / NOTES_NAME).read_text(encoding="utf-8"))
    for text in notes["readings"].values():
        assert not re.search(r"\d+\.\d", text)
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert not results["meta"]["failed"] and len(results["cells"]) == results["meta"]["num_cells"]

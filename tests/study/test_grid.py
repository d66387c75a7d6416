"""A grid becomes cells and questions; mistakes are named before anything runs."""

from pathlib import Path

import pytest
import yaml

from xmodal_hf.losses import LOSSES, SENTENCE_LOSSES
from xmodal_hf.options import parse_arguments
from xmodal_hf.study.grid import Study
from xmodal_hf.study.jobs import jobs_of
from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
    ValidationArguments,
    check_phase_1,
    check_phase_2,
)
from xmodal_hf.training.loss_arguments import with_weights_of

RECIPES = Path(__file__).parents[2] / "training_scripts" / "recipes"
RECIPE = {
    "title": "A study",
    "variables": {"data": "data"},
    "seeds": [0, 1],
    "phase1": {"text_config": {"model_type": "bert"}, "tokenizer": "{study}/tokenizer", "max_steps": 3},
    "phase2": {
        "text_config": {"model_type": "bert"},
        "tokenizer": "{study}/tokenizer",
        "dataset": ["{data}/pairs.jsonl"],
    },
    "evaluation": {"tasks": "sts", "sts_data": "{data}/sts"},
    "axes": {
        "objective": {"CLIP": {}, "CyCLIP": {"phase2": {"objective": "cyclip"}}},
        "language": {
            "none": {},
            "unsup first": {"phase1": {"sentences": "{data}/wiki.txt"}},
            "unsup joint": {"phase2": {"sentences": "{data}/wiki.txt"}},
        },
    },
    "columns": {"STS": "sts.average"},
    "questions": [
        {
            "claim": "It helps",
            "compare": {"language": ["none", ["unsup first", "unsup joint"]]},
            "metrics": {"sts.average": "higher"},
        }
    ],
}


def read(tmp_path, changes=None, **variables):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(RECIPE | (changes or {}), sort_keys=False), encoding="utf-8")
    return Study.read(path, tmp_path / "out", variables)


def test_cells_are_the_product_of_levels_and_seeds(tmp_path):
    cells = read(tmp_path).cells
    assert len(cells) == 2 * 3 * 2 and len({cell.name for cell in cells}) == len(cells)
    cell = next(cell for cell in cells if cell.name == "cyclip_unsup-first_seed1")
    assert cell.levels == {"objective": "CyCLIP", "language": "unsup first"} and cell.seed == 1
    assert cell.phase2 == {"dataset": ["data/pairs.jsonl"], "objective": "cyclip", "seed": 1}  # text comes from phase 1
    name, options = cell.phase1
    assert name == "unsup-first_seed1"  # CLIP's cell has the same
    assert options == {
        "text_config": {"model_type": "bert"},
        "tokenizer": str(tmp_path / "out" / "tokenizer"),
        "max_steps": 3,
        "sentences": "data/wiki.txt",
        "seed": 1,
    }


def test_cells_without_phase_1_keep_the_text_tower_of_phase_2(tmp_path):
    cells = {cell.name: cell for cell in read(tmp_path).cells}
    assert cells["clip_none_seed0"].phase1 is None
    assert cells["clip_none_seed0"].phase2["text_config"] == {"model_type": "bert"}
    assert cells["clip_unsup-joint_seed0"].phase2["sentences"] == "data/wiki.txt"


def test_variables_are_filled_in_everywhere(tmp_path):
    cell = read(tmp_path, data="/elsewhere").cells[0]
    assert cell.phase2["dataset"] == ["/elsewhere/pairs.jsonl"] and cell.evaluation["sts_data"] == "/elsewhere/sts"


def test_a_question_for_each_level_that_is_compared(tmp_path):
    questions = read(tmp_path).questions
    assert [(question.before, question.after) for question in questions] == [
        ("none", "unsup first"),
        ("none", "unsup joint"),
    ]


def test_baselines_are_made_for_each_seed_or_named(tmp_path):
    words = {"kind": "random_word_vectors", "tokenizer": "{data}/bert"}
    published = {"model": "{data}/clip", "evaluation": {"tasks": "retrieval"}}
    study = read(tmp_path, {"baselines": {"random words": words, "published": published}})
    assert [(one.name, one.seed, one.evaluation["tasks"]) for one in study.baselines] == [
        ("random words", 0, "sts"),
        ("random words", 1, "sts"),
        ("published", None, "retrieval"),
    ]
    assert study.baselines[1].model == str(tmp_path / "out" / "baselines" / "random-words_seed1")
    made = {"kind": "random_word_vectors", "tokenizer": "data/bert", "seed": 1}
    assert study.prepare["baselines/random-words_seed1"] == made
    one_seed = read(tmp_path, {"baselines": {"random words": words | {"seeds": [7]}}})
    assert [one.seed for one in one_seed.baselines] == [7]
    assert one_seed.prepare["baselines/random-words_seed7"] == made | {"seed": 7}
    with pytest.raises(ValueError, match=r"the baseline 'b' of .* has an unknown key 'seeds'"):
        read(tmp_path, {"baselines": {"b": {"model": "bert", "seeds": [0]}}})
    for entry in ({}, {"kind": "x", "model": "y"}, "bert"):
        with pytest.raises(ValueError, match=r"the baseline 'b' of .* must have either a kind or a model"):
            read(tmp_path, {"baselines": {"b": entry}})
    with pytest.raises(ValueError, match="cannot be measured"):
        read(tmp_path, {"baselines": {"b": {"model": "bert"}}, "evaluation": {"tasks": "retrieval"}})


def test_a_claim_is_the_papers_only_by_its_source(tmp_path):
    (asked,) = RECIPE["questions"]
    sources = ("Zhao et al. 2024, abstract", "Goel et al. 2022", None)
    questions = [asked | {"source": source, "compare": {"language": ["none", "unsup first"]}} for source in sources]
    study = read(tmp_path, {"questions": questions, "paper": "Zhao et al. 2024"})
    assert [question.of_paper for question in study.questions] == [True, False, False]
    assert not any(question.of_paper for question in read(tmp_path, {"questions": questions}).questions)


def test_options_of_another_recipe(tmp_path):
    (tmp_path / "pairs.yaml").write_text("dataset: [cc3m]\nbatch_size: 128\n", encoding="utf-8")
    cell = read(tmp_path, {"phase2": {"recipe": "pairs.yaml", "batch_size": 16}}).cells[0]
    assert cell.phase2 == {"dataset": ["cc3m"], "batch_size": 16, "seed": 0}
    with pytest.raises(ValueError, match=r"no recipe at .*nowhere\.yaml"):
        read(tmp_path, {"phase2": {"recipe": "nowhere.yaml"}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"phase2": {"datset": []}}, "unknown key 'datset': did you mean 'dataset'"),
        ({"axes": {"language": {"none": {"phase3": {}}}}}, "unknown key 'phase3'"),
        ({"axes": {"language": {"none": {"phase1": {"objective": "clip"}}}}}, "unknown key 'objective'"),
        ({"seed": [1]}, "unknown key 'seed': did you mean 'seeds'"),
        (
            {"evaluation": {"sts_data": "{folder}/sts"}},
            "no variable .folder.: known are data, language, objective, seed, study",
        ),
        ({"questions": [RECIPE["questions"][0] | {"compare": {"language": ["non", "unsup first"]}}]}, "mean 'none'"),
        ({"questions": [RECIPE["questions"][0] | {"where": {"objectiv": "CLIP"}}]}, "mean 'objective'"),
        ({"questions": [RECIPE["questions"][0] | {"metrics": {"sts.average": "up"}}]}, "unknown key 'up'"),
        ({"questions": [{"claim": "x", "compare": {"language": ["none", "unsup first"]}}]}, "has no metrics"),
        ({"questions": [RECIPE["questions"][0] | {"compare": ["none"]}]}, r"compare is \{axis: \[level, level\]\}"),
        ({"questions": [RECIPE["questions"][0] | {"interaction": {"language": ["none"]}}]}, "interaction is"),
        ({"columns": None}, "has no columns"),
        (
            {"axes": {"cyclic": {False: {}, True: {}}}, "questions": []},
            "put yes, no, on, off, true and false in quotes",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, changes)


def test_an_empty_recipe(tmp_path):
    (tmp_path / "study.yaml").write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="must be a mapping with title, axes, columns"):
        Study.read(tmp_path / "study.yaml", tmp_path)


def test_levels_and_variables_may_be_numbers(tmp_path):
    changes = {
        "variables": {"data": 7},
        "axes": {"size": {100: {}, 200: {}}, "kind": {"a": {}, "b": {}}},
        "questions": [
            {
                "claim": "More is better",
                "compare": {"size": [100, [200]]},
                "metrics": {"sts.average": "higher"},
                "where": {"size": 200},
                "interaction": {"size": [100, 200]},
            }
        ],
    }
    study = read(tmp_path, changes)
    (question,) = study.questions
    assert (question.before, question.after, question.where) == ("100", "200", {"size": "200"})
    assert {cell.levels["size"] for cell in study.cells} == {"100", "200"}
    assert study.cells[0].evaluation["sts_data"] == "7/sts"


def test_unknown_variable_on_the_command_line(tmp_path):
    with pytest.raises(ValueError, match="--set has an unknown key 'dta': did you mean 'data'"):
        read(tmp_path, dta="x")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("study_*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_this_repository(path):
    study = Study.read(path, Path("outputs/study"))
    names = [cell.name for cell in study.cells]
    assert len(set(names)) == len(names) and study.questions
    measured = {task for cell in study.cells for task in cell.evaluation["tasks"].split(",")}
    asked = {metric.split(".")[0] for question in study.questions for metric in question.metrics}
    assert {metric.split(".")[0] for metric in study.columns.values()} | asked <= measured
    kinds = {study.prepare[name]["kind"] for name in study.prepare if name.startswith("baselines/")}
    assert kinds == {"random_word_vectors", "untrained_tower"}
    of_paper = [question.of_paper for question in study.questions]
    assert of_paper == [question.source.startswith("Zhao et al. 2024") for question in study.questions]


@pytest.mark.parametrize("path", sorted(RECIPES.glob("study_*.yaml")), ids=lambda path: path.stem)
def test_the_scripts_take_the_options_of_the_recipes(path, tmp_path):
    sentences = with_weights_of(SentenceArguments, SENTENCE_LOSSES)
    common = (TrainingArguments, ValidationArguments, TextModelArguments)
    pairs = (*common, PairArguments, with_weights_of(ContrastiveArguments, LOSSES), sentences, LoraArguments)
    study, options = Study.read(path, Path("outputs/study")), tmp_path / "job.yaml"
    jobs = [job for job in jobs_of(study.cells, Path("outputs/study")) if job.trains]
    for job in (job for job in jobs if job.options["seed"] == study.cells[0].seed):
        options.write_text(yaml.safe_dump(dict(job.options)), encoding="utf-8")
        if job.script == "train_contrastive.py":
            parse_arguments(pairs, None, ["--recipe", str(options)], check_phase_2)
        else:
            parse_arguments((*common, sentences, LoraArguments), None, ["--recipe", str(options)], check_phase_1)


@pytest.mark.parametrize("name", ["vision", "vision_small", "audio", "audio_small"])
def test_arms_read_as_many_sentences_first_as_jointly(name):
    study = Study.read(RECIPES / f"study_{name}.yaml", Path("outputs/study"))
    begun = [cell.phase2 for cell in study.cells if "model" not in cell.phase2]  # and do not go on from other models
    joint = [options for options in begun if {"sentences", "triplets"} & options.keys()]
    numbers = {one["max_steps"] * one["sentence_batch_size"] for one in joint}
    first = {one.phase1[1]["max_steps"] * one.phase1[1]["batch_size"] for one in study.cells if one.phase1}
    assert len(numbers) == 1 and first == numbers


def test_cells_name_those_of_the_grid_that_are_made(tmp_path):
    chosen = [{"objective": "CLIP"}, {"objective": ["CyCLIP"], "language": "none"}]
    names = [cell.name for cell in read(tmp_path, {"cells": chosen, "seeds": [0]}).cells]
    assert names == ["clip_none_seed0", "clip_unsup-first_seed0", "clip_unsup-joint_seed0", "cyclip_none_seed0"]
    with pytest.raises(ValueError, match=r"axis language of .* unknown key 'nome': did you mean 'none'"):
        read(tmp_path, {"cells": [{"language": "nome"}]})
    with pytest.raises(ValueError, match="an entry of cells is"):
        read(tmp_path, {"cells": ["none"]})


def test_a_phase_2_goes_on_with_the_model_of_another_cell(tmp_path):
    source = "{study}/models/{objective}_none_seed{seed}"
    axes = RECIPE["axes"] | {"language": {"none": {}, "trained": {"phase2": {"model": source, "max_steps": 2}}}}
    study = read(tmp_path, {"axes": axes, "questions": []})
    cell = next(cell for cell in study.cells if cell.name == "cyclip_trained_seed1")
    model = str(tmp_path / "out" / "models" / "cyclip_none_seed1")
    # Without the options of a new model, which --model does not go with.
    assert cell.phase2 == {
        **{"dataset": ["data/pairs.jsonl"], "objective": "cyclip", "seed": 1, "model": model, "max_steps": 2}
    }
    jobs = jobs_of(study.cells, tmp_path / "out")
    trained = next(job for job in jobs if job.folder.name == "cyclip_trained_seed1" and job.trains)
    assert trained.inputs == {model} and Path(model) in {job.folder for job in jobs}


def test_a_model_of_phase_1_is_evaluated_as_a_finished_one(tmp_path):
    model = "{study}/phase1/unsup-first_seed{seed}"
    axes = RECIPE["axes"] | {"language": RECIPE["axes"]["language"] | {"unsup, phase 1": {"model": model}}}
    study = read(tmp_path, {"axes": axes})
    cell = next(cell for cell in study.cells if cell.name == "clip_unsup-phase-1_seed1")
    assert cell.model == str(tmp_path / "out" / "phase1" / "unsup-first_seed1")
    jobs = [job for job in jobs_of(study.cells, tmp_path / "out") if cell.model in job.inputs]
    assert {job.script for job in jobs} == {"train_contrastive.py", "evaluate_model.py"}

"""Every full-size recipe can be estimated on any machine, without its data and its weights."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from xmodal_hf.data.bad_items import TooManyBadItemsError
from xmodal_hf.data.errors import BadItemError

WORKER = Path(__file__).with_name("processes_worker.py")
RECIPES = Path(__file__).parents[2] / "training_scripts" / "recipes"
FULL_SIZE = sorted(path for path in RECIPES.glob("*.yaml") if not path.name.startswith(("demo", "study")))


def script_of(recipe):
    return "train_contrastive.py" if "\ndataset:" in recipe.read_text("utf-8") else "train_sentence_embedding.py"


# Those that the test knows numbers of; it takes them as they are.
WHOLE = ("cc3m_clip", "simcse_unsup_bert_base")
# Of full-size towers one item is enough, of which a step takes seconds: the tests of small towers take more.
ONE_ITEM = """
import runpy
import xmodal_hf.training.building as building, xmodal_hf.training.dry_run as dry_run
dry_run.DRY_RUN_ITEMS = 1
"""
# Most of the time of a full-size tower goes into making and updating a hundred million numbers, for every recipe anew.
FEW_LAYERS = """
whole = building.config_from_json
def few_layers(kind, text, **known):
    config = whole(kind, text, **known)
    if hasattr(config, "depths"):
        config.depths = [1] * len(config.depths)
    elif config.num_hidden_layers > 6:
        config.num_hidden_layers = 2
    if kind == "text":
        config.vocab_size = known["vocab_size"]  # of the made-up texts
    return config
building.config_from_json = few_layers
"""
RUN = f"runpy.run_path({str(WORKER)!r})"


def estimate(interpreters, cases, path, program=(WORKER,)):
    """Run scripts offline in one process; return what each prints."""
    path.write_text(json.dumps([[str(option) for option in (*case, "--dry_run")] for case in cases]), encoding="utf-8")
    done = interpreters.run([*program, path], folder=path.parent, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return re.split(r"^(?=parameters)", done.stdout, flags=re.MULTILINE)[1:]


def numbers(report, line):
    """The numbers of a line of the report."""
    found = re.search(rf"^{line} .*$", report, flags=re.MULTILINE)
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\.?\d*", found[0])]


@pytest.mark.slow
def test_every_full_size_recipe(interpreters, tmp_path):
    """Two with their full-size towers, the others with fewer layers, which no recipe's other options depend on."""
    assert len(FULL_SIZE) >= 12
    reports = {}
    for is_whole, program in ((True, ONE_ITEM + RUN), (False, ONE_ITEM + FEW_LAYERS + RUN)):
        recipes = [recipe for recipe in FULL_SIZE if (recipe.stem in WHOLE) == is_whole]
        cases = [(script_of(recipe), "--recipe", recipe) for recipe in recipes]
        printed = estimate(interpreters, cases, tmp_path / "cases.json", ["-c", program])
        reports |= dict(zip((path.stem for path in recipes), printed, strict=True))
    assert len(reports) == len(FULL_SIZE)
    assert not any((tmp_path / "outputs").glob("*"))  # a dry run writes nothing
    for report in reports.values():
        for line in ("parameters", "steps", "operations", "rate", "time"):
            assert all(value >= 0 for value in numbers(report, line)) and numbers(report, line)[0] > 0, report
        assert "stand in" in report
    # 10^6 sentences in batches of 64; 2.6 million pairs in batches of 128, 64 times.
    assert numbers(reports["simcse_unsup_bert_base"], "steps") == [15_625, 64]
    assert numbers(reports["cc3m_clip"], "steps") == [64 * (2_600_000 // 128), 128]
    # BERT-base without its pooler has 108,891,648 parameters; SimCSE's head is a layer as large as that pooler.
    assert numbers(reports["simcse_unsup_bert_base"], "parameters")[0] == 108_891_648 + 768 * 769


def test_sentences_of_a_joint_run_are_estimated_in_proportion(interpreters, tiny_options, sentence_file, tmp_path):
    case = ["train_contrastive.py", *tiny_options, "--sentences", "nowhere.txt", "--batch_size", 64]
    same, given, more = estimate(
        interpreters,
        [case, [*case, "--sentence_batch_size", 64], [*case, "--sentence_batch_size", 6400]],
        tmp_path / "cases.json",
    )
    assert numbers(same, "memory") == numbers(given, "memory")
    assert numbers(more, "memory")[2] > 10 * numbers(same, "memory")[2]  # of activations


def test_data_at_hand_is_used(interpreters, tiny_options, sentence_file, tmp_path):
    case = ["train_contrastive.py", *tiny_options, "--sentences", sentence_file, "--batch_size", 16, "--num_epochs", 3]
    (report,) = estimate(interpreters, [[*case, "--micro_batch_size", 8, "--freeze", "image"]], tmp_path / "cases.json")
    assert "stand" not in report and numbers(report, "steps") == [9, 16]  # 48 pictures
    total, trained = numbers(report, "parameters")
    assert 0 < trained < total
    assert "activations of 8 items" in report


def estimate_here(*options):
    """Run the script's `main` in this process with --dry_run."""
    sys.path.insert(0, str(RECIPES.parent))
    try:
        train_contrastive = importlib.import_module("train_contrastive")
    finally:
        sys.path.pop(0)
    train_contrastive.main([*map(str, options), "--dry_run"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--text_column", "capton"), "There is no column 'capton'"),
        (("--split", "validation"), "has no split 'validation'"),
        (("--id_column", "ids"), "There is no column 'ids'"),
    ],
)
def test_options_that_do_not_fit_the_data_are_errors(tiny_options, options, message):
    with pytest.raises(ValueError, match=message):
        estimate_here(*tiny_options, "--batch_size", 16, *options)


def with_missing_files(image_rows, folder, num_missing):
    """A table of the pictures, of which the first rows name files that are not there."""
    rows = [json.loads(line) for line in image_rows.read_text("utf-8").splitlines()]
    names = [
        f"nowhere{n}.png" if n < num_missing else str(image_rows.with_name(r["image"])) for n, r in enumerate(rows)
    ]
    lines = [json.dumps(row | {"image": name}) for row, name in zip(rows, names, strict=True)]
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_bad_items_are_treated_as_the_run_would(tiny_options, image_rows, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    case = [*tiny_options, "--dataset", with_missing_files(image_rows, tmp_path, 40), "--batch_size", 16]
    with pytest.raises(TooManyBadItemsError, match="missing file"):
        estimate_here(*case)
    with pytest.raises(BadItemError, match="missing file"):
        estimate_here(*case, "--on_bad_item", "error")
    estimate_here(*case, "--max_bad_fraction", 1)
    assert "the run will skip" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pairs.jsonl"]  # nothing is written

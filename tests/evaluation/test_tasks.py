"""`TASKS` is the one place of a task: an entry makes it a choice, a row of comparisons and a part of cards."""

import subprocess
import sys

import pytest

from xmodal_hf.evaluation import TASKS, Outcome, Task
from xmodal_hf.evaluation.arguments import EvaluationArguments, EvaluationDataArguments, check_tasks, task_names
from xmodal_hf.evaluation.suite import comparison_table, run_suite
from xmodal_hf.evaluation.tasks import better_side
from xmodal_hf.hub.card_results import model_index, result_tables


@pytest.fixture
def lengths(monkeypatch):
    """A task that measures how many characters the prompts of its caller have."""

    def load(context):
        texts = ["a", "abc", "abcde"]
        protocol = {"protocol": f"seed {context.arguments.seed}", "dataset": "letters"}
        return lambda: Outcome({"mean_length": sum(map(len, texts)) / len(texts), "num_texts": len(texts)}, protocol)

    task = Task(load, "Lengths of texts", "length", ("mean_length",), "sts_data", lower_is_better=("length",))
    monkeypatch.setitem(TASKS, "lengths", task)


@pytest.mark.parametrize("name", TASKS)
def test_every_entry_is_whole(name):
    task = TASKS[name]
    assert callable(task.loader()) and task.title and task.index_type and task.headlines
    assert task.needs is None or hasattr(EvaluationDataArguments, task.needs)


def test_the_dictionary_costs_no_torch():
    code = "import sys; from xmodal_hf.evaluation import TASKS; assert TASKS; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "bank", "message"),
    [
        ({"tasks": "sts", "retrieval_scores": ["csls"]}, None, "csls needs the task retrieval"),
        ({"tasks": "retrieval"}, "bank.txt", "--query_bank is for --retrieval_scores csls or querybank"),
    ],
)
def test_scores_and_banks_that_nothing_would_use(options, bank, message, tmp_path):
    data = EvaluationDataArguments(sts_data=str(tmp_path), pairs="openmoji", query_bank=bank)
    with pytest.raises(ValueError, match=message):
        check_tasks(EvaluationArguments(model="m", **options), data)


def test_data_that_no_task_reads_are_named(tmp_path, caplog):
    data = EvaluationDataArguments(sts_data=str(tmp_path), pairs="openmoji", zero_shot_data="classes.zip")
    check_tasks(EvaluationArguments(model="m", tasks="sts"), data)
    assert [record.getMessage() for record in caplog.records] == [
        "--pairs is read by no task of --tasks: add retrieval or representation.",
        "--zero_shot_data is read by no task of --tasks: add zero_shot.",
    ]
    caplog.clear()
    check_tasks(EvaluationArguments(model="m", tasks="sts,representation,zero_shot"), data)
    assert not caplog.records
    # As a study goes on with the tasks that are left.
    (tmp_path / "results.json").write_text('{"retrieval": {}, "zero_shot": {}, "meta": {}}', encoding="utf-8")
    check_tasks(EvaluationArguments(model="m", tasks="sts", output_dir=str(tmp_path)), data)
    assert not caplog.records


def test_an_added_task_runs_and_is_shown(lengths, tmp_path):
    arguments = EvaluationArguments(model="m", tasks="lengths", seed=3)
    assert task_names(arguments) == ["lengths"]
    with pytest.raises(ValueError, match="the task lengths needs --sts_data"):
        check_tasks(arguments, EvaluationDataArguments())
    data = EvaluationDataArguments(sts_data=str(tmp_path))
    check_tasks(arguments, data)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights.safetensors").write_bytes(b"0")
    arguments.model = str(tmp_path / "m")
    ((results, resamples, draw),) = run_suite(None, arguments, data)
    assert results["lengths"] == {"mean_length": 3.0, "num_texts": 3} and resamples == {} and draw() == {}
    meta = results["meta"]["tasks"]["lengths"]
    assert (meta["protocol"], meta["dataset"], meta["seed"]) == ("seed 3", "letters", 3)
    assert "| lengths: mean_length | 3.00 | 3.00 |" in comparison_table({"before": results, "after": results})
    (entry,) = model_index(results)
    assert (entry.task_type, entry.task_name, entry.metric_value) == ("length", "Lengths of texts", 3.0)
    assert [table.title for table in result_tables(results)] == ["Lengths of texts"]
    assert better_side("lengths.mean_length") == "lower"


def test_cards_show_tasks_that_another_program_added():
    results = {"word_order": {"accuracy": 50.0}, "meta": {}}
    (entry,) = model_index(results)
    assert (entry.task_type, entry.task_name) == ("word-order", "Word order")


@pytest.mark.parametrize(
    ("metric", "side"),
    [
        ("retrieval.text_to_image_recall@10", "higher"),
        ("retrieval.text_to_image_median_rank", "lower"),
        ("retrieval.num_items", None),
        ("representation.alignment", "lower"),
        ("representation.text_uniformity", "lower"),
        ("representation.modality_gap", None),
        ("sts_dev.spearman", "higher"),
        ("representation_before.alignment", "lower"),
    ],
)
def test_better_sides(metric, side):
    assert better_side(metric) == side

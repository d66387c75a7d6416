"""The jobs of a study: order, resumption, failures; small stand-ins write what the real scripts do."""

import json
import shutil
import textwrap
from pathlib import Path

import pytest

from xmodal_hf.study.grid import Baseline, Cell
from xmodal_hf.study.jobs import Job, changed_data, jobs_of, run_jobs, seconds_in_all, seconds_of

TRAINING = """
    import json, os, sys, time, yaml
    from pathlib import Path
    options = yaml.safe_load(open(sys.argv[sys.argv.index("--recipe") + 1]))
    folder = Path(options["output_dir"])
    with open(folder / "calls", "a") as calls:
        calls.write(" ".join(sys.argv[1:]) + "\\n")
    names = ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT")
    (folder / "threads").write_text(" ".join(os.environ.get(name, "all") for name in names))
    if "meets" in options:  # ends only if the others run at the same time
        deadline = time.monotonic() + 60
        while not all(Path(other, "calls").exists() for other in options["meets"]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    if options.get("objective") == "siglip":
        sys.exit("no such luck")
    if "text_model" in options:
        assert (Path(options["text_model"]) / "run.json").is_file()
    (folder / "run.json").write_text(json.dumps({"steps": 3}))
"""
EVALUATION = """
    import json, sys, yaml
    from pathlib import Path
    options = yaml.safe_load(open(sys.argv[sys.argv.index("--recipe") + 1]))
    assert (Path(options["model"]) / "run.json").is_file()
    folder = Path(options["output_dir"])
    tasks = sys.argv[sys.argv.index("--tasks") + 1]
    with open(folder / "calls", "a") as calls:
        calls.write(tasks + "\\n")
    path = folder / "results.json"
    earlier = json.loads(path.read_text()) if path.exists() else {"meta": {}}
    path.write_text(json.dumps(earlier | {task: {"average": 1.0} for task in tasks.split(",")}))
"""


@pytest.fixture
def scripts(tmp_path):
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name in ("train_sentence_embedding.py", "train_contrastive.py"):
        (folder / name).write_text(textwrap.dedent(TRAINING))
    (folder / "evaluate_model.py").write_text(textwrap.dedent(EVALUATION))
    return folder


def cell(objective, phase1=True):
    return Cell(
        name=objective,
        levels={"objective": objective},
        seed=0,
        phase1=("unsup", {"sentences": "wiki.txt"}) if phase1 else None,
        phase2={"objective": objective},
        model=None,
        evaluation={"tasks": "retrieval"},  # which a model of phase 1 does not take part in
    )


def calls(job):
    path = job.folder / "calls"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_shared_phase_1_runs_once_and_first(tmp_path, scripts):
    jobs = jobs_of([cell("clip"), cell("cyclip")], tmp_path / "study")
    assert [job.folder.name for job in jobs] == ["unsup", "clip", "clip", "cyclip", "cyclip"]
    assert jobs[1].options["text_model"] == str(jobs[0].folder)
    assert run_jobs(jobs, scripts) == {}
    assert [calls(job) for job in jobs] == [1] * 5 and all(seconds_of(job) > 0 for job in jobs)
    assert "--resume auto" in (jobs[0].folder / "calls").read_text()


def test_what_is_done_is_kept(tmp_path, scripts):
    jobs = jobs_of([cell("clip")], tmp_path / "study")
    run_jobs(jobs, scripts)
    (jobs[1].folder / "run.json").write_text(json.dumps({"command": "killed before its end"}))
    run_jobs(jobs, scripts)
    assert [calls(job) for job in jobs] == [1, 2, 1]


def test_only_missing_tasks_are_evaluated(tmp_path, scripts):
    run_jobs(jobs_of([cell("clip")], tmp_path / "study"), scripts)
    more = Cell(**{**vars(cell("clip")), "evaluation": {"tasks": "retrieval, zero_shot,representation"}})
    jobs = jobs_of([more], tmp_path / "study")
    assert [job.is_done() for job in jobs] == [True, True, False]
    (jobs[2].folder / "results.json").write_text(json.dumps({"retrieval": {}, "zero_shot": {}, "meta": {}}))
    assert not jobs[2].is_done()
    run_jobs(jobs, scripts)
    assert jobs[2].is_done() and (jobs[2].folder / "calls").read_text().splitlines() == ["retrieval", "representation"]


def test_the_tasks_of_an_evaluation_that_names_none_are_those_of_the_script(tmp_path, scripts):
    for evaluation in ({}, {"tasks": "sts,"}):
        plain = Cell(**{**vars(cell("clip")), "evaluation": evaluation})
        job = jobs_of([plain], tmp_path / "study")[-1]
        assert job.open_tasks() == ["sts"]


def test_what_a_killed_study_left_finished_is_done(tmp_path, scripts):
    jobs = jobs_of([cell("clip")], tmp_path / "study")
    run_jobs(jobs, scripts)
    (jobs[1].folder / "times.log").unlink()
    assert all(job.is_done() for job in jobs) and seconds_of(jobs[1]) == 0
    (jobs[2].folder / "results.json").write_text('{"sts": {"average"')
    with pytest.raises(ValueError, match=r"evaluations.clip.results\.json is damaged .*remove it"):
        jobs[2].is_done()


def test_a_job_that_cannot_be_started_is_a_failed_one(tmp_path, scripts):
    jobs = jobs_of([cell("clip"), cell("cyclip")], tmp_path / "study")
    (jobs[1].folder / "job.yaml").mkdir(parents=True)
    failed = run_jobs(jobs, scripts)
    assert list(failed) == [str(jobs[1].folder), str(jobs[2].folder)] and jobs[4].is_done()
    assert "IsADirectoryError" in failed[str(jobs[1].folder)]


def test_a_failure_stops_only_what_needs_it(tmp_path, scripts, capsys):
    jobs = jobs_of([cell("siglip"), cell("clip")], tmp_path / "study")
    failed = run_jobs(jobs, scripts)
    assert list(failed) == [str(jobs[1].folder), str(jobs[2].folder)]
    assert failed[str(jobs[2].folder)] == f"needs {jobs[1].folder}"
    assert "no such luck" in capsys.readouterr().out
    assert jobs[4].is_done() and calls(jobs[2]) == 0


def test_jobs_at_once_wait_only_for_what_they_need(tmp_path, scripts, monkeypatch):
    for name in ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    study = tmp_path / "study"
    cells = [cell("clip"), cell("siglip", phase1=False), cell("cyclip")]
    jobs = jobs_of(cells, study)
    meeting = [str(study / "phase1" / "unsup"), str(study / "models" / "siglip")]
    jobs = [Job(job.script, job.folder, {**job.options, "meets": meeting}) if job.trains else job for job in jobs]
    failed = run_jobs(jobs, scripts, at_once=2)
    assert sorted(failed) == [str(study / "evaluations" / "siglip"), meeting[1]]
    assert all(job.is_done() for job in jobs if str(job.folder) not in failed)
    assert (jobs[0].folder / "threads").read_text() == "2 2"


def test_threads_are_the_users(tmp_path, scripts, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "5")
    jobs = jobs_of([cell("clip")], tmp_path)
    run_jobs(jobs, scripts, at_once=2)
    assert (jobs[0].folder / "threads").read_text() == "7 5"


def test_time_in_all_counts_jobs_at_the_same_time_once(tmp_path):
    times = {"a": "0 10\n30 35\n", "b": "5 12\n", "c": "6 7\n"}
    jobs = [Job("evaluate_model.py", tmp_path / name, {}) for name in times]
    for job in jobs:
        job.folder.mkdir()
        (job.folder / "times.log").write_text(times[job.folder.name])
    assert [seconds_of(job) for job in jobs] == [15, 7, 1]
    assert seconds_in_all(jobs) == 17


def test_other_options_than_before_are_refused(tmp_path, scripts):
    run_jobs(jobs_of([cell("clip")], tmp_path / "study"), scripts)
    changed = Cell(**{**vars(cell("clip")), "phase2": {"objective": "clip", "batch_size": 7}})
    with pytest.raises(ValueError, match="made with other options"):
        [job.is_done() for job in jobs_of([changed], tmp_path / "study")]


def test_what_was_made_from_other_options_is_refused(tmp_path, scripts):
    """The message about a phase 1 with new options says to remove it: its models were made from what was removed."""
    study = tmp_path / "study"
    bert = {"bert": {"kind": "language_model", "steps": 100}}
    options = {"text_model": str(study / "bert"), "tokenizer": "elsewhere/tokenizer"}

    def jobs_with(max_steps=3, preparations=bert):
        phase1 = ("unsup", {**options, "max_steps": max_steps})
        return jobs_of([Cell(**{**vars(cell("clip")), "phase1": phase1})], study, preparations=preparations)

    (study / "bert").mkdir(parents=True)
    (study / "bert" / "run.json").touch()
    assert run_jobs(jobs_with(), scripts) == {} and all(job.is_done() for job in jobs_with())
    assert [sorted(Path(one).name for one in job.made_from) for job in jobs_with()] == [["bert"], ["unsup"], ["clip"]]
    shutil.rmtree(study / "phase1" / "unsup")
    phase1, *models = jobs_with(max_steps=4)
    assert not phase1.is_done()
    for job in models:  # the evaluation too, which reads the model
        with pytest.raises(ValueError, match=r"has been made from .* when that had other options.*remove both"):
            job.is_done()
    assert [job.is_done() for job in jobs_with()] == [False, True, True]
    for job in jobs_with(preparations={"bert": bert["bert"] | {"steps": 200}})[1:]:
        with pytest.raises(ValueError, match="has been made from"):
            job.is_done()
    for job in models:  # as studies of earlier versions left them
        (job.folder / "made_from.json").unlink()
    assert [job.is_done() for job in jobs_with(max_steps=4)] == [False, True, True]


def test_data_that_changed_since_are_known(tmp_path, scripts):
    sentences, tables = tmp_path / "wiki.txt", tmp_path / "sts"
    tables.mkdir()
    (tables / "stsb.csv").write_text("a")
    sentences.write_text("one")
    options = {"sentences": str(sentences), "exclude_texts": [str(tables)], "dataset": ["openmoji"]}
    cells = [Cell(**{**vars(cell("clip")), "phase1": ("unsup", options)})]
    jobs = jobs_of(cells, tmp_path / "study")
    run_jobs(jobs, scripts)
    assert changed_data(jobs) == {} and set(jobs[0].data()) == {str(sentences), str(tables)}
    sentences.touch()
    assert changed_data(jobs) == {}  # its content is the same
    sentences.write_text("two")
    (tables / "stsb.csv").write_text("b")
    assert changed_data(jobs) == {str(sentences): [jobs[0].folder], str(tables): [jobs[0].folder]}
    sentences.unlink()  # a report can be written without the data
    assert list(changed_data(jobs)) == [str(tables)]


def test_a_model_that_goes_on_from_itself_is_refused(tmp_path):
    """Its job would wait for itself without end."""
    own = {"model": str(tmp_path / "models" / "clip")}
    with pytest.raises(ValueError, match="models/clip: the grid has them made from each other, or from themselves"):
        jobs_of([Cell(**{**vars(cell("clip", phase1=False)), "phase2": own})], tmp_path)


def test_a_feature_store_may_lie_in_the_folder_of_a_model(tmp_path):
    """A job makes it where it is not there."""
    store = {"features": str(tmp_path / "models" / "clip" / "features")}
    cells = [Cell(**{**vars(cell(name, phase1=False)), "phase2": store}) for name in ("clip", "cyclip")]
    assert all(not job.made_from for job in jobs_of(cells, tmp_path) if job.trains)


def test_a_job_waits_for_any_tower_of_another(tmp_path):
    other = Cell(**{**vars(cell("cyclip", phase1=False)), "phase2": {"image_model": str(tmp_path / "models" / "clip")}})
    jobs = jobs_of([other, cell("clip", phase1=False)], tmp_path)
    assert jobs[0].inputs == {str(tmp_path / "models" / "clip")}


def test_cells_that_disagree_on_a_phase_1_of_one_name(tmp_path):
    other = Cell(**{**vars(cell("cyclip")), "phase1": ("unsup", {"sentences": "other.txt"})})
    with pytest.raises(ValueError, match="give their levels different names"):
        jobs_of([cell("clip"), other], tmp_path)


def test_a_finished_model_is_only_evaluated(tmp_path):
    finished = Cell(**{**vars(cell("clip", phase1=False)), "model": "sentence-transformers/all-MiniLM-L6-v2"})
    (job,) = jobs_of([finished], tmp_path)
    assert (job.script, job.options["model"]) == ("evaluate_model.py", "sentence-transformers/all-MiniLM-L6-v2")


def test_baselines_and_models_of_phase_1_are_evaluated_in_tasks_of_texts(tmp_path):
    evaluation = {"tasks": "sts, retrieval", "sts_data": "sts", "pairs": "pairs.jsonl", "num_resamples": 10}
    baseline = Baseline("random word vectors", 1, str(tmp_path / "words"), {"tasks": "sts"})
    measured = Cell(**{**vars(cell("clip")), "evaluation": evaluation})
    first, phase1, of_phase1, *_ = jobs_of([measured], tmp_path / "study", [baseline])
    assert first.options["model"] == str(tmp_path / "words")
    assert first.folder.name == "baseline_random-word-vectors_seed1"
    options = {"tasks": "sts", "sts_data": "sts", "num_resamples": 10, "name": "phase1_unsup"}
    assert of_phase1.options == options | {"model": str(phase1.folder), "output_dir": str(of_phase1.folder)}
    of_pairs = jobs_of([cell("clip")], tmp_path / "study")
    assert [job.folder.parent.name for job in of_pairs] == ["phase1", "models", "evaluations"]


def test_a_model_of_phase_1_is_evaluated(tmp_path, scripts):
    measured = Cell(**{**vars(cell("clip")), "evaluation": {"tasks": "sts,retrieval"}})
    jobs = jobs_of([measured], tmp_path / "study")
    assert run_jobs(jobs, scripts) == {}
    assert list(json.loads((jobs[1].folder / "results.json").read_text())) == ["meta", "sts"]


def test_a_model_of_phase_1_that_is_a_cell_is_evaluated_once(tmp_path):
    trained = Cell(**{**vars(cell("clip")), "evaluation": {"tasks": "sts"}})
    of_phase1 = {"name": "alone", "phase1": None, "model": str(tmp_path / "study" / "phase1" / "unsup")}
    jobs = jobs_of([trained, Cell(**{**vars(trained), **of_phase1})], tmp_path / "study")
    assert [job.folder.name for job in jobs] == ["unsup", "clip", "clip", "alone"]

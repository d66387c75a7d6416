"""Errors of a user: one line, exit status 2, and the fix in it."""

import importlib.util
import json
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from datasets import Dataset
from torch._utils import ExceptionWrapper

from xmodal_hf.commands import check_sources, is_user_error, read_yaml, run_command
from xmodal_hf.data.bad_items import TooManyBadItemsError
from xmodal_hf.hub.publish import HubError
from xmodal_hf.options import check_inputs, parse_arguments
from xmodal_hf.training.arguments import TrainingArguments
from xmodal_hf.training.checkpoint import CheckpointError
from xmodal_hf.training.faults import BadStepsError

SCRIPTS = Path(__file__).parents[1] / "training_scripts"
NAMES = sorted(path.name for path in SCRIPTS.glob("*.py"))


@pytest.fixture(scope="session")
def main_of() -> Callable[[str], Callable]:
    """Give the main function of a script, which is imported once."""

    @cache
    def load(name: str) -> Callable:
        specification = importlib.util.spec_from_file_location(f"script_{Path(name).stem}", SCRIPTS / name)
        module = importlib.util.module_from_spec(specification)
        sys.modules[module.__name__] = module  # dataclasses look their module up
        specification.loader.exec_module(module)
        return module.main

    return load


@pytest.fixture
def failed(capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Give `failed(main, *args)`: the one line that a command leaves on standard error, with status 2."""

    def run(main: Callable, *args: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_command(main, [str(arg) for arg in args])
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and ": error: " in error and "Traceback" not in error, error
        return error

    return run


def raising(error: BaseException) -> Callable:
    def main(args: Any) -> None:
        raise error

    return main


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("two\n  lines"), FileNotFoundError("two lines"), ImportError("two lines")),
        *(HubError("two lines"), CheckpointError("two lines"), BadStepsError("two lines")),
        TooManyBadItemsError("two lines"),
    ],
)
def test_an_error_of_the_user_is_one_line(error: Exception, failed: Callable) -> None:
    assert failed(raising(error)).endswith(": error: two lines (--debug shows the traceback)\n")


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader worker (pid 12) is killed by signal: Killed. ",
        "DataLoader worker (pid(s) 12, 13) exited unexpectedly",
        "DataLoader worker is killed by signal: Bus error. ",
    ],
)
def test_a_worker_that_something_has_killed(message: str, failed: Callable) -> None:
    assert f"{message.strip()} The system ends what takes too much memory" in failed(raising(RuntimeError(message)))


@pytest.mark.parametrize("cause", [None, KeyError("another")])
def test_an_error_of_a_worker_has_its_own_words(cause: Exception | None, failed: Callable) -> None:
    """Torch puts the worker's traceback into the message."""

    def worker() -> None:
        raise TooManyBadItemsError("2 items:\n 1 not a file: /x\n 1 empty") from cause

    def main(args: Any) -> None:
        try:
            worker()
        except TooManyBadItemsError:
            wrapped = ExceptionWrapper(where="in DataLoader worker process 1")
        wrapped.reraise()

    assert "error: 2 items: 1 not a file: /x 1 empty (--debug shows the traceback)\n" in failed(main)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_command(raising(ValueError("wrong")), ["--debug"])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "Traceback" in error and error.endswith(": error: wrong\n")


def test_code_of_a_model_is_loaded_by_a_program(failed: Callable) -> None:
    """transformers names an argument of its function, which is no option of most commands."""
    message = "The repository a contains custom code. Please pass the argument `trust_remote_code=True` to allow it."

    printed = failed(raising(ValueError(message)))
    assert message in printed and "evaluate_model.py has this option" in printed and "docs/extend.md" in printed


def test_an_error_without_a_message_names_its_kind(failed: Callable) -> None:
    assert "error: EOFError" in failed(raising(EOFError()))


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyError("x"), TypeError("x"), AssertionError("x")])
def test_an_error_of_the_program_keeps_its_traceback(error: Exception) -> None:
    assert not is_user_error(error)
    with pytest.raises(type(error)) as caught:
        run_command(raising(error), [])
    assert caught.value is error


def test_a_command_that_exits_with_a_message(failed: Callable) -> None:
    assert failed(raising(SystemExit("cannot convert x:\n  why"))).endswith(": error: cannot convert x: why\n")


@pytest.mark.parametrize("status", [0, 1, 130, 143, None])
def test_other_ends_keep_their_status(status: int) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_command(raising(SystemExit(status)), [])
    assert stopped.value.code == status
    with pytest.raises(KeyboardInterrupt):
        run_command(raising(KeyboardInterrupt()), [])


def test_errors_of_libraries_are_known_by_name() -> None:
    """Each name is that of a class which exists: a library that renames one is noticed here."""
    import datasets.exceptions
    import httpx2
    import soundfile
    from safetensors import SafetensorError

    errors = [SafetensorError("x"), httpx2.HTTPError("x"), soundfile.LibsndfileError(1)]
    errors += [datasets.exceptions.DatasetGenerationError("x"), huggingface_hub.errors.StrictDataclassError("x")]
    assert all(is_user_error(error) for error in errors)


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_option_is_named_with_the_nearest(name: str, main_of: Callable, failed: Callable) -> None:
    """Also where required options are missing: the misspelt one may be it."""
    right = {
        "convert_checkpoint.py": "--output_dir",
        "evaluate_model.py": "--pairs_split",
        "export_onnx.py": "--output_dir",
        "extract_features.py": "--dataset",
        "prepare_towers.py": "--output_dir",
        "publish_model.py": "--repo_id",
        "run_demo.py": "--modality",
        "run_study.py": "--recipe",
        "search.py": "--features",
        "train_contrastive.py": "--dataset",
        "train_sentence_embedding.py": "--sentences",
    }[name]
    wrong = right[:4] + right[5:]
    assert f"unknown option {wrong}: did you mean {right}?" in failed(main_of(name), wrong, "x")
    assert f"unknown option {right[:-1]}: did you mean {right}?" in failed(main_of(name), f"{right[:-1]}=x")


def test_every_misspelt_option_is_named(main_of: Callable, failed: Callable) -> None:
    error = failed(main_of("train_contrastive.py"), "--datset", "x", "--learning-rat", "1")
    assert "--datset: did you mean --dataset?" in error and "--learning-rat: did you mean --learning_rate?" in error


def test_values_that_look_like_options(tmp_path: Path) -> None:
    (training,) = parse_arguments((TrainingArguments,), "", ["--learning-rate", "5e-4", "--seed=3"])
    assert (training.learning_rate, training.seed) == (5e-4, 3)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", "line 3, column 2"),
        ("a: 1\nb:\tc: 3\n", "line 2, column 3"),
        ("a: 'x\n", "line 2, column 1"),
        ("a: x\n b: y\n", "line 2, column 3"),
        ("a: &x\nb: *y\n", "line 2, column 4"),
        ("a: 1\nb: \x00\n", "line 2, column 4"),
    ],
)
def test_yaml_errors_give_line_and_column(text: str, place: str, tmp_path: Path, main_of: Callable, failed: Callable):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{place}: "):
        read_yaml(path)
    for name in ("train_contrastive.py", "evaluate_model.py", "run_study.py"):
        assert f"{path}, {place}: " in failed(main_of(name), "--recipe", path)


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml is not text in UTF-8 \(byte 3\)"):
        read_yaml(tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match=r"no recipe at .*recipe\.yml \(did you mean .*recipe\.yaml\?\)"):
        read_yaml(tmp_path / "recipe.yml")


class AskedError(Exception):
    """The Hub was asked."""


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fail when the Hub is asked; start in a folder with outputs/clip, google/ and data.csv."""

    def ask(*arguments: Any, **options: Any) -> None:
        raise AskedError

    monkeypatch.setattr("xmodal_hf.commands._repository_info", ask)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "clip").mkdir(parents=True)
    (tmp_path / "data.csv").write_text("x\n")


@pytest.mark.parametrize(
    "name",
    [
        "outputs/clp",
        "/nowhere/clip",
        "./clip",
        "~/clip",
        "a/b/c",
        "clip.pt",
        "data.cvs/data.csv",
        "clip/",
        "a\\b",
        "a b",
    ],
)
@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_looks_like_a_path_is_not_asked_for(kind: str, name: str, no_hub: None) -> None:
    with pytest.raises(FileNotFoundError, match=r"^--x: there is no file or folder "):
        check_sources([("--x", kind, name)])


def test_the_nearest_path_is_named(no_hub: None) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder outputs/clp \(did you mean outputs/clip\?\)"):
        check_sources([("--text_model", "model", ["outputs/clip", "outputs/clp"])])


def test_a_training_that_has_not_finished_is_no_model(tmp_path: Path) -> None:
    """Its folder has a recipe and the circumstances of the run, and gets a config or an adapter's with the model."""
    folder = tmp_path / "phase1"
    folder.mkdir()
    (folder / "recipe.yaml").write_text("sentences: corpus.txt\n")
    check_sources(
        [("--text_model", "model", str(folder))]
    )  # somebody may keep a recipe beside a model of another format
    (folder / "run.json").write_text("{}\n")
    message = r"--text_model: the training in \S+phase1 has not finished, .* repeat its command with --resume auto"
    with pytest.raises(FileNotFoundError, match=message):
        check_sources([("--text_model", "model", str(folder))])
    for name in ("config.json", "adapter_config.json"):
        (folder / name).write_text("{}")
        check_sources([("--text_model", "model", str(folder))])
        (folder / name).unlink()
    (folder / "recipe.yaml").unlink()
    check_sources([("--text_model", "model", str(folder))])  # a tokenizer alone, or what only its reader can check


def test_what_is_there_or_built_in_or_a_pattern_is_not_asked_for(no_hub: None, tmp_path: Path) -> None:
    (tmp_path / "cache" / "models--bert--base" / "snapshots" / "abc").mkdir(parents=True)
    check_sources([("--x", "model", None), ("--x", "model", []), ("--x", "model", ["outputs/clip", "bert/base"])])
    names = ["openmoji", "soundfont", "data.csv", "shards/{000..012}.tar", "https://x.y/z.tar", "shards/*.tar"]
    check_sources([("--x", "dataset", names)])


def test_an_added_data_set_is_built_in(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one list of data sets with names."""
    from xmodal_hf.data.composition import load_composition
    from xmodal_hf.data.sentences import load_paraphrases, load_sentences
    from xmodal_hf.data.sources import BUILT_IN, load_pairs

    def load(split: str) -> Dataset:
        return Dataset.from_dict(
            {"id": ["1", "2"], "text": [["one", f"{split} one"], ["two", "a two"]], "image": [None, None]}
        )

    with pytest.raises(AskedError):
        check_sources([("--dataset", "dataset", "numbers")])
    monkeypatch.setitem(BUILT_IN, "numbers", load)
    check_sources([("--dataset", "dataset", ["numbers"])])
    assert load_pairs("numbers", split="test")["text"][0] == ["one", "test one"]
    assert load_sentences("numbers")["anchor"][:] == ["one", "train one", "two", "a two"]
    assert len(load_paraphrases("numbers")) == 2
    with pytest.raises(ValueError, match="numbers has no wrong captions; openmoji, soundfont have"):
        load_composition("numbers")
    with pytest.raises(ValueError, match="soundfont is of audio, not of image"):
        load_composition("soundfont")


def test_no_module_lists_the_built_in_data_again() -> None:
    """What is said of a data set in cards, in a Space and of its wrong captions is keyed by names of the list."""
    from xmodal_hf.data.composition import _BUILT_IN_TESTS
    from xmodal_hf.hub import card_training, space
    from xmodal_hf.shipped import BUILT_IN

    said = (_BUILT_IN_TESTS, card_training._BUILT_IN, space._ATTRIBUTIONS, space._QUERIES, space._LABELS)
    assert all(set(known) <= set(BUILT_IN) for known in said)


def test_an_id_is_asked_for_once(no_hub: None) -> None:
    for kind, name in (("model", "google/vit"), ("model", "bert-base"), ("dataset", "owner/name:configuration")):
        with pytest.raises(AskedError):
            check_sources([("--x", kind, name)])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (huggingface_hub.errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE=1 forbids asking the Hub"),
        (huggingface_hub.errors.HTTPError("no route"), r"the Hub did not answer \(HTTPError\)"),
        (ConnectionError("refused"), r"the Hub did not answer \(ConnectionError\)"),
    ],
)
def test_a_hub_that_cannot_be_asked(
    error: Exception, message: str, no_hub: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xmodal_hf.commands._repository_info", lambda *arguments: raising(error)(None))
    with pytest.raises(OSError, match=f"--x: there is neither a file or folder goggle/vit .*{message}"):
        check_sources([("--x", "model", "goggle/vit")])


def test_every_option_that_names_a_source_is_checked(no_hub: None, main_of: Callable, failed: Callable) -> None:
    """Each option of the training scripts whose help speaks of a Hub id."""
    given = {
        "train_sentence_embedding.py": ["--sentences", "openmoji"],
        "train_contrastive.py": ["--dataset", "openmoji"],
    }
    cases = [
        *(("train_sentence_embedding.py", option) for option in ("--text_model", "--tokenizer", "--sentences")),
        *(("train_contrastive.py", option) for option in ("--model", "--image_model", "--audio_model", "--dataset")),
        ("train_sentence_embedding.py", "--triplets"),
    ]
    for script, option in cases:
        others = [] if option in ("--sentences", "--triplets", "--dataset") else given[script]
        others = [*others, *(["--modality", "audio"] if option == "--audio_model" else [])]
        assert f"error: {option}: there is no file or folder outputs/clp" in failed(
            main_of(script), *others, option, "outputs/clp"
        )
    for option in ("--eval_sts", "--eval_dataset"):
        arguments = ["--eval_steps", 1, option, "outputs/clp", *given["train_contrastive.py"]]
        assert f"error: {option}: there is no" in failed(main_of("train_contrastive.py"), *arguments)


def test_a_missing_model_of_the_other_scripts(
    no_hub: None, main_of: Callable, failed: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = failed(main_of("convert_checkpoint.py"), "--model", "outputs/clp", "--output_dir", "x")
    assert "--model: there is no file or folder outputs/clp (did you mean outputs/clip?)" in error
    error = failed(main_of("publish_model.py"), "--checkpoint", "outputs/clp", "--repo_id", "a/b", "--card_only")
    assert "outputs/clp has no config.json" in error
    monkeypatch.setitem(sys.modules, "xmodal_hf.evaluation.suite", None)  # it takes long, and is not imported before
    tasks = ["--tasks", "retrieval", "--pairs"]
    error = failed(main_of("evaluate_model.py"), "--model", "outputs/clp", *tasks, "openmoji")
    assert "--model: there is no file or folder outputs/clp" in error
    assert "--pairs: there is no file" in failed(
        main_of("evaluate_model.py"), "--model", "outputs/clip", *tasks, "pairs.jsnol/"
    )


def test_every_name_in_the_table_of_sources_is_an_option() -> None:
    check_inputs(TrainingArguments())


def test_a_tracker_without_its_package(main_of: Callable, failed: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed, wherever the test runs
    main = main_of("train_contrastive.py")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    error = failed(main, "--dataset", "openmoji", "--report_to", "wandb")
    assert "--report_to wandb needs the package wandb: pip install 'xmodal_hf[wandb]'" in error
    assert "--report_to wandbb is unknown: pass one of aim" in failed(
        main, "--dataset", "openmoji", "--report_to", "wandbb"
    )


def test_a_script_as_a_process(interpreters: Any, tmp_path: Path) -> None:
    """The status of a real process, and nothing but the line."""
    command = [SCRIPTS / "publish_model.py", "--checkpoint", tmp_path, "--repo_id", "a/b"]
    done = interpreters.run(command)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"publish_model.py: error: {tmp_path} has no config.json: pass a folder")
    assert done.stderr.count("\n") == 1
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    done = interpreters.run([*command, "--debug"])
    assert done.returncode == 2 and "Traceback" in done.stderr and "is of model type 'clip'" in done.stderr

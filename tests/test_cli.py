"""The console command: every training script by a short name, and the shipped files by theirs."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from xmodal_hf import __version__, cli
from xmodal_hf.shipped import SCRIPTS, find_recipe, shipped_file, shipped_names

ROOT = Path(__file__).parents[1]
# What takes half a second and more to import.
SLOW_PACKAGES = {"torch", "torchaudio", "transformers", "datasets", "accelerate", "peft", "pandas", "sklearn", "scipy"}
HELP = """
import json, sys
from xmodal_hf.cli import main
shown = {}
for command in json.loads(sys.argv[1]):
    try:
        main([*command, "--help"])
    except SystemExit as stopped:
        assert stopped.code == 0
    shown[" ".join(command)] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps(shown), file=sys.stderr)
"""


def test_every_script_has_a_command() -> None:
    assert SCRIPTS == ROOT / "training_scripts"
    modules = sorted(path.stem for path in SCRIPTS.glob("*.py"))
    assert sorted(script.module for script in cli.SCRIPT_OF.values()) == modules
    documented = {"demo", "train-sentence", "train-contrastive", "extract", "evaluate"}
    assert documented | {"search", "convert", "publish", "study"} <= set(cli.SCRIPT_OF)


def test_help_imports_nothing_that_is_slow() -> None:
    """`--help` of every command answers before torch, transformers and the like are imported."""
    commands = [[], *([name] for name in (*cli.SCRIPT_OF, *cli.FILES_OF))]
    command = [sys.executable, "-c", HELP, json.dumps(commands)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    imported = json.loads(done.stderr.splitlines()[-1])
    slow = {name: SLOW_PACKAGES & set(modules) for name, modules in imported.items()}
    assert len(slow) == len(commands) and not any(slow.values()), slow
    for name in cli.SCRIPT_OF:
        assert f"usage: xmodal-hf {name} " in done.stdout
        assert f"  {name} " in done.stdout  # listed by `xmodal-hf --help`


@pytest.fixture
def run(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Give `run(*args)`: status, standard output and standard error of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["xmodal-hf"])

    def call(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = 0
        try:
            cli.main(args)
        except SystemExit as stopped:
            status = stopped.code or 0
        return (status, *capsys.readouterr())

    return call


def test_a_command_leaves_the_command_line_of_the_process(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("search", "--help")[1].startswith("usage: xmodal-hf search ")
    assert sys.argv == ["xmodal-hf"]


def test_version(run: Callable) -> None:
    assert run("--version") == (0, f"xmodal-hf {__version__}\n", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "xmodal-hf: error: name a command: `xmodal-hf --help` lists them"),
        (("evalate",), "xmodal-hf: error: unknown command 'evalate': did you mean evaluate?"),
        (("--versoin",), "xmodal-hf: error: unknown option --versoin: did you mean --version?"),
        (("search", "--featurs", "x"), "xmodal-hf search: error: unknown option --featurs: did you mean --features?"),
        (
            ("launch-config", "multi_gpus"),
            "no launch configuration has the name 'multi_gpus' (did you mean multi_gpu?)",
        ),
    ],
)
def test_mistakes_are_one_line(args: tuple[str, ...], message: str, run: Callable) -> None:
    status, output, error = run(*args)
    assert (status, output) == (2, "") and message in error and error.count("\n") == 1


@pytest.mark.parametrize("command", cli.SCRIPT_OF)
def test_help_names_commands_and_no_files_of_a_checkout(command: str, run: Callable) -> None:
    status, manual, _ = run(command, "--help")
    modules = "|".join(script.module for script in cli.SCRIPT_OF.values())
    assert status == 0 and not re.search(rf"training_scripts/|\b({modules})\.py", manual)
    module = cli.SCRIPT_OF[command].module
    example = rf"^    (xmodal-hf {command} |accelerate launch -m xmodal_hf\.training_scripts\.{module} --)"
    assert re.search(example, manual, re.MULTILINE)
    assert max(map(len, manual.splitlines())) < 140
    folders = [entry for entry in re.split(r"\n(?=  --)", manual) if entry.startswith("  --output_dir")]
    assert not any("default: none" in entry for entry in folders)


def test_paths_of_shipped_files(run: Callable) -> None:
    path = SCRIPTS / "accelerate_configs" / "multi_gpu.yaml"
    assert run("launch-config", "multi_gpu") == (0, f"{path}\n", "")
    assert "fsdp2\n" in run("launch-config")[1] and "demo_pairs\n" in run("recipe")[1]


def test_shipped_files_are_yaml() -> None:
    names = [*shipped_names("recipe"), *shipped_names("launch configuration")]
    assert len(names) == len(list(SCRIPTS.glob("*/*.yaml"))) > 25
    assert isinstance(yaml.safe_load(shipped_file("recipe", "simcse_unsup_bert_base").read_text()), dict)


def test_recipe_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file comes first; what has a folder or an ending is no name."""
    monkeypatch.chdir(tmp_path)
    assert find_recipe("demo_pairs") == SCRIPTS / "recipes" / "demo_pairs.yaml"
    for path in ("demo_pairs.yaml", "./other/demo_pairs", str(tmp_path / "demo_pairs")):
        assert find_recipe(path) == Path(path)
    (tmp_path / "demo_pairs").write_text("seed: 1\n")
    assert find_recipe("demo_pairs") == Path("demo_pairs")
    with pytest.raises(ValueError, match=r"no recipe has the name 'demo_pears' \(did you mean demo_pairs\?\)"):
        find_recipe("demo_pears")


def test_scripts_are_modules_of_the_package() -> None:
    import xmodal_hf.training_scripts.search as module

    assert Path(module.__file__) == SCRIPTS / "search.py"

"""The documentation: commands parse, imports exist, quoted messages are in the source, and the site has no warnings.

A block of commands or Python says above itself which test runs it (`<!-- tested: FILE -->`), or what it needs that
tests do not have (`<!-- needs: hub -->`, `gpu` or `data`).
"""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xmodal_hf import cli
from xmodal_hf.commands import CommandParser
from xmodal_hf.shipped import SCRIPTS, find_recipe

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", SCRIPTS / "README.md"]
DOCUMENTS = [path for path in DOCUMENTS if "_build" not in path.parts]
# tests/test_extend.py runs every block of that page.
MARKED = [path for path in DOCUMENTS if path.name != "extend.md"]
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (tested|needs): (\S+) -->\n$")
# How a command names one of our scripts.
SCRIPT = re.compile(r"(?:^|/|\.)(\w+?)(?:\.py)?$")
MODULE_OF = {name: script.module for name, script in cli.SCRIPT_OF.items()}


class ParsedError(Exception):
    """The options of a command were read."""


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Return module and options of every command of ours in the blocks of a document."""
    found = []
    for language, block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
            tokens = shlex.split(re.sub(r"\$\([^)]*\)", "x", line), comments=True)
            for position, token in enumerate(tokens):
                if token == "xmodal-hf" and tokens[position + 1] in MODULE_OF:
                    found.append((MODULE_OF[tokens[position + 1]], tokens[position + 2 :]))
                    break
                name = SCRIPT.search(token)
                if name and name[1] in MODULE_OF.values() and ("training_scripts" in token):
                    found.append((name[1], tokens[position + 1 :]))
                    break
    return found


CASES = [
    pytest.param(module, args, id=f"{path.relative_to(ROOT)}:{module}-{number}")
    for path in DOCUMENTS
    for number, (module, args) in enumerate(commands(path.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize(("module", "args"), CASES)
def test_commands_parse(module: str, args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option of each command exists and takes such a value; shipped recipes have the names that are used."""
    if "..." in args or "…" in args:
        args = [arg for arg in args if arg not in ("...", "…")]
    read: Callable[..., Any] = CommandParser.parse_args

    def parse(parser: CommandParser, args: Any = None, namespace: Any = None) -> Any:
        options = read(parser, args, namespace)
        if getattr(options, "recipe", None) is not None and not str(options.recipe).endswith(".yaml"):
            assert find_recipe(options.recipe).is_file()
        raise ParsedError

    monkeypatch.setattr(CommandParser, "parse_args", parse)
    with pytest.raises(ParsedError):
        importlib.import_module(f"xmodal_hf.training_scripts.{module}").main(args)


def test_there_are_commands() -> None:
    assert len(CASES) > 40


@pytest.mark.parametrize("path", MARKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_block_says_what_runs_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        mark = MARK.search(text[: block.start()])
        assert mark, f"no mark above: {block[2][:80]}"
        kind, value = mark.groups()
        assert (ROOT / value).is_file() if kind == "tested" else value in ("hub", "gpu", "data")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_imports_what_exists(path: Path) -> None:
    for language, block in BLOCK.findall(path.read_text(encoding="utf-8")):
        for node in ast.walk(ast.parse(block)) if language == "python" else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xmodal_hf"):
                if node.module == "xmodal_hf.evaluation.mteb":  # an extra
                    continue
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_messages_of_the_troubleshooting_page_are_those_of_the_program() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # texts over several lines
    quoted = re.findall(r"^`([^`]+)`$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quoted) > 10
    missing = [text for text in quoted if text not in sources and text.replace("recipe", "{kind}") not in sources]
    assert not missing


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    """Every page is in a table of contents, every link leads somewhere, every docstring is read."""
    pytest.importorskip("myst_parser", reason="needs the extra docs")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "reference" / "evaluation.html").read_text(encoding="utf-8")
    assert "evaluate_retrieval" in reference

"""The documentation site has no warnings, and its page of messages quotes those of the program."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


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
    # Docstrings: roles, stars of examples, and references as transformers writes them.
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (tmp_path / "reference").glob("*.html"))
    assert not re.search(r":math:|\(\\\*|\[<code|\[``", pages)
    # A picture of a file that a page includes is found where that file has it.
    shown = re.findall(r'<img[^>]* src="([^"]+)"', (tmp_path / "benchmarks.html").read_text(encoding="utf-8"))
    assert any("growth_cpu" in path for path in shown) and all((tmp_path / path).is_file() for path in shown)

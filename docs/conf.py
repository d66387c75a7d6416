"""Settings of the documentation site: Sphinx, MyST's Markdown, the theme furo. `make docs` builds it."""

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

project = "xmodal_hf"
author = "The xmodal_hf authors"
copyright = author
(release,) = re.findall(r'__version__ = "([^"]+)"', (ROOT / "src/xmodal_hf/__init__.py").read_text(encoding="utf-8"))

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "sphinx.ext.viewcode"]
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"xmodal_hf {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_use_index = False
# Tensors are described by their shapes in the docstrings; types stand in the signatures.
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False


# Address of the repository for links to files outside of this folder; without it they are set as plain file names.
_REPOSITORY = os.environ.get("XMODAL_HF_REPOSITORY") or "/".join(
    filter(None, map(os.environ.get, ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY")))
)
_INCLUDED = re.compile(r"^<!-- file: (\S+) -->\n?", re.MULTILINE)
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
# A star that does not begin its line.
_STAR = re.compile(r"(\S[^\S\n]*)\*")
# `code`, and what a role makes of some, such as :math:`x`.
_LITERAL = re.compile(r"(?<!`)((?::\w+:)?`[^`\n]+`)(?!`)")
# What transformers' documentation makes a link: [`SomeClass`] or [`~SomeClass.method`].
_REFERENCE = re.compile(r"\[`~?([^`\n]+)`\]")
_LINK = re.compile(r"(?<!!)\[([^]\[]+)\]\(([^)#\s]+)(#[^)]*)?\)")
_PICTURE = re.compile(r"!\[([^]]*)\]\((?!\w+:)([^)\s]+)\)")


def _insert_files(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the files that a page names into it, and point links to files outside of this folder at the repository."""
    page = place = (ROOT / "docs" / name).parent
    for path in _INCLUDED.findall(source[0]):
        place = (ROOT / path).parent
        source[0] = (ROOT / path).read_text(encoding="utf-8")
    source[0] = _LINK.sub(lambda link: _resolved(link, place, page), source[0])
    source[0] = _PICTURE.sub(lambda shown: f"![{shown[1]}]({os.path.relpath(place / shown[2], page)})", source[0])


def _resolved(link: re.Match[str], place: Path, page: Path) -> str:
    """Return a link of a file that lies in `place`, as the page in the folder `page` says it."""
    text, target, anchor = link.groups()
    if re.match(r"\w+:", target):
        return link[0]
    path = (place / target).resolve()
    if path.suffix == ".md" and path.is_relative_to(ROOT / "docs"):
        return f"[{text}]({os.path.relpath(path, page)}{anchor or ''})"
    path = path.relative_to(ROOT)
    return f"[{text}]({_REPOSITORY}/blob/main/{path})" if _REPOSITORY else text


def _as_restructured_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn the Markdown of a docstring into what Sphinx reads: `code` in single backticks, fenced examples."""
    parts = re.split(r"(^ *```\w*\n.*?^ *```$)", "\n".join(lines), flags=re.MULTILINE | re.DOTALL)
    lines[:] = "".join(_FENCE.sub(_code_block, part) if n % 2 else _text(part) for n, part in enumerate(parts)).split(
        "\n"
    )


def _text(part: str) -> str:
    """Return text as restructuredText; examples, which begin with >>>, stay."""
    return "\n".join(line if line.lstrip().startswith((">>>", "...")) else _line(line) for line in part.split("\n"))


def _line(line: str) -> str:
    """Return a line with literals in double backticks, and stars that are no emphasis."""
    pieces = _LITERAL.split(_REFERENCE.sub(r"`\1`", line))
    for n, piece in enumerate(pieces):
        # A literal that a letter follows needs an invisible end.
        ends_in_word = n + 1 < len(pieces) and re.match(r"\w", pieces[n + 1])
        literal = (piece if piece.startswith(":") else f"`{piece}`") + ("\\ " if ends_in_word else "")
        pieces[n] = literal if n % 2 else _STAR.sub(r"\1\\*", piece)
    return "".join(pieces)


def _code_block(fence: re.Match[str]) -> str:
    space, language, body = fence.groups()
    indented = "".join(f"   {line}\n" if line.strip() else "\n" for line in body.splitlines())
    return f"{space}.. code-block:: {language or 'text'}\n\n{indented}"


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", _insert_files)
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)  # before napoleon

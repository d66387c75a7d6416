"""Markdown from Jinja templates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render_markdown(template: Path, **values: Any) -> str:
    """Return a template filled in, without runs of empty lines.

    Args:
        template: File of the template.
        values: Values of the variables of the template; a missing one is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template(template.name).render(**values)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"

"""Settings of the documentation site: Sphinx, MyST's Markdown, the theme furo. `make docs` builds it."""

import re
import sys
from pathlib import Path

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
# Tensors are described by their shapes in the docstrings; types stand in the signatures.
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False

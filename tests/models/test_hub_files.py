"""Titles of the model cards in folders."""

import pytest

from xmodal_hf.models.hub_files import card_title


@pytest.mark.parametrize(
    ("card", "title"),
    [
        ("# MiniLM\n\n# Usage\n", "MiniLM"),
        ("---\n# licence\nlicense: mit\n---\n\n```sh\n# install\npip install x\n```\n\n# MiniLM\n", "MiniLM"),
        ("Weights alone.\n\n~~~python\n# load them\n~~~\n", None),
        ("```\n# a block without an end\n", None),
        ("# ![logo](logo.png) MiniLM <br>\n", "MiniLM"),
        ("# Model Card for Model ID\n", None),
        ("", None),
    ],
)
def test_a_title_is_a_heading_and_no_comment(card, title, tmp_path):
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert card_title(tmp_path) == title

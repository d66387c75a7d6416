"""The walk of docs/extend.md is run: its Python blocks, in order, in one namespace."""

import re
from pathlib import Path

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_MAPPING

import xmodal_hf
from xmodal_hf.data.annotations import LAYOUTS
from xmodal_hf.data.modalities import MODALITIES
from xmodal_hf.data.sources import BUILT_IN
from xmodal_hf.evaluation import TASKS
from xmodal_hf.losses import LOSSES

PAGE = Path(__file__).parents[1] / "docs" / "extend.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def restored():
    """Take out what the page adds to dictionaries of the package and of transformers."""
    dictionaries = [LOSSES, TASKS, LAYOUTS, BUILT_IN, CONFIG_MAPPING._extra_content, MODEL_MAPPING._extra_content]
    before = [dict(dictionary) for dictionary in dictionaries]
    yield dictionaries
    for dictionary, content in zip(dictionaries, before, strict=True):
        dictionary.clear()
        dictionary.update(content)


def test_the_walk(restored):
    sizes = [len(dictionary) for dictionary in restored]
    namespace = {"__name__": "extend"}
    for block in BLOCKS:
        # The lines of an error are those of the page.
        line = TEXT[: TEXT.index(block)].count("\n")
        exec(compile("\n" * line + block, str(PAGE), "exec"), namespace)
    assert len(BLOCKS) >= 10
    assert [len(dictionary) - size for dictionary, size in zip(restored, sizes, strict=True)] == [1] * len(restored)


def test_the_places_of_a_modality_are_there():
    """The table names files of the package, and names in them."""
    table = TEXT[TEXT.index("| place | what it holds |") :].split("\n\n")[0]
    package = Path(xmodal_hf.__file__).parent
    rows = [row.split("|")[1:3] for row in table.splitlines()[2:]]
    for place, what in rows:
        names = re.findall(r"`([\w/]+\.py)`", place)
        folders = (package, package.parents[1])  # of the package, and of the repository's scripts
        files = [folder / name for name in names for folder in folders if (folder / name).is_file()]
        assert files, place
        source = "\n".join(file.read_text(encoding="utf-8") for file in files)
        assert all(name in source for name in re.findall(r"`(_[A-Z_]+)`", what)), what
    assert len(rows) >= 10


def test_modalities_are_told_apart_only_in_those_places():
    """A file that compares something with the name of a modality is one of those that the page lists."""
    package = Path(xmodal_hf.__file__).parent
    names = "|".join(MODALITIES)
    comparison = re.compile(rf'(==|!=) "({names})"|"({names})" (not )?in ')
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if comparison.search(path.read_text(encoding="utf-8"))
    }
    scripts = package.parents[1] / "training_scripts"
    assert [path.name for path in scripts.glob("*.py") if comparison.search(path.read_text(encoding="utf-8"))] == []
    # Boxes are those of pictures, and the crops of fused CLAP those of sounds: no other modality has them.
    particular = {"data/composition.py", "training/phases.py"}
    listed = set(re.findall(r"`([\w/]+\.py)`", TEXT)) | {"models/modeling_dual_encoder.py"}  # "modeling_" there
    assert found - listed == particular

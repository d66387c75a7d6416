"""Every layout of the table in docs/data_layouts.md is read as its command says, each caption with its own file."""

import importlib.util
import shlex

import pytest
from tests.data.layout_catalogue import (
    DOCUMENT,
    LAYOUTS,
    NUM_ITEMS,
    RATE_HZ,
    document_with_table,
    number_of_picture,
    number_of_sound,
    picture,
    sound,
)

from xmodal_hf.data.audio import load_waveform
from xmodal_hf.data.mixing import undecoded
from xmodal_hf.data.sampling import PairDataset
from xmodal_hf.options import parse_arguments
from xmodal_hf.training.arguments import PairArguments
from xmodal_hf.training.batches import load_pair_table


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.build.__name__)
def test_the_command_of_each_layout_reads_it(layout, tmp_path):
    if layout.peer is not None and importlib.util.find_spec(layout.peer) is None:
        # A peer writes the files of its own layout and is no dependency; `make test-peers` installs it.
        pytest.skip(f"{layout.peer} is not installed (make test-peers)")
    layout.build(tmp_path)
    options = shlex.split(layout.command.replace("FOLDER", str(tmp_path)))[1:]
    (pairs,) = parse_arguments((PairArguments,), "", options)
    table = load_pair_table(pairs)
    assert len(table) == NUM_ITEMS and len(set(table["id"])) == NUM_ITEMS
    rate = {} if layout.modality == "image" else {"sampling_rate": RATE_HZ}
    items = PairDataset(table, seed=0, captions="first", **rate)
    found = set()
    for index, row in enumerate(undecoded(table)):
        media = items[index][layout.modality]
        number = number_of_picture(media) if layout.modality == "image" else number_of_sound(media)
        expected = layout.captions(number)
        texts = row["text"] if isinstance(row["text"], list) else [row["text"]]
        if layout.build.__name__ == "image_folder_lists":
            assert f"item {number}" in row["text"]
        else:
            assert [text.strip() for text in texts] == ([expected] if isinstance(expected, str) else expected)
        found.add(number)
    assert found == set(range(NUM_ITEMS))


def test_the_table_in_the_documentation_is_that_of_the_layouts():
    document = DOCUMENT.read_text(encoding="utf-8")
    assert document == document_with_table(document), "run python tests/data/layout_catalogue.py"


def test_samples_are_told_apart():
    """What the other tests compare differs between items."""
    waveforms = [load_waveform({"bytes": sound(n), "path": None}, RATE_HZ) for n in range(4)]
    assert [number_of_sound(waveform) for waveform in waveforms] == [0, 1, 2, 3]
    assert len({picture(n) for n in range(4)}) == 4

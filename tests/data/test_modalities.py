"""`MODALITIES` says all that is particular to a modality; nothing falls back to another one."""

import re
from pathlib import Path

import pytest
from datasets import Dataset, Features

import xmodal_hf
from xmodal_hf.data.modalities import (
    MODALITIES,
    MODALITY_NAMES,
    cell_feature,
    find_address,
    modality_of_columns,
    modality_of_processor,
)
from xmodal_hf.evaluation import Embedder
from xmodal_hf.training.arguments import ContrastiveArguments, PairArguments


@pytest.mark.parametrize("name", MODALITIES)
def test_every_entry_is_whole(name):
    """Each name and address leads to what it says."""
    spec = MODALITIES[name]
    assert name in MODALITY_NAMES and name in spec.columns
    model, processor = find_address(spec.model_class), find_address(spec.processor_class)
    assert model.config_class.model_type == spec.model_type and model.config_class.modality == name
    assert hasattr(model, f"from_text_{name}_pretrained") and hasattr(model, f"get_{name}_features")
    assert modality_of_processor(processor.__new__(processor)) == name
    assert callable(find_address(spec.decoder)) and hasattr(Embedder, f"encode_{name}")
    Features({name: cell_feature(name)})
    assert all(hasattr(PairArguments, option) for option in spec.own_options)
    assert hasattr(ContrastiveArguments, f"{name}_model") and hasattr(ContrastiveArguments, f"{name}_config")


def test_modality_of_columns():
    assert modality_of_columns(["id", "audio", "text"]) == "audio"
    for columns in (["id", "text"], ["image", "audio"], ["id", "text", "video"]):
        with pytest.raises(ValueError, match="one of image, audio; found"):
            modality_of_columns(columns)


def test_options_of_another_modality_are_refused():
    for name, spec in MODALITIES.items():
        for other in MODALITIES.keys() - {name}:
            with pytest.raises(ValueError, match=f"does not go with --modality {other}"):
                PairArguments(dataset=["x"], modality=other, **{spec.own_options[0]: True})


def test_no_modality_is_the_other_one():
    """No `"image" if ... else "audio"`, by which a third modality would become the second."""
    pattern = re.compile(
        r'"image" if [^\n]* else "audio"|"audio" if [^\n]* else "image"|_IMAGE[^\n]* else [^\n]*_AUDIO'
    )
    root = Path(xmodal_hf.__file__).parent
    sources = sorted([*root.rglob("*.py"), *(root.parents[1] / "training_scripts").glob("*.py")])
    assert len(sources) > 100
    assert [path.name for path in sources if pattern.search(path.read_text(encoding="utf-8"))] == []


def test_a_table_of_no_modality_is_no_audio():
    from xmodal_hf.data.mixing import ConcatenatedPairs

    with pytest.raises(ValueError, match="one of image, audio"):
        ConcatenatedPairs({"films": Dataset.from_dict({"id": ["a"], "video": ["b"], "text": ["c"]})})

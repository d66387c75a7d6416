"""Saving and loading for the tests of models."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, PreTrainedModel


@pytest.fixture
def reload(tmp_path: Path) -> Callable[[PreTrainedModel], PreTrainedModel]:
    """Give `reload(model)`: saved and loaded again, nothing missing, every tensor bit for bit."""

    def run(model: PreTrainedModel) -> PreTrainedModel:
        folder = tmp_path / "reloaded"
        model.save_pretrained(folder)
        loaded, info = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not any(info.values()), info
        assert type(loaded) is type(model)
        # Buffers are not all in the file: those are computed again.
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        loaded_tensors = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
        assert tensors.keys() == loaded_tensors.keys()
        assert [name for name in tensors if not torch.equal(tensors[name], loaded_tensors[name])] == []
        assert not loaded.training
        # Loaded tensors lie in the mapped file, wherever it puts them; vector instructions may add in another order
        # there. A copy lies as the original does, so that outputs can be compared bit for bit.
        return copy.deepcopy(loaded)

    return run

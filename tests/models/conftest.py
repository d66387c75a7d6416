"""Saving and loading for the tests of models."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel


@pytest.fixture
def randomize() -> Callable[[nn.Module], nn.Module]:
    """Give `randomize(model)`: weights that all have an effect, with inputs well apart in the outputs."""

    def run(model: nn.Module) -> nn.Module:
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
            elif parameter.ndim == 1 and not name.startswith("logit_"):
                nn.init.normal_(parameter, mean=float(name.endswith("weight")), std=0.3)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                nn.init.normal_(buffer)
            elif name.endswith("running_var"):
                nn.init.uniform_(buffer, 0.5, 1.5)
        return model.eval()

    return run


@pytest.fixture
def assert_equal_outputs() -> Callable[..., None]:
    """Give `assert_equal_outputs(first, second, inputs)`: embeddings and logits of two models, all to 1e-5.

    Also that the check is not vacuous: the rows of the inputs lie apart.
    """

    def run(first: PreTrainedModel, second: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> None:
        with torch.no_grad():
            expected, found = first(**inputs), second(**inputs)
        names = [name for name in expected if name.endswith("_embeds") or name.startswith("logits_per_")]
        assert len(names) == 4
        for name in names:
            torch.testing.assert_close(
                found[name], expected[name], atol=1e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
            assert (expected[name][0] - expected[name][1]).abs().max() > 1e-3, name

    return run


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

"""The moving average of the weights against its formula."""

import torch
from torch import nn

from xmodal_hf.training.averaging import WeightAverage


def test_the_average_is_that_of_the_formula():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average = WeightAverage(model, decay=0.5)
    expected = model.weight.detach().clone()
    for update in range(20):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update()
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.averages, [expected])
    assert not torch.allclose(model.weight, expected)

    present = model.weight.detach().clone()
    with average.applied():
        assert torch.equal(model.weight, average.averages[0])
    assert torch.equal(model.weight, present)
    restored = WeightAverage(model, decay=0.5)
    restored.load_state_dict(average.state_dict())
    restored.copy_to_model()
    assert torch.equal(model.weight, average.averages[0]) and restored.updates == 20

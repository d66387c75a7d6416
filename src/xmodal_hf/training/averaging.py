"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class WeightAverage:
    """The moving average of a model's trainable parameters, kept beside it on the same device in fp32.

    Args:
        model: Model whose parameters are averaged; it must be settled which of them are trainable.
        decay: Weight of the previous average at each update, below 1. In the first updates it is (1 + updates) / (10 +
            updates) if that is smaller, so that the random first weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.averages = [parameter.detach().float().clone() for parameter in self.parameters]
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        present = [parameter.detach().float() for parameter in self.parameters]
        torch._foreach_lerp_(self.averages, present, 1 - decay)
        self.updates += 1

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Overwrite the model's weights with their averages."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            parameter.copy_(average)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model its averaged weights within the body."""
        present = [parameter.detach().clone() for parameter in self.parameters]
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, present, strict=True):
                    parameter.copy_(value)

    def to_tensors(self) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        """Return the averages by number and the count of updates, for a safetensors file and its metadata."""
        tensors = {str(number): average.cpu().contiguous() for number, average in enumerate(self.averages)}
        return tensors, {"updates": str(self.updates)}

    def load_tensors(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
        """Take in what `to_tensors` returned."""
        averages = [tensors[str(number)].to(self.averages[number]) for number in range(len(self.averages))]
        self.load_state_dict({"averages": averages, "updates": int(metadata["updates"])})

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and the count of updates."""
        return {"averages": self.averages, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take in what `state_dict` returned."""
        torch._foreach_copy_(self.averages, state["averages"])
        self.updates = state["updates"]

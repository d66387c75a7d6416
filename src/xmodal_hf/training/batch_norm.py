"""Batch normalisation under gradient caching: its running statistics are updated once a step, as in a plain one.

A plain step normalises by the statistics of the batch and moves the running ones towards them, once. Gradient caching
runs each micro-batch twice, and each time the layer would move them towards those of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class _Moments:
    """Moments of one call: number of elements per channel, and the channels' means and unbiased variances (C,)."""

    count: int
    mean: Tensor
    variance: Tensor


@dataclass
class _Layer:
    """A layer with its running statistics before the step, and its calls: a list of moments for each micro-batch."""

    module: _BatchNorm
    momentum: float | None
    mean: Tensor
    variance: Tensor
    num_batches: Tensor | None
    parts: list[list[_Moments]] = field(default_factory=list)


class SingleUpdate:
    """While entered, running statistics are recorded and not kept; on leaving, they are updated once.

    The update is that of a plain step: by the layer's momentum towards the mean and the unbiased variance over the
    elements of all micro-batches, which are those of the whole batch, since means and squares add up (Chan et al. 1979,
    "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", eq. 2.1). The first such layer of a
    tower ends up as after a plain step. What later layers see was normalised by micro-batches, and their statistics are
    of that. A layer that is called several times in a forward has as many updates, as in a plain step.

    Layers in evaluation mode, those of a frozen tower, and layers without running statistics are left alone. After an
    error all statistics are as before.

    Args:
        model: Model of the step, wrapped or not.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = [
            _Layer(
                module,
                module.momentum,
                module.running_mean.clone(),
                module.running_var.clone(),
                None if module.num_batches_tracked is None else module.num_batches_tracked.clone(),
            )
            for module in model.modules()
            if isinstance(module, _BatchNorm)
            and module.training
            and module.track_running_stats
            and module.running_mean is not None
            and module.running_var is not None
        ]
        self._hooks: list[Any] = []

    def __enter__(self) -> SingleUpdate:
        for layer in self.layers:
            layer.module.momentum = 1.0  # the running statistics then become those of the last call
            self._hooks.append(layer.module.register_forward_hook(_recorder(layer)))
        return self

    def begin_micro_batch(self) -> None:
        """Tell that the first encoding of a micro-batch begins."""
        for layer in self.layers:
            layer.parts.append([])

    def end_micro_batch(self, rows: int) -> None:
        """Tell that it is over.

        Args:
            rows: Number of items in the micro-batch. Compiled layers run no hooks: they count as called once, with
                items for elements, so that a variance is biased if micro-batches are small.
        """
        for layer in self.layers:
            if not layer.parts[-1]:
                layer.parts[-1].append(_moments(layer.module, rows))

    def stop_recording(self) -> None:
        """Tell that every micro-batch has been encoded once."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop_recording()
        for layer in self.layers:
            _restore(layer)
            if error is None:
                for calls in zip(*layer.parts, strict=True):
                    _update(layer.module, _joined(calls))


def _recorder(layer: _Layer) -> Any:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        (values,) = inputs
        layer.parts[-1].append(_moments(layer.module, values.numel() // values.shape[1]))

    return record


def _moments(module: _BatchNorm, count: int) -> _Moments:
    """Return what the last call has left in the running statistics, whose momentum is 1."""
    assert module.running_mean is not None and module.running_var is not None
    return _Moments(count, module.running_mean.clone(), module.running_var.clone())


def _joined(calls: tuple[_Moments, ...]) -> _Moments:
    """Return the moments of the elements of all calls."""
    total = sum(call.count for call in calls)
    mean = torch.stack([call.count * call.mean.double() for call in calls]).sum(dim=0) / total  # (C,)
    squares = torch.stack(
        [
            (call.count - 1) * call.variance.double() + call.count * (call.mean.double() - mean).square()
            for call in calls
        ]
    )
    return _Moments(total, mean, squares.sum(dim=0) / max(total - 1, 1))


@torch.no_grad()
def _restore(layer: _Layer) -> None:
    """Put momentum and running statistics back."""
    module = layer.module
    module.momentum = layer.momentum
    module.running_mean.copy_(layer.mean)  # type: ignore[union-attr]
    module.running_var.copy_(layer.variance)  # type: ignore[union-attr]
    if module.num_batches_tracked is not None and layer.num_batches is not None:
        module.num_batches_tracked.copy_(layer.num_batches)


@torch.no_grad()
def _update(module: _BatchNorm, batch: _Moments) -> None:
    """Move the running statistics as one call in training mode does."""
    factor = module.momentum
    if module.num_batches_tracked is not None:
        module.num_batches_tracked += 1
        if factor is None:  # the mean over all batches
            factor = 1.0 / float(module.num_batches_tracked)
    for running, value in ((module.running_mean, batch.mean), (module.running_var, batch.variance)):
        running.lerp_(value.to(running.dtype), factor or 0.0)  # type: ignore[union-attr]

"""Gradient caching: the loss of a large batch at the memory of a micro-batch (Gao et al. 2021, "Scaling Deep
Contrastive Learning Batch Size under Memory Limited Setup", section 3.2).

Every micro-batch is encoded without graph; the loss of all embeddings gives the gradient of each embedding; every
micro-batch is encoded again, with the same dropout, and its cached gradients are pushed through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from ..objectives import Batch, Embeddings, Objective, ObjectiveOutput
from .batch_norm import SingleUpdate

# State of the CPU; numbers and states of the accelerators that the model is on.
_RandomState = tuple[Tensor, list[int], list[Tensor]]


def cached_backward(
    accelerator: Accelerator, objective: Objective, model: nn.Module, batch: Batch, micro_batch_size: int
) -> ObjectiveOutput:
    """Accumulate the gradients of the whole batch's loss, holding the graph of one micro-batch at a time.

    Equal to `accelerator.backward(objective(model, batch).loss)` under the same dropout masks, but for batch
    normalisation, which normalises by the statistics of a micro-batch. Its running statistics are updated once a step,
    from all micro-batches (`batch_norm.SingleUpdate`). Under DistributedDataParallel only the last micro-batch
    synchronises.

    Returns:
        Output of the objective, with its loss detached.

    Example:
        >>> from xmodal_hf.objectives import CrossModalObjective
        >>> ids = torch.tensor([[2, 5, 3], [2, 6, 3], [2, 7, 3], [2, 8, 3]])
        >>> batch = {"input_ids": ids, "attention_mask": ids > 0, "pixel_values": torch.zeros(4, 3, 16, 16)}
        >>> accelerator, objective = Accelerator(cpu=True), CrossModalObjective("clip")
        >>> output = cached_backward(accelerator, objective, model, batch, micro_batch_size=2)
        >>> model.text_projection.weight.grad.shape == model.text_projection.weight.shape
        True
    """
    micro_batches = objective.micro_batches(batch, micro_batch_size)
    states, encoded = [], []
    with SingleUpdate(model) as statistics:
        for micro_batch in micro_batches:
            states.append((torch.get_rng_state(), *get_device_states(next(model.parameters()))))
            statistics.begin_micro_batch()
            with torch.no_grad():
                encoded.append(objective.encode(model, micro_batch))
            statistics.end_micro_batch(max(len(tensor) for tensor in encoded[-1].values() if tensor.ndim))
        statistics.stop_recording()
        cache = {name: _join([embeds[name] for embeds in encoded]) for name in encoded[0]}
        output = objective.loss(cache)
        accelerator.backward(output.loss)

        offsets = dict.fromkeys(cache, 0)
        for index, (micro_batch, state) in enumerate(zip(micro_batches, states, strict=True)):
            is_last = index == len(micro_batches) - 1
            with nullcontext() if is_last else accelerator.no_sync(model), _replayed(state, accelerator.device):
                embeds = objective.encode(model, micro_batch)
                _push_through(embeds, cache, offsets, is_last)
    return ObjectiveOutput(output.loss.detach(), output.logs)


def _join(parts: list[Tensor]) -> Tensor:
    """Return the leaf of a cached output: rows of all micro-batches, or a scalar, which all have in common."""
    joined = torch.cat(parts).detach() if parts[0].ndim else parts[0].detach().clone()
    return joined.requires_grad_() if joined.is_floating_point() else joined


def _push_through(embeds: Embeddings, cache: Embeddings, offsets: dict[str, int], is_last: bool) -> None:
    """Run backward of a micro-batch's embeddings from its slice of the cached gradients; advances `offsets`."""
    outputs, gradients = [], []
    for name, tensor in embeds.items():
        gradient = cache[name].grad
        if tensor.ndim:
            start = offsets[name]
            offsets[name] += len(tensor)
            gradient = None if gradient is None else gradient[start : offsets[name]]
        elif not is_last:
            continue  # the gradient of a scalar is that of the whole batch, and is used once
        if gradient is not None and tensor.requires_grad:
            outputs.append(tensor)
            gradients.append(gradient.to(tensor.dtype))
    torch.autograd.backward(outputs, gradients)


@contextmanager
def _replayed(state: _RandomState, device: torch.device) -> Iterator[None]:
    """Run the body under a random state, so that dropout is the same again, and restore the present one after it."""
    cpu_state, devices, device_states = state
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        torch.set_rng_state(cpu_state)
        set_device_states(devices, device_states, device_type=device.type)
        yield

"""Preparation of a model for FSDP 2 and DeepSpeed, and the steps that they do not do.

FSDP 2 shards no scalars: `logit_scale` and `logit_bias` stay whole in every process, and so do their gradients.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel


def is_sharded(accelerator: Accelerator) -> bool:
    """Tell whether no process holds the whole state of the training."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def prepare_sharding(accelerator: Accelerator, model: PreTrainedModel) -> list[nn.Parameter]:
    """Tell FSDP 2, before `prepare`, which blocks to shard and which parameters to leave alone; DeepSpeed the latter.

    Returns:
        Trained parameters that stay whole; the list is empty under anything but FSDP 2.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        for parameter in model.parameters():
            if parameter.ndim == 0:
                # DeepSpeed 0.19 fails to broadcast a scalar, and this mark leaves the scalar out; new weights are equal
                # in all processes anyway.
                parameter.ds_optim_param = True
    if not accelerator.is_fsdp2:
        return []
    plugin = accelerator.state.fsdp_plugin
    if plugin.transformer_cls_names_to_wrap is None:
        # Accelerate shards the input embeddings separately, so that no block around them may be sharded before.
        embeddings = model.get_input_embeddings()
        around = {type(module).__name__ for module in model.modules() if embeddings in module.children()}
        plugin.transformer_cls_names_to_wrap = sorted(set(model._no_split_modules or ()) - around)
    scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
    plugin.ignored_modules = [nn.ParameterList(scalars)]
    return [parameter for parameter in scalars if parameter.requires_grad]


@torch.no_grad()
def average_gradients(accelerator: Accelerator, parameters: list[nn.Parameter]) -> None:
    """Average the gradients of whole parameters over the processes, as sharded ones are."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = accelerator.reduce(parameter.grad, "mean")


def whole_weights(accelerator: Accelerator, model: nn.Module) -> dict[str, Tensor] | None:
    """Return the gathered weights of a sharded model (in the main process); None for a model that is not sharded.

    Every process must call this.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return None
    return accelerator.get_state_dict(model)

"""Moving weights between models that name them differently: nothing may be left over, and nothing missing."""

import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from transformers import PreTrainedModel
from transformers import initialization as init

Weights = dict[str, torch.Tensor]
# Pattern that a whole name must match, and the new name (None: the weight has no effect on embeddings).
Rule = tuple[str, str | None]

# Buffers that a model fills itself, and saves in some versions of transformers.
_COMPUTED = r".*\.(position_ids|token_type_ids)"
# Classes of the training scores that LAION-CLAP and others save beside the weights: NumPy scalars, which hold only a
# number. NumPy 1 has another name for the module of their constructor.
_SCALAR = np.float64(0).__reduce__()[0]
_SAFE_TYPES: list[Any] = [
    *[(_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
    np.dtype,
    *[type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")],
]

Model = TypeVar("Model", bound=PreTrainedModel)


def read_state_dict(path: str | os.PathLike) -> Weights:
    """Read the weights in a file: safetensors, or what `torch.save` wrote, without running any code in it.

    A training checkpoint gives its `state_dict`; the prefix of `DistributedDataParallel` is taken off.

    Raises:
        ValueError: If the file holds more than tensors and numbers, or no weights.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    try:
        with torch.serialization.safe_globals(_SAFE_TYPES):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"{path} is no file of weights alone, and what else it holds could run code: where you trust it, save its "
            f"state dict as safetensors first (a TorchScript archive: torch.jit.load(path).state_dict()). {error}"
        ) from error
    weights = content.get("state_dict", content) if isinstance(content, dict) else {}
    weights = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    if not weights:
        raise ValueError(f"{path} holds no weights: pass a state dict, or a checkpoint with one as 'state_dict'")
    return strip_prefix(weights, "module.")


def strip_prefix(weights: Mapping[str, torch.Tensor], prefix: str) -> Weights:
    """Take a prefix off the names that have it."""
    return {name.removeprefix(prefix): value for name, value in weights.items()}


def rename_weights(weights: Mapping[str, torch.Tensor], rules: Sequence[Rule]) -> Weights:
    """Rename weights by the first rule whose pattern matches the whole name.

    Raises:
        ValueError: If no rule knows a name, or two weights would have one name. The message lists the names.
    """
    renamed: Weights = {}
    problems: dict[str, list[str]] = {"unknown": [], "twice": []}
    for name, value in weights.items():
        rule = next((rule for rule in rules if re.fullmatch(rule[0], name)), None)
        if rule is None:
            problems["unknown"].append(name)
        elif rule[1] is not None:
            new_name = re.sub(rule[0], rule[1], name)
            if new_name in renamed:
                problems["twice"].append(new_name)
            renamed[new_name] = value
    _raise_if_any(problems, "the weights do not have the layout of this format")
    return renamed


def split_fused(weights: Mapping[str, torch.Tensor], pattern: str, names: Sequence[str]) -> Weights:
    """Split weights that stack several matrices, as attention's queries, keys and values, along their rows.

    Args:
        weights: Weights by name.
        pattern: Pattern of the whole name of a fused weight.
        names: Names of the parts, in their order.
    """
    result: Weights = {}
    for name, value in weights.items():
        if re.fullmatch(pattern, name):
            parts = zip(names, value.chunk(len(names)), strict=True)
            result.update({re.sub(pattern, part, name): rows for part, rows in parts})
        else:
            result[name] = value
    return result


def build_with_weights(build: Callable[[], Model], weights: Mapping[str, torch.Tensor]) -> Model:
    """Return `build()` with copies of these weights, in evaluation mode.

    Raises:
        ValueError: If the model has no place for a weight, lacks a weight, or has it in another shape. The message
            lists the weights.
    """
    with init.no_init_weights():
        model = build()
    own = model.state_dict()
    weights = {name: value for name, value in own.items() if re.fullmatch(_COMPUTED, name)} | dict(weights)
    problems = {
        "left over": sorted(weights.keys() - own.keys()),
        "missing": sorted(own.keys() - weights.keys()),
        "of another shape": [
            f"{name} {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
            for name in sorted(own.keys() & weights.keys())
            if weights[name].shape != own[name].shape
        ],
    }
    _raise_if_any(problems, f"the weights are not those of a {type(model).__name__} of this configuration")
    model.load_state_dict(weights)
    return model.eval()


def _raise_if_any(problems: dict[str, list[str]], message: str) -> None:
    """Raise a ValueError that lists the names with each problem."""
    found = {kind: names for kind, names in problems.items() if names}
    if found:
        parts = [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in found.items()]
        raise ValueError(f"{message}; {'; '.join(parts)}")


def count_layers(weights: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Return how many numbered layers have names that begin with `prefix`."""
    return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})


def log_scale_offset(weights: Mapping[str, torch.Tensor]) -> float:
    """Return what CLAP's log scale of `logits_per_text` has more than that of `logits_per_audio`."""
    return weights["logit_scale_t"].item() - weights["logit_scale_a"].item()

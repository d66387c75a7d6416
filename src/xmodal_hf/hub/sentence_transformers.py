"""The language encoder alone, as a sentence-transformers folder that needs nothing of this package.

The folder itself is the text tower as a plain transformers model; its subfolders say how sentence-transformers pools,
projects and normalises, in the formats that all its versions read.

Shapes: H hidden, D embedding.
"""

from __future__ import annotations

import copy
from pathlib import Path

from safetensors.torch import save_file
from torch import nn
from transformers import (
    MODEL_MAPPING,
    ClapTextConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaModel,
)

from ..models.configuration_dual_encoder import tower_hidden_size
from ..models.modeling_dual_encoder import DualEncoder, ProjectionMLP
from ..models.modeling_sentence_encoder import SentenceEncoder
from ..models.sentence_transformers_files import vector_settings, write_json, write_modules

# Ours -> theirs. `lasttoken` is the end-of-text token: the tokenizer puts it last.
_POOLINGS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "eos": "lasttoken"}
# The activations that a Dense module can name: torch's classes without arguments.
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}
_IDENTITY = nn.Identity


def export_sentence_transformers(
    model: SentenceEncoder | DualEncoder, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> Path:
    """Write the language encoder of a model for `SentenceTransformer(folder)` and `AutoModel.from_pretrained(folder)`.

    Args:
        model: a sentence encoder, or a dual encoder, whose text projection is exported too.
        tokenizer: the model's.
        folder: made when missing.

    Returns:
        The folder. `SentenceTransformer(folder).encode` gives the model's unit-norm text embeddings (D,).

    Raises:
        ValueError: when `AutoModel` does not know the text tower, or no Dense module can be the projection.
    """
    folder = Path(folder)
    tower = _plain_tower(model.text_model)
    pooling = model.config.pooling if isinstance(model, SentenceEncoder) else model.config.text_pooling
    layers = _dense_layers(model)
    tower.save_pretrained(folder)
    max_tokens = _save_tokenizer(tokenizer, model, folder)

    settings = {"max_seq_length": max_tokens, "do_lower_case": False}
    modules = {"": "Transformer"}
    if pooling == "pooler":
        settings |= vector_settings({"text": "forward"})
    else:
        hidden_size = tower_hidden_size(tower.config, "text_config")
        mode = {f"pooling_mode_{name}": name == _POOLINGS[pooling] for name in _POOLINGS.values()}
        write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **mode})
        modules["1_Pooling"] = "Pooling"
    write_json(folder / "sentence_bert_config.json", settings)
    for linear, activation in layers:
        path = f"{len(modules)}_Dense"
        _write_dense(folder / path, linear, activation)
        modules[path] = "Dense"
    path = f"{len(modules)}_Normalize"
    write_json(folder / path / "config.json", {})
    write_modules(folder, {**modules, path: "Normalize"})
    return folder


def _plain_tower(tower: PreTrainedModel) -> PreTrainedModel:
    """Return the text tower as a model that `AutoModel` loads."""
    if isinstance(tower.config, ClapTextConfig):  # RoBERTa by another name
        fields = tower.config.to_dict() | {"model_type": RobertaConfig.model_type, "architectures": None}
        roberta = RobertaModel(RobertaConfig.from_dict(fields), add_pooling_layer=tower.pooler is not None)
        roberta.load_state_dict(dict(tower.named_parameters()))
        return roberta
    if type(tower.config) not in MODEL_MAPPING:
        raise ValueError(
            f"transformers' AutoModel cannot load a {type(tower).__name__} alone: publish the model itself, which "
            "sentence-transformers loads too"
        )
    return tower


def _dense_layers(model: SentenceEncoder | DualEncoder) -> list[tuple[nn.Linear, type[nn.Module]]]:
    """Return what follows the pooling: linear layers, each with the activation after it."""
    if isinstance(model, DualEncoder):
        projection = model.text_projection
        if not isinstance(projection, ProjectionMLP):
            return _linear(projection)
        name = model.config.projection_hidden_act
        if name not in _ACTIVATIONS:
            raise ValueError(
                f"sentence-transformers has no Dense module with projection_hidden_act {name!r}, only with "
                f"{', '.join(_ACTIVATIONS)}: publish the model itself, which sentence-transformers loads too"
            )
        return [(projection.linear1, _ACTIVATIONS[name]), (projection.linear2, _IDENTITY)]
    if not model.config.head_at_inference:
        return []
    if isinstance(model.head, nn.Sequential):
        return _linear(model.head[0], type(model.head[1]))
    return _linear(model.head)


def _linear(layer: nn.Module, activation: type[nn.Module] = _IDENTITY) -> list[tuple[nn.Linear, type[nn.Module]]]:
    """Return a projection or head that is one linear layer, or none at all."""
    return [(layer, activation)] if isinstance(layer, nn.Linear) else []


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, model: SentenceEncoder | DualEncoder, folder: Path) -> int:
    """Save a copy that cuts where the tower ends, and names no processor: there is none here. Return the limit."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = model.max_tokens(tokenizer)
    tokenizer._processor_class = None
    for name in ("processor_class", "auto_map"):
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.save_pretrained(folder)
    return tokenizer.model_max_length


def _write_dense(folder: Path, linear: nn.Linear, activation: type[nn.Module]) -> None:
    """Write a Dense module: (H,) -> (D,)."""
    config = {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "activation_function": f"{activation.__module__}.{activation.__qualname__}",
    }
    write_json(folder / "config.json", config)
    weights = {f"linear.{name}": value.detach().contiguous() for name, value in linear.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

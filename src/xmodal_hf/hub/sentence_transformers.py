"""The language encoder alone, as a sentence-transformers folder that needs nothing of this package.

The folder itself is the text tower as a plain transformers model; its subfolders say how sentence-transformers pools,
projects and normalises, in the formats that all its versions read.

Shapes: H hidden, D embedding.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    MODEL_MAPPING,
    ClapTextConfig,
    MegatronBertConfig,
    MegatronBertModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaModel,
)

from ..models.configuration_dual_encoder import tower_hidden_size
from ..models.modeling_dual_encoder import DualEncoder, ProjectionMLP
from ..models.modeling_sentence_encoder import SentenceEncoder
from ..models.pooling import end_of_text_index, last_attended
from ..models.sentence_transformers_files import padding_settings, vector_settings, write_json, write_modules
from ..models.text_format import (
    TextFormat,
    choose_pad_token,
    has_fixed_length,
    pad_to_fixed_length,
    pads_to_max_length,
    set_text_prefix,
    text_prefix,
)
from ..models.weight_mapping import Rule, rename_weights

# Pooling of this package -> pooling of sentence-transformers. For `eos` the tokenizer has to end every text with the
# end-of-text token.
_POOLINGS = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "eos": "lasttoken", "last": "lasttoken"}
# SigLIP's text tower is MegatronBERT's: norms before the layers, learned positions, no causal mask.
_MEGATRON_RULES: list[Rule] = [
    (r"embeddings\.token_embedding\.weight", "embeddings.word_embeddings.weight"),
    (r"embeddings\.position_embedding\.weight", "embeddings.position_embeddings.weight"),
    (r"encoder\.layers\.(\d+)\.layer_norm1\.(.*)", r"encoder.layer.\1.attention.ln.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(.*)", r"encoder.layer.\1.attention.self.query.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.k_proj\.(.*)", r"encoder.layer.\1.attention.self.key.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.v_proj\.(.*)", r"encoder.layer.\1.attention.self.value.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.*)", r"encoder.layer.\1.attention.output.dense.\2"),
    (r"encoder\.layers\.(\d+)\.layer_norm2\.(.*)", r"encoder.layer.\1.ln.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.(.*)", r"encoder.layer.\1.intermediate.dense.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.(.*)", r"encoder.layer.\1.output.dense.\2"),
    (r"final_layer_norm\.(.*)", r"encoder.ln.\1"),
    (r"head\.(.*)", None),  # the head becomes a Dense module
]
# The activations that a Dense module can name: torch's classes without arguments.
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "silu": nn.SiLU}
_IDENTITY = nn.Identity
# Linear layers, each with the activation after it.
_Layers = list[tuple[nn.Linear, type[nn.Module]]]


def export_sentence_transformers(
    model: SentenceEncoder | DualEncoder,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    *,
    truncate_dim: int | None = None,
) -> Path:
    """Write the language encoder of a model for `SentenceTransformer(folder)` and `AutoModel.from_pretrained(folder)`.

    Args:
        model: Sentence encoder, or dual encoder, whose text projection is exported too.
        tokenizer: Tokenizer of the model. What its file puts before each text becomes the default prompt.
        folder: Folder of the export; it is created if it is missing.
        truncate_dim: Number of leading dimensions that are kept, as a model trained with `--matryoshka_dims` allows;
            the vectors are of length one again. None: all.

    SigLIP's text tower, which `AutoModel` does not know alone, is written as the MegatronBERT that it is, with its
    head as a Dense module. Texts are padded as the model pads them: those of SigLIP's tower to its length, without a
    mask, whatever the tokenizer gives, so that the pooling reads all positions.

    Returns:
        The folder. `SentenceTransformer(folder).encode` gives the model's unit-norm text embeddings (D,).

    Raises:
        ValueError: If `AutoModel` does not know the text tower, if no Dense module can be the projection, if the
            pooling reads the same of every text, or if the pooling is `eos` and other tokens, or padding without a
            mask, follow the end of text.
    """
    folder, prefix = Path(folder), text_prefix(tokenizer)
    tokenizer = _own_copy(tokenizer, model)
    set_text_prefix(tokenizer, "")  # the instruction becomes the default prompt
    model.check_tokenizer(tokenizer)
    tower = _plain_tower(model.text_model)
    pooling = model.config.pooling if isinstance(model, SentenceEncoder) else model.config.text_pooling
    layers = _dense_layers(model)
    if pooling == "eos":
        _check_ends_texts(model, tokenizer)
    if pooling == "pooler" and has_fixed_length(model.text_model):  # the layer reads the last position
        pooling, layers = "last", [(model.text_model.head, _IDENTITY), *layers]
    if truncate_dim is not None:
        layers = _cut_layers(layers, tower_hidden_size(tower.config, "text_config"), truncate_dim)
    tower.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_all_modules(folder, tower, tokenizer, pooling, layers, prefix)
    return folder


def _write_all_modules(
    folder: Path,
    tower: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pooling: str,
    layers: _Layers,
    prefix: str,
) -> None:
    """Write the modules of sentence-transformers: the transformer, its pooling, the linear layers, the norm."""
    settings = {"max_seq_length": tokenizer.model_max_length, "do_lower_case": False}
    settings |= padding_settings(pads_to_max_length(tokenizer))
    modules = {"": "Transformer"}
    if pooling == "pooler":
        settings |= vector_settings({"text": "forward"})
    else:
        hidden_size = tower_hidden_size(tower.config, "text_config")
        mode = {f"pooling_mode_{name}": name == _POOLINGS[pooling] for name in dict.fromkeys(_POOLINGS.values())}
        write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **mode})
        modules["1_Pooling"] = "Pooling"
    write_json(folder / "sentence_bert_config.json", settings)
    for linear, activation in layers:
        path = f"{len(modules)}_Dense"
        _write_dense(folder / path, linear, activation)
        modules[path] = "Dense"
    path = f"{len(modules)}_Normalize"
    write_json(folder / path / "config.json", {})
    write_modules(folder, {**modules, path: "Normalize"}, prefix)


def _plain_tower(tower: PreTrainedModel) -> PreTrainedModel:
    """Return the text tower as a model that `AutoModel` loads."""
    if isinstance(tower.config, ClapTextConfig):  # the class is RoBERTa under another name
        fields = tower.config.to_dict() | {"model_type": RobertaConfig.model_type, "architectures": None}
        roberta = RobertaModel(RobertaConfig.from_dict(fields), add_pooling_layer=tower.pooler is not None)
        roberta.load_state_dict(dict(tower.named_parameters()))
        return roberta
    if has_fixed_length(tower):
        return _megatron_of(tower)
    if type(tower.config) not in MODEL_MAPPING:
        raise ValueError(
            f"transformers' AutoModel cannot load a {type(tower).__name__} alone: publish the model itself, which "
            "sentence-transformers loads too"
        )
    return tower


def _dense_layers(model: SentenceEncoder | DualEncoder) -> _Layers:
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
        *others, last = projection.linear_layers()
        return [*((linear, _ACTIVATIONS[name]) for linear in others), (last, _IDENTITY)]
    if not model.config.head_at_inference:
        return []
    if isinstance(model.head, nn.Sequential):
        return _linear(model.head[0], type(model.head[1]))
    return _linear(model.head)


def _cut_layers(layers: _Layers, hidden_size: int, dim: int) -> _Layers:
    """Return the layers after the pooling, of which the last gives the first `dim` dimensions only."""
    width = layers[-1][0].out_features if layers else hidden_size
    if not 1 <= dim <= width:
        raise ValueError(f"truncate_dim must lie between 1 and the model's {width} dimensions, got {dim}")
    if not layers:
        cut = nn.Linear(hidden_size, dim, bias=False)
        cut.weight.data = torch.eye(dim, hidden_size)
        return [(cut, _IDENTITY)]
    last, activation = layers[-1]
    cut = nn.Linear(last.in_features, dim, bias=last.bias is not None)
    cut.weight.data = last.weight.data[:dim].clone()
    if last.bias is not None:
        cut.bias.data = last.bias.data[:dim].clone()
    return [*layers[:-1], (cut, activation)]


def _linear(layer: nn.Module, activation: type[nn.Module] = _IDENTITY) -> _Layers:
    """Return a projection or head that is one linear layer, or none at all."""
    return [(layer, activation)] if isinstance(layer, nn.Linear) else []


def _megatron_of(tower: PreTrainedModel) -> PreTrainedModel:
    """Return SigLIP's text tower, without its head, as a MegatronBERT."""
    config = tower.config
    megatron = MegatronBertModel(
        MegatronBertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=config.attention_dropout,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=1,
            layer_norm_eps=config.layer_norm_eps,
            pad_token_id=config.pad_token_id,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
        ),
        add_pooling_layer=False,
    )
    types = {"embeddings.token_type_embeddings.weight": torch.zeros(1, config.hidden_size)}
    megatron.load_state_dict(rename_weights(tower.state_dict(), _MEGATRON_RULES) | types)
    return megatron


def _own_copy(tokenizer: PreTrainedTokenizerBase, model: SentenceEncoder | DualEncoder) -> PreTrainedTokenizerBase:
    """Return a copy that cuts where the tower ends, can pad, and names no processor: there is none here.

    It pads on the right, where towers count positions as they were trained to, unless texts have a fixed length. For
    a tower that was trained on one length it pads to that length and gives no mask.
    """
    tokenizer = copy.deepcopy(tokenizer)
    text_format = TextFormat.of(model.text_model, tokenizer)
    choose_pad_token(tokenizer)
    tokenizer.model_max_length = text_format.max_length
    if text_format.padded_length is None:
        tokenizer.padding_side = "right"
    if has_fixed_length(model.text_model):
        pad_to_fixed_length(tokenizer)
    tokenizer._processor_class = None
    for name in ("processor_class", "auto_map"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def _check_ends_texts(model: SentenceEncoder | DualEncoder, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a ValueError unless the end-of-text token is the last of a text, the only one that can be exported.

    Padding that no mask hides is part of the text.
    """
    text_format = TextFormat.of(model, tokenizer)
    inputs = text_format.collate(text_format.tokenize(["a photo"]))
    ids = inputs["input_ids"]
    mask = inputs.get("attention_mask", torch.ones_like(ids))
    if end_of_text_index(mask, ids, model.text_model.config.eos_token_id).item() != last_attended(mask).item():
        raise ValueError(
            "sentence-transformers reads the last token, and this tokenizer puts others behind the end of text: "
            "publish the model itself, which sentence-transformers loads too"
        )


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

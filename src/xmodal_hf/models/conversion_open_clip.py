"""Conversion of state dicts of open_clip (Cherti et al. 2023), OpenAI's CLIP and CyCLIP (Goel et al. 2022).

The three share one layout. The image tower becomes a CLIPVisionModel, timm's ResNet through TimmWrapperModel, or
SigLIP's; the text tower a CLIPTextModel or SiglipTextModel.

Shapes: H hidden, D embedding.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers.utils import is_timm_available

from .configuration_dual_encoder import ImageTextConfig
from .modeling_dual_encoder import ImageTextDualEncoder
from .weight_mapping import (
    Rule,
    Weights,
    build_with_weights,
    count_layers,
    rename_weights,
    split_fused,
    strip_prefix,
)

ACTIVATIONS = ("gelu", "quick_gelu")
# Width of an attention head if no configuration names another one (Radford et al. 2021, table 19).
_HEAD_WIDTH = 64
# Stages and first width -> name in timm, for all of OpenAI's ResNets (Radford et al. 2021, table 19).
_TIMM_RESNETS: dict[tuple[tuple[int, ...], int], str] = {
    ((3, 4, 6, 3), 64): "resnet50_clip",
    ((3, 4, 23, 3), 64): "resnet101_clip",
    ((4, 6, 10, 6), 80): "resnet50x4_clip",
    ((6, 8, 18, 8), 96): "resnet50x16_clip",
    ((3, 15, 36, 10), 128): "resnet50x64_clip",
}
_RESNET_STAGES = 4
# SigLIP towers of timm that use the tanh approximation of GELU; GELU is exact in the others, as in open_clip's.
_TANH_TOWERS = ("vit_base_patch32_", "vit_so400m_patch16_", "vit_giantopt_")
# Number of attention heads by width, for towers whose heads are not _HEAD_WIDTH wide (Alabdulmohsin et al. 2023;
# Tschannen et al. 2025).
_SIGLIP_HEADS = {1152: 16, 1536: 16}
_SIGLIP_SCALE, _SIGLIP_BIAS = math.log(10), -10.0  # initial values (Zhai et al. 2023, section 3.2)
_LAYER_NORM_EPS = 1e-5  # default of torch

# Settings of open_clip's model_cfg that this conversion supports, with the only supported value (None: any value).
# Other settings change what the weights compute.
_SETTINGS: dict[str, Any] = dict.fromkeys(
    [
        *("embed_dim", "quick_gelu", "custom_text", "init_logit_scale", "init_logit_bias"),
        *(f"vision_cfg.{name}" for name in ("image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio")),
        *(f"text_cfg.{name}" for name in ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")),
        *(f"text_cfg.{name}" for name in ("hf_tokenizer_name", "tokenizer_kwargs")),
    ]
)
_SIGLIP_SETTINGS: dict[str, Any] = _SETTINGS | {
    "vision_cfg.timm_model_name": None,
    "vision_cfg.timm_model_pretrained": None,
    "vision_cfg.timm_pool": "map",
    "vision_cfg.timm_proj": "none",
    "text_cfg.no_causal_mask": True,
    "text_cfg.proj_bias": True,
    "text_cfg.pool_type": "last",
    "text_cfg.norm_kwargs": None,
    "text_cfg.act_kwargs": None,
}
_QKV = tuple(rf"\1{part}_proj.\2" for part in "qkv")


def _block_rules(source: str, target: str) -> list[Rule]:
    """Rules for the transformer blocks of open_clip, their attention split."""
    return [
        (rf"{source}\.(\d+)\.ln_([12])\.(.*)", rf"{target}.\1.layer_norm\2.\3"),
        (rf"{source}\.(\d+)\.attn\.(.*)", rf"{target}.\1.self_attn.\2"),
        (rf"{source}\.(\d+)\.mlp\.c_fc\.(.*)", rf"{target}.\1.mlp.fc1.\2"),
        (rf"{source}\.(\d+)\.mlp\.c_proj\.(.*)", rf"{target}.\1.mlp.fc2.\2"),
    ]


_TEXT_RULES: list[Rule] = [
    (r"token_embedding\.weight", "text_model.embeddings.token_embedding.weight"),
    (r"positional_embedding", "text_model.embeddings.position_embedding.weight"),
    *_block_rules(r"transformer\.resblocks", "text_model.encoder.layers"),
    (r"ln_final\.(.*)", r"text_model.final_layer_norm.\1"),
    (r"(logit_scale|logit_bias)", r"\1"),
    # Tensors without weights: the causal mask, and sizes in OpenAI's archives.
    (r"attn_mask|input_resolution|context_length|vocab_size", None),
]
_CLIP_TEXT_RULES: list[Rule] = [(r"text_projection", "text_projection.weight")]
_VIT_RULES: list[Rule] = [
    (r"visual\.conv1\.weight", "image_model.embeddings.patch_embedding.weight"),
    (r"visual\.class_embedding", "image_model.embeddings.class_embedding"),
    (r"visual\.positional_embedding", "image_model.embeddings.position_embedding.weight"),
    # The misspelt name is that of transformers.
    (r"visual\.ln_pre\.(.*)", r"image_model.pre_layrnorm.\1"),
    *_block_rules(r"visual\.transformer\.resblocks", "image_model.encoder.layers"),
    (r"visual\.ln_post\.(.*)", r"image_model.post_layernorm.\1"),
    (r"visual\.proj", "image_projection.weight"),
]
_SIGLIP_RULES: list[Rule] = [
    (r"visual\.trunk\.patch_embed\.proj\.(.*)", r"image_model.embeddings.patch_embedding.\1"),
    (r"visual\.trunk\.pos_embed", "image_model.embeddings.position_embedding.weight"),
    (r"visual\.trunk\.blocks\.(\d+)\.norm([12])\.(.*)", r"image_model.encoder.layers.\1.layer_norm\2.\3"),
    (r"visual\.trunk\.blocks\.(\d+)\.attn\.proj\.(.*)", r"image_model.encoder.layers.\1.self_attn.out_proj.\2"),
    (r"visual\.trunk\.blocks\.(\d+)\.attn\.(.*)", r"image_model.encoder.layers.\1.self_attn.\2"),
    (r"visual\.trunk\.blocks\.(\d+)\.mlp\.(.*)", r"image_model.encoder.layers.\1.mlp.\2"),
    (r"visual\.trunk\.norm\.(.*)", r"image_model.post_layernorm.\1"),
    (r"visual\.trunk\.attn_pool\.latent", "image_model.head.probe"),
    (r"visual\.trunk\.attn_pool\.in_proj_(.*)", r"image_model.head.attention.in_proj_\1"),
    (r"visual\.trunk\.attn_pool\.proj\.(.*)", r"image_model.head.attention.out_proj.\1"),
    (r"visual\.trunk\.attn_pool\.norm\.(.*)", r"image_model.head.layernorm.\1"),
    (r"visual\.trunk\.attn_pool\.mlp\.(.*)", r"image_model.head.mlp.\1"),
    (r"text_projection\.(.*)", r"text_model.head.\1"),
]


def _resnet_rules() -> list[Rule]:
    """Rules from OpenAI's ModifiedResNet to timm's of the same shape."""
    timm = "image_model.timm_model"
    rules: list[Rule] = [
        (r"visual\.conv([123])\.(.*)", rf"{timm}.stem.conv\1.conv.\2"),
        (r"visual\.bn([123])\.(.*)", rf"{timm}.stem.conv\1.bn.\2"),
        (r"visual\.attnpool\.positional_embedding", f"{timm}.head.pos_embed"),
        (r"visual\.attnpool\.([qkv])_proj\.(.*)", rf"{timm}.head.\1.\2"),
        (r"visual\.attnpool\.c_proj\.weight", "image_projection.weight"),
    ]
    for stage in range(_RESNET_STAGES):
        source, target = rf"visual\.layer{stage + 1}\.(\d+)", rf"{timm}.stages.{stage}.\1"
        for number, kernel in ((1, "1x1"), (2, "kxk"), (3, "1x1")):
            rules.append((rf"{source}\.conv{number}\.(.*)", rf"{target}.conv{number}_{kernel}.conv.\2"))
            rules.append((rf"{source}\.bn{number}\.(.*)", rf"{target}.conv{number}_{kernel}.bn.\2"))
        rules.append((rf"{source}\.downsample\.0\.(.*)", rf"{target}.shortcut.conv.conv.\2"))
        rules.append((rf"{source}\.downsample\.1\.(.*)", rf"{target}.shortcut.conv.bn.\2"))
    return rules


def from_open_clip(
    weights: Mapping[str, torch.Tensor],
    model_config: Mapping[str, Any] | None = None,
    hidden_act: str | None = None,
) -> ImageTextDualEncoder:
    """Convert a state dict of open_clip, OpenAI's CLIP or CyCLIP: equal embeddings and logits.

    Args:
        weights: State dict; `weight_mapping.read_state_dict` reads one from a file.
        model_config: Settings `model_cfg` of the `open_clip_config.json` beside the weights, if there is one. Most
            sizes follow from the weights; it gives the activation, and the attention heads if they are not 64 wide.
        hidden_act: Activation: `quick_gelu` (OpenAI, CyCLIP, open_clip's `*-quickgelu`) or `gelu` (other models of
            open_clip). The weights do not determine it, so it must come from here or from `model_config`.

    Raises:
        ValueError: If an activation or setting is unknown, or the weights do not fit one by one. EVA, CoCa, ConvNeXt,
            Hugging Face's text towers and others are not supported.
        ImportError: If the image tower is a ResNet and timm is missing.
    """
    settings = _flat(model_config or {})
    weights = strip_prefix(weights, "text.")  # the text tower is a module of its own
    if "visual.trunk.attn_pool.latent" in weights:
        return _from_siglip(weights, settings)
    _check_settings(settings, _SETTINGS)
    if hidden_act is None and settings:
        hidden_act = "quick_gelu" if settings.get("quick_gelu") else "gelu"
    if hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act is {hidden_act!r}, and no weight tells it: pass 'quick_gelu' for the weights of "
            "OpenAI, of CyCLIP and of open_clip's *-quickgelu models, 'gelu' for other models of open_clip"
        )
    _require(weights, "token_embedding.weight", "positional_embedding", "text_projection")
    text_config = transformers.CLIPTextConfig(**_text_sizes(weights, settings), hidden_act=hidden_act)
    if "visual.attnpool.c_proj.weight" in weights:
        image_config, rules = _resnet_config(weights), _resnet_rules()
        weights = _without_projection_bias(weights)
    else:
        image_config, rules = _vit_config(weights, settings, hidden_act), _VIT_RULES
        weights["visual.proj"] = weights["visual.proj"].t()
    config = ImageTextConfig(
        text_config=text_config.to_dict(),
        image_config=image_config.to_dict(),
        text_pooling="pooler",
        image_pooling="pooler",
        projection_dim=weights["text_projection"].shape[1],
        logit_bias_init_value=_SIGLIP_BIAS if "logit_bias" in weights else None,
    )
    weights["text_projection"] = weights["text_projection"].t()
    weights = rename_weights(_split_attention(weights), [*rules, *_CLIP_TEXT_RULES, *_TEXT_RULES])
    return build_with_weights(lambda: ImageTextDualEncoder(config), weights)


def _from_siglip(weights: Weights, settings: Mapping[str, Any]) -> ImageTextDualEncoder:
    """Convert SigLIP's towers (Zhai et al. 2023) as open_clip has them: the image tower is timm's."""
    if "vision_cfg.timm_model_name" not in settings:
        raise ValueError("no weight of SigLIP tells its activations: pass open_clip's model_cfg as model_config")
    _check_settings(settings, _SIGLIP_SETTINGS)
    _require(weights, "token_embedding.weight", "positional_embedding", "text_projection.weight")
    projection_size = weights["text_projection.weight"].shape[0]
    text_config = transformers.SiglipTextConfig(
        **_text_sizes(weights, settings),
        layer_norm_eps=settings.get("text_cfg.norm_kwargs", {}).get("eps", _LAYER_NORM_EPS),
        hidden_act=_gelu(settings.get("text_cfg.act_kwargs", {}).get("approximate") == "tanh"),
        projection_size=projection_size,
    )
    config = ImageTextConfig(
        text_config=text_config.to_dict(),
        image_config=_siglip_vision_config(weights, settings).to_dict(),
        text_pooling="pooler",
        image_pooling="pooler",
        projection_dim=projection_size,
        projection_type="none",
        logit_scale_init_value=_SIGLIP_SCALE,
        logit_bias_init_value=_SIGLIP_BIAS,
    )
    trunk = "visual.trunk"
    weights[f"{trunk}.pos_embed"] = weights[f"{trunk}.pos_embed"].squeeze(0)  # (patches, H)
    for part in ("weight", "bias"):
        query, key_value = (weights.pop(f"{trunk}.attn_pool.{name}.{part}") for name in ("q", "kv"))
        weights[f"{trunk}.attn_pool.in_proj_{part}"] = torch.cat([query, key_value])  # (3H, ...)
    weights = rename_weights(_split_attention(weights), [*_SIGLIP_RULES, *_TEXT_RULES])
    return build_with_weights(lambda: ImageTextDualEncoder(config), weights)


def _flat(model_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return open_clip's settings with the names of the inner ones as `text_cfg.width`."""
    settings = {}
    for name, value in model_config.items():
        inner = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, Mapping) else {name: value}
        settings.update(inner)
    return settings


def _check_settings(settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise a ValueError for settings that change the model in ways that are not known here."""
    unknown = [
        f"{name}={value!r}" for name, value in settings.items() if name not in known or known[name] not in (None, value)
    ]
    if unknown:
        raise ValueError(f"cannot convert a model of open_clip with {', '.join(sorted(unknown))}")


def _require(weights: Mapping[str, torch.Tensor], *names: str) -> None:
    """Raise a ValueError for weights without which no size can be read."""
    missing = [name for name in names if name not in weights]
    if missing:
        raise ValueError(f"the weights do not have the layout of open_clip or OpenAI's CLIP: no {', '.join(missing)}")


def _text_sizes(weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, int]:
    """Return what the configs of both kinds of text tower share."""
    vocab_size, width = weights["token_embedding.weight"].shape
    return {
        "vocab_size": vocab_size,
        "hidden_size": width,
        "intermediate_size": weights["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        "num_hidden_layers": count_layers(weights, "transformer.resblocks."),
        "num_attention_heads": settings.get("text_cfg.heads", width // _HEAD_WIDTH),
        "max_position_embeddings": weights["positional_embedding"].shape[0],
        # CLIP's vocabulary ends with the marks of the start and the end; its pooling reads the highest id.
        "bos_token_id": vocab_size - 2,
        "eos_token_id": vocab_size - 1,
    }


def _vit_config(
    weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any], hidden_act: str
) -> transformers.CLIPVisionConfig:
    _require(weights, "visual.conv1.weight", "visual.positional_embedding", "visual.proj")
    width, channels, _, patch_size = weights["visual.conv1.weight"].shape
    return transformers.CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=weights["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
        num_hidden_layers=count_layers(weights, "visual.transformer.resblocks."),
        num_attention_heads=width // settings.get("vision_cfg.head_width", _HEAD_WIDTH),
        num_channels=channels,
        patch_size=patch_size,
        image_size=patch_size * math.isqrt(weights["visual.positional_embedding"].shape[0] - 1),
        projection_dim=weights["visual.proj"].shape[1],
        hidden_act=hidden_act,
    )


def _siglip_vision_config(
    weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any]
) -> transformers.SiglipVisionConfig:
    width, channels, _, patch_size = weights["visual.trunk.patch_embed.proj.weight"].shape
    return transformers.SiglipVisionConfig(
        hidden_size=width,
        intermediate_size=weights["visual.trunk.blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=count_layers(weights, "visual.trunk.blocks."),
        num_attention_heads=_SIGLIP_HEADS.get(width, width // _HEAD_WIDTH),
        num_channels=channels,
        patch_size=patch_size,
        image_size=settings["vision_cfg.image_size"],  # it is not a multiple of the patch size in all models
        hidden_act=_gelu(settings["vision_cfg.timm_model_name"].startswith(_TANH_TOWERS)),
    )


def _gelu(is_tanh: bool) -> str:
    return "gelu_pytorch_tanh" if is_tanh else "gelu"


def _resnet_config(weights: Mapping[str, torch.Tensor]) -> transformers.TimmWrapperConfig:
    """Return the config of the timm model that is this ResNet."""
    if not is_timm_available():
        raise ImportError("CLIP's ResNets need timm, which transformers wraps: pip install 'xmodal_hf[timm]'")
    stages = tuple(count_layers(weights, f"visual.layer{stage + 1}.") for stage in range(_RESNET_STAGES))
    width = weights["visual.bn3.weight"].shape[0]
    if (stages, width) not in _TIMM_RESNETS:
        raise ValueError(f"timm has no CLIP ResNet with stages of {stages} blocks and a first width of {width}")
    return transformers.TimmWrapperConfig(
        architecture=_TIMM_RESNETS[stages, width], hidden_size=weights["visual.attnpool.c_proj.weight"].shape[1]
    )


def _without_projection_bias(weights: Weights) -> Weights:
    """Move the bias of a ResNet's projection in front of it, since our projections have none.

    Attention weights sum to one, so that a shift of all values shifts the pooled vector z by as much. With values
    shifted by W⁺b, W(z + W⁺b) = Wz + b: exact, as W (D, H) with D <= H has independent rows.
    """
    weights = dict(weights)
    projection = weights["visual.attnpool.c_proj.weight"].double()  # (D, H)
    bias = weights.pop("visual.attnpool.c_proj.bias").double()  # (D,)
    shift = torch.linalg.pinv(projection) @ bias  # (H,)
    value_bias = weights["visual.attnpool.v_proj.bias"]
    weights["visual.attnpool.v_proj.bias"] = (value_bias.double() + shift).float()
    return weights


def _split_attention(weights: Weights) -> Weights:
    """Split the stacked queries, keys and values of open_clip's blocks and of timm's."""
    weights = split_fused(weights, r"(.*resblocks\..*\.attn\.)in_proj_(weight|bias)", _QKV)
    return split_fused(weights, r"(.*blocks\..*\.attn\.)qkv\.(weight|bias)", _QKV)

"""State dicts of open_clip, OpenAI's CLIP and CyCLIP against an independent forward, and against open_clip itself.

The forward here is written from the papers (Radford et al. 2021, figure 3 and section 2.4; He et al. 2019 for the
ResNet's tricks) in the layout's own names, on the state dict alone.
"""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipModel

from xmodal_hf.models.conversion import to_clip
from xmodal_hf.models.conversion_open_clip import from_open_clip

HEAD_WIDTH = 64
TEXT = {"width": 64, "layers": 2, "vocab_size": 50, "context_length": 12, "embed_dim": 48}
VISION = {"width": 128, "layers": 2, "patch_size": 8, "image_size": 24, "embed_dim": 48}
ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x)}
RN50_BLOCKS = (3, 4, 6, 3)


def random(*shape: int) -> torch.Tensor:
    """Return weights that keep the size of what passes through them."""
    return torch.randn(shape) * (1.2 * math.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.3)


def norm(name: str, width: int) -> dict[str, torch.Tensor]:
    """Return a layer or batch normalisation."""
    return {f"{name}.weight": 1 + random(width), f"{name}.bias": random(width)}


def transformer_weights(prefix: str, width: int, layers: int) -> dict[str, torch.Tensor]:
    """Return the blocks of a transformer."""
    weights: dict[str, torch.Tensor] = {}
    for layer in range(layers):
        block = f"{prefix}.resblocks.{layer}"
        weights |= norm(f"{block}.ln_1", width) | norm(f"{block}.ln_2", width)
        matrices = {"attn.in_proj_": (3 * width, width), "attn.out_proj.": (width, width)}
        matrices |= {"mlp.c_fc.": (4 * width, width), "mlp.c_proj.": (width, 4 * width)}
        for name, (rows, columns) in matrices.items():
            weights |= {f"{block}.{name}weight": random(rows, columns), f"{block}.{name}bias": random(rows)}
    return weights


def text_weights(width: int, layers: int, vocab_size: int, context_length: int, embed_dim: int) -> dict:
    """Return a text tower, and the scale."""
    return {
        "token_embedding.weight": torch.randn(vocab_size, width),
        "positional_embedding": torch.randn(context_length, width),
        **transformer_weights("transformer", width, layers),
        **norm("ln_final", width),
        "text_projection": random(width, embed_dim),
        "logit_scale": torch.tensor(1.0),
    }


def vit_weights(width: int, layers: int, patch_size: int, image_size: int, embed_dim: int) -> dict:
    """Return a vision transformer."""
    return {
        "visual.conv1.weight": random(width, 3, patch_size, patch_size),
        "visual.class_embedding": torch.randn(width),
        "visual.positional_embedding": torch.randn((image_size // patch_size) ** 2 + 1, width),
        **norm("visual.ln_pre", width),
        **transformer_weights("visual.transformer", width, layers),
        **norm("visual.ln_post", width),
        "visual.proj": random(width, embed_dim),
    }


def resnet_weights(width: int, blocks: tuple[int, ...], embed_dim: int) -> dict:
    """Return CLIP's ResNet for 64 x 64 pixels."""
    weights: dict[str, torch.Tensor] = {}

    def conv(name: str, bn: str, out_channels: int, in_channels: int, kernel: int) -> None:
        weights[f"visual.{name}.weight"] = random(out_channels, in_channels, kernel, kernel)
        weights.update(norm(f"visual.{bn}", out_channels))
        weights[f"visual.{bn}.running_mean"] = random(out_channels)
        weights[f"visual.{bn}.running_var"] = torch.rand(out_channels) + 0.5
        weights[f"visual.{bn}.num_batches_tracked"] = torch.tensor(7)

    for number, (out_channels, in_channels) in enumerate(
        [(width // 2, 3), (width // 2, width // 2), (width, width // 2)]
    ):
        conv(f"conv{number + 1}", f"bn{number + 1}", out_channels, in_channels, 3)
    channels = width
    for stage, count in enumerate(blocks):
        inner = width * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            conv(f"{name}.conv1", f"{name}.bn1", inner, channels, 1)
            conv(f"{name}.conv2", f"{name}.bn2", inner, inner, 3)
            conv(f"{name}.conv3", f"{name}.bn3", 4 * inner, inner, 1)
            if block == 0:
                conv(f"{name}.downsample.0", f"{name}.downsample.1", 4 * inner, channels, 1)
            channels = 4 * inner
    weights["visual.attnpool.positional_embedding"] = torch.randn(7 * 7 + 1, channels)
    for part, rows in {"q": channels, "k": channels, "v": channels, "c": embed_dim}.items():
        weights[f"visual.attnpool.{part}_proj.weight"] = random(rows, channels)
        weights[f"visual.attnpool.{part}_proj.bias"] = random(rows)
    return weights


def layer_norm(weights: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    """Normalise the last dimension."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Multi-head attention of projected states: (B, T, H) each -> (B, T, H)."""
    query, key, value = (x.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(-1, -2) / math.sqrt(HEAD_WIDTH) + mask
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)


def transformer_forward(
    weights: dict, prefix: str, x: torch.Tensor, act: Callable, mask: torch.Tensor | float
) -> torch.Tensor:
    """Run pre-norm blocks: (B, T, H) -> (B, T, H)."""
    layer = 0
    while f"{prefix}.resblocks.{layer}.ln_1.weight" in weights:
        block = f"{prefix}.resblocks.{layer}"

        def linear(name: str, x: torch.Tensor, block: str = block) -> torch.Tensor:
            return F.linear(x, weights[f"{block}.{name}weight"], weights[f"{block}.{name}bias"])

        parts = linear("attn.in_proj_", layer_norm(weights, f"{block}.ln_1", x)).chunk(3, dim=-1)
        x = x + linear("attn.out_proj.", attend(*parts, mask))
        x = x + linear("mlp.c_proj.", act(linear("mlp.c_fc.", layer_norm(weights, f"{block}.ln_2", x))))
        layer += 1
    return x


def encode_text(weights: dict, ids: torch.Tensor, act: Callable) -> torch.Tensor:
    """Return text features at unit norm, read at the highest id: (B, T) -> (B, D)."""
    x = weights["token_embedding.weight"][ids] + weights["positional_embedding"][: ids.shape[1]]
    mask = torch.full((ids.shape[1], ids.shape[1]), -math.inf).triu(1)
    x = layer_norm(weights, "ln_final", transformer_forward(weights, "transformer", x, act, mask))
    return F.normalize(x[torch.arange(len(ids)), ids.argmax(dim=1)] @ weights["text_projection"], dim=-1)


def encode_image_vit(weights: dict, pixels: torch.Tensor, act: Callable) -> torch.Tensor:
    """Return image features at unit norm: (B, 3, S, S) -> (B, D)."""
    kernel = weights["visual.conv1.weight"]
    patches = F.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([weights["visual.class_embedding"].expand(len(pixels), 1, -1), patches], dim=1)
    x = layer_norm(weights, "visual.ln_pre", x + weights["visual.positional_embedding"])
    x = transformer_forward(weights, "visual.transformer", x, act, 0.0)
    return F.normalize(layer_norm(weights, "visual.ln_post", x[:, 0]) @ weights["visual.proj"], dim=-1)


def encode_image_resnet(weights: dict, x: torch.Tensor) -> torch.Tensor:
    """Return image features at unit norm: (B, 3, S, S) -> (B, D). Strides are average pools."""

    def conv(name: str, bn: str, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        kernel = weights[f"visual.{name}.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        parts = [weights[f"visual.{bn}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(x, *parts)

    for number in (1, 2, 3):
        x = conv(f"conv{number}", f"bn{number}", x, stride=2 if number == 1 else 1).relu()
    x = F.avg_pool2d(x, 2)
    for stage, count in enumerate(RN50_BLOCKS):
        for block in range(count):
            name, stride = f"layer{stage + 1}.{block}", 2 if block == 0 and stage > 0 else 1
            inner = conv(f"{name}.conv1", f"{name}.bn1", x).relu()
            inner = conv(f"{name}.conv2", f"{name}.bn2", inner).relu()
            inner = conv(f"{name}.conv3", f"{name}.bn3", F.avg_pool2d(inner, stride))
            shortcut = x
            if block == 0:
                shortcut = conv(f"{name}.downsample.0", f"{name}.downsample.1", F.avg_pool2d(x, stride))
            x = (inner + shortcut).relu()
    x = x.flatten(2).transpose(1, 2)  # (B, positions, H)
    x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + weights["visual.attnpool.positional_embedding"]

    def linear(part: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, weights[f"visual.attnpool.{part}_proj.weight"], weights[f"visual.attnpool.{part}_proj.bias"])

    return F.normalize(linear("c", attend(linear("q", x), linear("k", x), linear("v", x)))[:, 0], dim=-1)


def token_ids(vocab_size: int, length: int) -> torch.Tensor:
    """Return three texts that end with the highest id, padded with zeros as open_clip does."""
    ids = torch.randint(1, vocab_size - 2, (3, length))
    for row, end in enumerate((length - 1, length // 2, 2)):
        ids[row, end], ids[row, end + 1 :] = vocab_size - 1, 0
    return ids


def assert_agrees(converted: nn.Module, text: torch.Tensor, image: torch.Tensor, inputs: dict, scale: float) -> None:
    """Assert equal embeddings and logits, and that neither side is nearly constant."""
    with torch.no_grad():
        outputs = converted(**inputs)
    torch.testing.assert_close(outputs.text_embeds, text, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.image_embeds, image, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.logits_per_image, math.exp(scale) * image @ text.T, atol=1e-5, rtol=1e-5)
    for embeds in (text, image):
        assert (embeds[0] - embeds[1]).norm() > 0.05


@pytest.mark.parametrize("own_text_tower", [False, True], ids=["openai", "text tower of its own"])
@pytest.mark.parametrize("hidden_act", ACTIVATIONS)
def test_vision_transformers(hidden_act: str, own_text_tower: bool, reload: Callable) -> None:
    text, act = text_weights(**TEXT), ACTIVATIONS[hidden_act]
    weights = {**text, **vit_weights(**VISION)}
    inputs = {"input_ids": token_ids(50, 12), "pixel_values": torch.randn(3, 3, 24, 24)}
    expected = encode_text(weights, inputs["input_ids"], act), encode_image_vit(weights, inputs["pixel_values"], act)
    source = {
        f"text.{name}" if own_text_tower and name in text and name != "logit_scale" else name: value
        for name, value in weights.items()
    }
    before = copy.deepcopy(source)

    converted = from_open_clip(source, hidden_act=hidden_act)
    assert_agrees(converted, *expected, inputs, scale=1.0)
    assert_agrees(reload(converted), *expected, inputs, scale=1.0)
    assert_agrees(to_clip(converted), *expected, inputs, scale=1.0)
    assert source.keys() == before.keys() and all(torch.equal(source[name], before[name]) for name in before)
    other = from_open_clip(source, hidden_act=next(name for name in ACTIVATIONS if name != hidden_act))
    assert (other(**inputs).image_embeds - expected[1]).abs().max() > 1e-3  # the activation matters


def test_resnets(reload: Callable) -> None:
    """CyCLIP's architecture at its full size: timm has it as a whole only."""
    pytest.importorskip("timm", reason="CLIP's ResNets run in timm")
    weights = {**text_weights(**TEXT | {"embed_dim": 1024}), **resnet_weights(64, RN50_BLOCKS, 1024)}
    inputs = {"input_ids": token_ids(50, 12), "pixel_values": torch.randn(3, 3, 224, 224)}
    act = ACTIVATIONS["quick_gelu"]
    expected = encode_text(weights, inputs["input_ids"], act), encode_image_resnet(weights, inputs["pixel_values"])
    converted = from_open_clip(weights, hidden_act="quick_gelu")
    assert converted.config.image_config.architecture == "resnet50_clip"
    assert_agrees(converted, *expected, inputs, scale=1.0)
    assert_agrees(reload(converted), *expected, inputs, scale=1.0)
    with pytest.raises(ValueError, match=r"image_config\.model_type is 'timm_wrapper'"):
        to_clip(converted)


def test_resnets_without_timm_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xmodal_hf.models.conversion_open_clip.is_timm_available", lambda: False)
    with pytest.raises(ImportError, match=r"pip install 'xmodal_hf\[timm\]'"):
        from_open_clip({**text_weights(**TEXT), **resnet_weights(8, (1, 1, 1, 1), 48)}, hidden_act="quick_gelu")


def test_unknown_resnets_are_named() -> None:
    pytest.importorskip("timm", reason="CLIP's ResNets run in timm")
    with pytest.raises(ValueError, match=r"stages of \(1, 1, 1, 1\) blocks and a first width of 8"):
        from_open_clip({**text_weights(**TEXT), **resnet_weights(8, (1, 1, 1, 1), 48)}, hidden_act="quick_gelu")


def test_open_clips_own_configuration_gives_activation_and_heads() -> None:
    weights = {**text_weights(**TEXT), **vit_weights(**VISION)}
    settings = {"embed_dim": 48, "vision_cfg": {"width": 128, "head_width": 32}, "text_cfg": {"heads": 4}}
    config = from_open_clip(weights, settings).config
    assert (config.image_config.num_attention_heads, config.text_config.num_attention_heads) == (4, 4)
    assert (config.image_config.hidden_act, config.text_config.hidden_act) == ("gelu", "gelu")
    config = from_open_clip(weights, {"quick_gelu": True}).config
    assert (config.image_config.num_attention_heads, config.text_config.num_attention_heads) == (2, 1)
    assert (config.image_config.hidden_act, config.text_config.hidden_act) == ("quick_gelu", "quick_gelu")


def test_the_activation_has_to_be_told() -> None:
    with pytest.raises(ValueError, match=r"hidden_act is None, and no weight tells it: pass 'quick_gelu' for"):
        from_open_clip({**text_weights(**TEXT), **vit_weights(**VISION)})


def test_settings_that_change_the_model_are_refused() -> None:
    settings = {"vision_cfg": {"pool_type": "avg"}, "text_cfg": {"width": 64, "no_causal_mask": True}}
    with pytest.raises(ValueError, match=r"with text_cfg\.no_causal_mask=True, vision_cfg\.pool_type='avg'"):
        from_open_clip({**text_weights(**TEXT), **vit_weights(**VISION)}, settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"visual.transformer.resblocks.0.ls_1.gamma": torch.ones(128)}, r"unknown: visual.*resblocks\.0\.ls_1\.gamma"),
        ({"visual.ln_pre.weight": None}, r"missing: image_model\.pre_layrnorm\.weight"),
        ({"visual.ln_pre.weight": torch.ones(3)}, r"pre_layrnorm\.weight \(3,\) instead of \(128,\)"),
        ({"text_projection": None}, "no text_projection"),
        ({"visual.conv1.weight": None}, r"no visual\.conv1\.weight"),
    ],
)
def test_weights_of_another_layout_are_listed(change: dict, message: str) -> None:
    weights = {**text_weights(**TEXT), **vit_weights(**VISION), **change}
    with pytest.raises(ValueError, match=message):
        from_open_clip({name: value for name, value in weights.items() if value is not None}, hidden_act="gelu")


def test_sizes_that_openai_keeps_as_tensors_are_left_out() -> None:
    weights = {**text_weights(**TEXT), **vit_weights(**VISION)}
    weights |= {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    assert from_open_clip(weights, hidden_act="quick_gelu").config.text_config.vocab_size == 50


SIGLIP_SETTINGS = {
    "embed_dim": 64,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 24,
        "timm_model_name": "vit_base_patch32_siglip_256",
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        "width": 64,
        "heads": 1,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    },
}


def as_open_clip(source: SiglipModel) -> dict[str, torch.Tensor]:
    """Return a SiglipModel's weights as open_clip lays them out: its own text tower, timm's image tower."""
    own = source.state_dict()
    text, image = "text_model", "vision_model"
    width = source.config.vision_config.hidden_size
    weights = {
        "logit_scale": own["logit_scale"].squeeze(),
        "logit_bias": own["logit_bias"].squeeze(),
        "text.token_embedding.weight": own[f"{text}.embeddings.token_embedding.weight"],
        "text.positional_embedding": own[f"{text}.embeddings.position_embedding.weight"],
        "visual.trunk.pos_embed": own[f"{image}.embeddings.position_embedding.weight"][None],
        "visual.trunk.attn_pool.latent": own[f"{image}.head.probe"],
    }
    for part in ("weight", "bias"):
        stacked = own[f"{image}.head.attention.in_proj_{part}"]
        moved = {
            "text.ln_final": f"{text}.final_layer_norm",
            "text.text_projection": f"{text}.head",
            "visual.trunk.patch_embed.proj": f"{image}.embeddings.patch_embedding",
            "visual.trunk.norm": f"{image}.post_layernorm",
            "visual.trunk.attn_pool.proj": f"{image}.head.attention.out_proj",
            "visual.trunk.attn_pool.norm": f"{image}.head.layernorm",
            "visual.trunk.attn_pool.mlp.fc1": f"{image}.head.mlp.fc1",
            "visual.trunk.attn_pool.mlp.fc2": f"{image}.head.mlp.fc2",
        }
        for layer in range(2):
            ours, theirs = f"{text}.encoder.layers.{layer}", f"text.transformer.resblocks.{layer}"
            moved |= {f"{theirs}.ln_{number}": f"{ours}.layer_norm{number}" for number in (1, 2)}
            moved |= {f"{theirs}.attn.out_proj": f"{ours}.self_attn.out_proj"}
            moved |= {f"{theirs}.mlp.c_fc": f"{ours}.mlp.fc1", f"{theirs}.mlp.c_proj": f"{ours}.mlp.fc2"}
            qkv = [own[f"{ours}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            weights[f"{theirs}.attn.in_proj_{part}"] = torch.cat(qkv)
            ours, theirs = f"{image}.encoder.layers.{layer}", f"visual.trunk.blocks.{layer}"
            moved |= {f"{theirs}.norm{number}": f"{ours}.layer_norm{number}" for number in (1, 2)}
            moved |= {f"{theirs}.attn.proj": f"{ours}.self_attn.out_proj"}
            moved |= {f"{theirs}.mlp.fc{number}": f"{ours}.mlp.fc{number}" for number in (1, 2)}
            qkv = [own[f"{ours}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            weights[f"{theirs}.attn.qkv.{part}"] = torch.cat(qkv)
        weights |= {f"{theirs}.{part}": own[f"{ours}.{part}"] for theirs, ours in moved.items()}
        weights[f"visual.trunk.attn_pool.q.{part}"] = stacked[:width]
        weights[f"visual.trunk.attn_pool.kv.{part}"] = stacked[width:]
    return weights


@pytest.fixture
def siglip(randomize: Callable) -> SiglipModel:
    """A tiny SiglipModel with heads of the usual width."""
    sizes = {"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1, "hidden_size": 64}
    source = SiglipModel(
        SiglipConfig(
            text_config={**sizes, "vocab_size": 50, "max_position_embeddings": 12},
            vision_config={**sizes, "patch_size": 8, "image_size": 24},
        )
    )
    return randomize(source)


def test_siglip(siglip: SiglipModel, assert_equal_outputs: Callable, reload: Callable) -> None:
    weights = as_open_clip(siglip)
    assert len(weights) == 2 + 2 + 2 + 2 * (8 + 2 + 2 * 12)
    inputs = {"input_ids": torch.randint(50, (4, 12)), "pixel_values": torch.randn(3, 3, 24, 24)}
    converted = from_open_clip(weights, SIGLIP_SETTINGS)
    assert_equal_outputs(siglip, converted, inputs)
    assert_equal_outputs(siglip, reload(converted), inputs)


def test_siglips_activations_are_those_of_its_settings(siglip: SiglipModel) -> None:
    weights, settings = as_open_clip(siglip), copy.deepcopy(SIGLIP_SETTINGS)
    del settings["text_cfg"]["act_kwargs"]
    settings["vision_cfg"]["timm_model_name"] = "vit_base_patch16_siglip_224"
    config = from_open_clip(weights, settings).config
    assert (config.text_config.hidden_act, config.image_config.hidden_act) == ("gelu", "gelu")
    with pytest.raises(ValueError, match="tells its activations: pass open_clip's model_cfg"):
        from_open_clip(weights)
    settings["vision_cfg"]["timm_pool"] = "avg"
    with pytest.raises(ValueError, match=r"with vision_cfg\.timm_pool='avg'"):
        from_open_clip(weights, settings)


def open_clip_model(name: str, device: str) -> tuple[nn.Module, dict]:
    """Return open_clip's model of a name, with random weights, and its settings."""
    open_clip = pytest.importorskip("open_clip", reason="compares with open_clip itself")
    settings = open_clip.get_model_config(name)
    arguments = {key: value for key, value in settings.items() if key != "custom_text"}
    with torch.device(device):
        return (open_clip.CustomTextCLIP if settings.get("custom_text") else open_clip.CLIP)(
            **arguments
        ).eval(), settings


@pytest.mark.parametrize(
    "name",
    [
        *("ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14"),
        *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
        *("ViT-B-16-SigLIP", "ViT-L-16-SigLIP-384", "ViT-SO400M-14-SigLIP-384", "ViT-B-16-SigLIP2"),
    ],
)
def test_every_size_of_open_clip_comes_in(name: str) -> None:
    """Without numbers: every weight has its place, and its shape."""
    source, settings = open_clip_model(name, "meta")
    with torch.device("meta"):
        config = from_open_clip(source.state_dict(), settings).config
    assert config.projection_dim == settings["embed_dim"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-32-quickgelu", "RN50", "ViT-B-16-SigLIP"])
def test_open_clips_models_in_numbers(name: str, randomize: Callable) -> None:
    source, settings = open_clip_model(name, "cpu")
    randomize(source)
    text, size = settings["text_cfg"], settings["vision_cfg"]["image_size"]
    ids = token_ids(text["vocab_size"], text["context_length"])
    inputs = {"input_ids": ids, "pixel_values": torch.randn(3, 3, size, size)}
    with torch.no_grad():
        text_embeds = source.encode_text(ids, normalize=True)
        image_embeds = source.encode_image(inputs["pixel_values"], normalize=True)
    converted = from_open_clip(source.state_dict(), settings)
    for scalar in ("logit_scale", "logit_bias"):
        if scalar in converted.state_dict():
            nn.init.constant_(getattr(converted, scalar), 1.0 if scalar == "logit_scale" else 0.0)
    assert_agrees(converted, text_embeds, image_embeds, inputs, scale=1.0)

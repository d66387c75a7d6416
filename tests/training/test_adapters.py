"""LoRA on the text tower of any dual encoder: what is trained, what is saved, what comes back."""

import copy

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig

from xmodal_hf import ImageTextConfig, ImageTextDualEncoder
from xmodal_hf.training.adapters import add_lora, lora_targets, save_adapter
from xmodal_hf.training.arguments import LoraArguments

SHAPE = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
LAYERS = {  # linear layers of one block
    "bert": 6,
    "roberta": 6,
    "mpnet": 6,
    "clip_text_model": 6,
    "siglip_text_model": 6,
    "distilbert": 6,
    "modernbert": 4,
    "t5": 6,
}


def build(model_type="bert", **config):
    torch.manual_seed(0)
    shape = SHAPE | TOKENS
    if model_type == "t5":
        shape |= {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    if model_type == "distilbert":
        shape |= {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2}
    text = AutoConfig.for_model(model_type, **shape)
    image = AutoConfig.for_model("vit", image_size=8, patch_size=4, **{**SHAPE, "num_hidden_layers": 1})
    configuration = ImageTextConfig(text_config=text, image_config=image, projection_dim=12, **config)
    return ImageTextDualEncoder(configuration).eval()


def disturbed(model):
    """Give every trainable parameter another value."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 40, (4, 6), generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(4, 3, 8, 8, generator=generator),
    }


@pytest.mark.parametrize("model_type", LAYERS)
def test_layers_of_any_tower_are_found_and_come_back(model_type, inputs, tmp_path):
    base = build(model_type)
    model = disturbed(add_lora(copy.deepcopy(base), LoraArguments(lora_rank=2))).eval()
    adapted = model.targeted_module_names
    assert len(adapted) == 2 * LAYERS[model_type] and all(name.startswith("text_model.") for name in adapted)
    output = model(**inputs)
    assert (output.text_embeds - base(**inputs).text_embeds).abs().max() > 1e-2
    save_adapter(model, tmp_path, base="somebody/base")

    loaded = PeftModel.from_pretrained(build(model_type), tmp_path).eval()
    assert loaded.peft_config["default"].base_model_name_or_path == "somebody/base"
    for name in ("text_embeds", "image_embeds", "logits_per_text"):
        assert torch.equal(loaded(**inputs)[name], output[name])
    merged = model.merge_and_unload()
    assert type(merged) is ImageTextDualEncoder
    torch.testing.assert_close(merged(**inputs).logits_per_text, output.logits_per_text, rtol=1e-5, atol=1e-5)


def test_what_is_trained_and_saved(tmp_path):
    model = add_lora(build(logit_bias_init_value=-10.0), LoraArguments(lora_rank=2))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    others = {name for name in trained if "lora_" not in name}
    assert others == {
        "base_model.model.logit_scale",
        "base_model.model.logit_bias",
        "base_model.model.text_projection.modules_to_save.default.weight",
        "base_model.model.image_projection.modules_to_save.default.weight",
    }
    save_adapter(model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert (
        len(saved) == len(trained) and {"base_model.model.logit_scale", "base_model.model.logit_bias"} <= saved.keys()
    )
    assert not (tmp_path / "model.safetensors").exists()


def test_targets_of_ones_own():
    model = add_lora(build(), LoraArguments(lora_rank=2, lora_target_modules=r"text_model\..*\.query"))
    assert len(model.targeted_module_names) == 2
    with pytest.raises(
        ValueError, match="--lora_target_modules 'quer' matches no layer; the text tower's are matched by"
    ):
        add_lora(build(), LoraArguments(lora_rank=2, lora_target_modules="quer"))
    with pytest.raises(ValueError, match="pass --lora_rank"):
        add_lora(build(), LoraArguments())
    assert "attention" in lora_targets(build())


def test_scale_defaults_to_twice_the_rank():
    assert add_lora(build(), LoraArguments(lora_rank=3)).peft_config["default"].lora_alpha == 6
    assert add_lora(build(), LoraArguments(lora_rank=3, lora_alpha=5)).peft_config["default"].lora_alpha == 5

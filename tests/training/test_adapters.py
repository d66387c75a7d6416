"""LoRA on the text tower of any dual encoder: what is trained, what is saved, what comes back."""

import copy
import json
import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, ResNetConfig, SiglipTextConfig, SiglipTextModel

from xmodal_hf import ImageTextConfig, ImageTextDualEncoder, SentenceEncoder
from xmodal_hf.evaluation.adapters import adapter_base, is_adapter, load_adapted, processor_source
from xmodal_hf.evaluation.loading import load_embedder, model_identity
from xmodal_hf.training.adapters import add_lora, lora_targets, save_adapter
from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    LoraArguments,
    TextModelArguments,
    check_trains_new_tower,
)
from xmodal_hf.training.building import build_dual_encoder, build_processor

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


def siglip_sentence_encoder(head="mlp"):
    """A tower with a layer named `head`, as the sentence encoder has one."""
    config = SiglipTextConfig(
        vocab_size=40, max_position_embeddings=16, projection_size=16, hidden_size=16, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=24,
    )  # fmt: skip
    return SentenceEncoder.from_text_pretrained(SiglipTextModel(config), pooling="mean", head=head)


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_a_layer_whose_name_ends_another_s_is_trained_alone(head, inputs, tmp_path):
    base = siglip_sentence_encoder(head)
    model = add_lora(copy.deepcopy(base), LoraArguments(lora_rank=2)).train()
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    model(**texts).pooler_output.square().sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(parameter.grad is not None for parameter in trained.values())
    assert {name.split(".")[2] for name in trained if "lora_" not in name} == {"head"}
    output = disturbed(model).eval()(**texts)
    save_adapter(model, tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == len(trained)
    assert not any("text_model.head" in name for name in saved)
    for loaded in (PeftModel.from_pretrained(copy.deepcopy(base), tmp_path), model.merge_and_unload()):
        torch.testing.assert_close(loaded.eval()(**texts).text_embeds, output.text_embeds, rtol=1e-5, atol=1e-6)


def with_batch_norm():
    """A dual encoder whose image tower has running statistics."""
    torch.manual_seed(0)
    text = AutoConfig.for_model("bert", **SHAPE, **TOKENS)
    image = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    return ImageTextDualEncoder(ImageTextConfig(text_config=text, image_config=image, projection_dim=12)).eval()


def test_the_image_tower_is_trained_and_comes_back(inputs, tmp_path):
    base = with_batch_norm()
    inputs = {**inputs, "pixel_values": torch.randn(4, 3, 32, 32)}
    model = add_lora(copy.deepcopy(base), LoraArguments(lora_rank=2, train_modality=True))
    tower = [name for name, parameter in model.named_parameters() if "image_model" in name and parameter.requires_grad]
    assert len(tower) == len(list(base.image_model.parameters()))
    model.train()(**inputs, return_loss=True).loss.backward()  # moves the running statistics
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    output = disturbed(model).eval()(**inputs)
    assert (output.image_embeds - base(**inputs).image_embeds).abs().max() > 1e-2
    base.save_pretrained(tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"))
    loaded = [
        PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "adapter"),
        ImageTextDualEncoder.from_pretrained(tmp_path / "adapter"),
        load_adapted(tmp_path / "adapter"),
        load_adapted(tmp_path / "adapter", merge=True),
    ]
    for found in loaded:
        for name in ("text_embeds", "image_embeds", "logits_per_text"):
            torch.testing.assert_close(found.eval()(**inputs)[name], output[name], rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in loaded[-1].parameters())
    with pytest.raises(ValueError, match="a SentenceEncoder has no image or audio tower"):
        add_lora(siglip_sentence_encoder(), LoraArguments(lora_rank=2, train_modality=True))


def test_a_tower_from_scratch_needs_to_be_trained():
    lora = LoraArguments(lora_rank=2, lora_merge=True)
    for modality in ("image", "audio"):
        with pytest.raises(ValueError, match=f"trains nothing of the {modality} tower.*--train_modality"):
            check_trains_new_tower(ContrastiveArguments(), lora, modality)
        check_trains_new_tower(ContrastiveArguments(), LoraArguments(lora_rank=2, train_modality=True), modality)
        check_trains_new_tower(ContrastiveArguments(**{f"{modality}_model": "somebody/tower"}), lora, modality)
        check_trains_new_tower(ContrastiveArguments(model="somebody/base"), lora, modality)
    check_trains_new_tower(ContrastiveArguments(), LoraArguments(), "image")
    with pytest.raises(ValueError, match="--train_modality goes with --lora_rank"):
        LoraArguments(train_modality=True)


def test_targets_are_in_the_text_tower():
    matched = {name for name, _ in build().named_modules() if re.fullmatch(lora_targets(build()), name)}
    linear = {
        name for name, part in build().text_model.named_modules(prefix="text_model") if isinstance(part, nn.Linear)
    }
    assert matched == {name for name in linear if "pooler" not in name}
    with pytest.raises(ValueError, match=r"matches image_model.*, which is not in the text tower"):
        add_lora(build(), LoraArguments(lora_rank=2, lora_target_modules=r".*\.query|.*\.q_proj"))


@pytest.fixture
def adapter(image_text_folder, tmp_path):
    """Folder of an adapter whose base has a processor."""
    model = add_lora(ImageTextDualEncoder.from_pretrained(image_text_folder), LoraArguments(lora_rank=2))
    save_adapter(disturbed(model), tmp_path / "adapter", str(image_text_folder))
    return tmp_path / "adapter"


def test_an_adapter_is_taken_where_a_model_is(adapter, image_text_folder, images):
    assert is_adapter(adapter) and not is_adapter(image_text_folder)
    assert processor_source(adapter) == adapter_base(adapter) == str(image_text_folder)
    expected = load_adapted(adapter, merge=True).eval()
    embedder = load_embedder(str(adapter), device="cpu")
    base = load_embedder(str(image_text_folder), device="cpu")
    assert abs(embedder.encode_text(["a red apple"]) - base.encode_text(["a red apple"])).max() > 1e-3
    contrastive = ContrastiveArguments(model=str(adapter))
    processor = build_processor(contrastive, "image", lambda: pytest.fail("a tokenizer was built"))
    built = build_dual_encoder(TextModelArguments(), contrastive, processor).eval()
    assert all(parameter.requires_grad for name, parameter in built.named_parameters())
    inputs = processor(text=["a red apple"], images=images[:1], return_tensors="pt")
    for name in ("text_embeds", "image_embeds"):
        assert torch.equal(built(**inputs)[name], expected(**inputs)[name])
    found = torch.as_tensor(embedder.encode_text(["a red apple"]))
    torch.testing.assert_close(found, expected(**inputs).text_embeds, rtol=1e-5, atol=1e-6)
    identity = model_identity(str(adapter))
    assert identity.endswith(f" on {model_identity(str(image_text_folder))}")


def test_an_adapter_of_an_adapter(adapter, tmp_path):
    first = load_adapted(adapter, merge=True)
    second = disturbed(add_lora(copy.deepcopy(first), LoraArguments(lora_rank=2)))
    save_adapter(second, tmp_path / "second", str(adapter))
    ids = torch.tensor([[2, 5, 3]])
    found = load_adapted(tmp_path / "second", merge=True).eval()(input_ids=ids).text_embeds
    torch.testing.assert_close(found, second.eval()(input_ids=ids).text_embeds, rtol=1e-5, atol=1e-6)


def test_a_base_that_is_gone_is_named(adapter, image_text_folder):
    image_text_folder.rename(image_text_folder.with_name("elsewhere"))
    with pytest.raises(
        OSError, match=r"belongs to the model .*image_text, which cannot be loaded.*Put that model there"
    ):
        load_embedder(str(adapter), device="cpu")
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace(json.dumps(str(image_text_folder)), "null"))
    with pytest.raises(ValueError, match="does not say which model it belongs to"):
        load_adapted(adapter)


def test_the_card_is_ours(adapter, tmp_path):
    text = (adapter / "README.md").read_text(encoding="utf-8")
    assert "[More Information Needed]" not in text and "load_adapted" in text and str(tmp_path) not in text
    (adapter / "README.md").write_text("mine", encoding="utf-8")
    model = load_adapted(adapter)
    save_adapter(model, adapter, "somebody/base")
    assert (adapter / "README.md").read_text(encoding="utf-8") == "mine"
    save_adapter(model, tmp_path / "other", "somebody/base")
    assert "base_model: somebody/base\n" in (tmp_path / "other" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_peft_wraps_for_feature_extraction(pooling, make_sentence_encoder, make_image_text, make_text_batch):
    batch = make_text_batch()
    for model in (make_sentence_encoder(pooling=pooling), make_image_text(text_pooling=pooling)):
        expected = model(**batch).text_embeds
        embeds = model.get_input_embeddings()(batch["input_ids"])
        found = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).text_embeds
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        config = LoraConfig(r=2, target_modules=r"text_model\..*\.query", task_type="FEATURE_EXTRACTION")
        wrapped = get_peft_model(model, config)
        assert torch.equal(wrapped(**batch).text_embeds, expected)  # LoRA begins at zero
        assert isinstance(wrapped(**batch, return_dict=False), tuple)
        wrapped.train()(**batch).text_embeds[:, 0].sum().backward()
        assert any(parameter.grad is not None for name, parameter in wrapped.named_parameters() if "lora_" in name)


def test_embeddings_that_cannot_take_the_place_of_ids(make_sentence_encoder, make_text_batch):
    embeds = torch.randn(2, 5, 32)
    with pytest.raises(ValueError, match="pass one of them, not both"):
        make_sentence_encoder()(**make_text_batch(), inputs_embeds=embeds)
    with pytest.raises(ValueError, match=r"must be a tensor \(batch, tokens, hidden\)"):
        make_sentence_encoder()(inputs_embeds=embeds[0])
    with pytest.raises(ValueError, match="the pooling eos finds the end of a text by its id"):
        make_sentence_encoder(pooling="eos")(inputs_embeds=embeds)
    with pytest.raises(ValueError, match="CLIPTextModel takes no inputs_embeds"):
        make_sentence_encoder("clip_text")(inputs_embeds=embeds)


def test_a_tower_that_stays_random_is_named(caplog, tmp_path):
    add_lora(build(), LoraArguments(lora_rank=2, train_modality=True))
    assert not caplog.records
    model = build()
    add_lora(copy.deepcopy(model), LoraArguments(lora_rank=2))
    (record,) = caplog.records
    assert "image tower was not loaded" in record.message and "--train_modality" in record.message
    caplog.clear()
    model.save_pretrained(tmp_path)
    add_lora(ImageTextDualEncoder.from_pretrained(tmp_path), LoraArguments(lora_rank=2))
    assert not caplog.records

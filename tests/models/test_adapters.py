"""LoRA on the language encoder only, through the outer model."""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from xmodal_hf import ImageTextDualEncoder

# A list of layer names would adapt the image tower too.
LORA = {"r": 4, "lora_alpha": 8, "target_modules": r"text_model\..*\.(query|value)", "init_lora_weights": False}


def test_lora_on_the_text_tower(
    tmp_path: Path, image_text_model: ImageTextDualEncoder, make_text_batch: Callable, make_images: Callable
) -> None:
    image_text_model.save_pretrained(tmp_path / "base")
    batch = {**make_text_batch(), "pixel_values": make_images()}
    before = image_text_model(**batch)
    model = get_peft_model(image_text_model, LoraConfig(**LORA))
    trainable = {name: value.clone() for name, value in model.named_parameters() if value.requires_grad}
    assert len(trainable) == 8 and all(".text_model.encoder" in name and "lora_" in name for name in trainable)

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.train()
    model(**batch, return_loss=True).loss.backward()
    optimizer.step()
    model.eval()
    assert all(not torch.equal(model.get_parameter(name), value) for name, value in trainable.items())
    after = model(**batch)
    assert (after.text_embeds - before.text_embeds).abs().max() > 1e-3
    assert torch.equal(after.image_embeds, before.image_embeds)

    model.save_pretrained(tmp_path / "adapter")
    base = ImageTextDualEncoder.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    torch.testing.assert_close(loaded(**batch).text_embeds, after.text_embeds, atol=1e-6, rtol=1e-5)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(**batch).text_embeds, after.text_embeds, atol=1e-5, rtol=1e-4)
    assert type(merged) is ImageTextDualEncoder


def test_a_merged_tower_can_be_joined_and_saved(
    image_text_model: ImageTextDualEncoder, make_text_batch: Callable, reload: Callable
) -> None:
    merged = get_peft_model(image_text_model, LoraConfig(**LORA)).merge_and_unload()
    batch = make_text_batch()
    expected = merged(**batch).text_model_output.pooler_output
    model = ImageTextDualEncoder.from_text_image_pretrained(merged, merged, projection_dim=8).eval()
    assert torch.equal(model(**batch).text_model_output.pooler_output, expected)
    reload(model)


def test_gradient_checkpointing_with_adapters(
    image_text_model: ImageTextDualEncoder, make_text_batch: Callable, make_images: Callable
) -> None:
    """Frozen embeddings give checkpointed layers no gradient unless their output asks for one."""
    batch = {**make_text_batch(), "pixel_values": make_images()}
    model = get_peft_model(image_text_model, LoraConfig(**LORA)).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    model(**batch, return_loss=True).loss.backward()
    assert all(
        value.grad is not None and value.grad.abs().sum() > 0 for value in model.parameters() if value.requires_grad
    )

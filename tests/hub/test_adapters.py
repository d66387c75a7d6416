"""A LoRA checkpoint becomes an adapter on the Hub; peft, our classes and our function load it, merged or not."""

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, PreTrainedModel

from xmodal_hf import AudioTextDualEncoder, ImageTextDualEncoder, SentenceEncoder
from xmodal_hf.hub.adapters import is_adapter, load_adapted, stage_adapter
from xmodal_hf.hub.arguments import CardArguments
from xmodal_hf.hub.publish import push_folder
from xmodal_hf.hub.safety import UnsafeFolderError
from xmodal_hf.hub.staging import stage_checkpoint, stage_text_encoder
from xmodal_hf.models.conversion import from_transformers
from xmodal_hf.training.adapters import add_lora, save_adapter
from xmodal_hf.training.arguments import LoraArguments

BASE = "someone/base"
CARD = CardArguments(license="mit", language=["en"], base_models=[BASE])
RESULTS = {
    "retrieval": {"text_to_image_r@1": 12.5, "text_to_image_r@1_ci95_low": 10.0, "text_to_image_r@1_ci95_high": 15.0},
    "meta": {"dataset": "openmoji", "split": "test"},
}
RECIPE = {"objective": "clip", "batch_size": 64, "learning_rate": 1e-4, "model": BASE, "dataset": "openmoji"}


def trained_adapter(base: PreTrainedModel) -> PeftModel:
    """Return an adapter with values that training could have given to all it trains; `base` stays as it is."""
    adapted = add_lora(copy.deepcopy(base), LoraArguments(lora_rank=2))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return adapted.eval()


def write_checkpoint(adapted: PeftModel, folder: Path, base: str | None = None) -> Path:
    """Write what a training script leaves: the adapter, a processor's file, recipe, summary, results."""
    save_adapter(adapted, folder, base)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps({"steps": 10, "command": f"train.py {folder}"}), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    (folder / "processor_config.json").write_text("{}", encoding="utf-8")
    (folder / "log.jsonl").write_text("{}\n", encoding="utf-8")
    return folder


def embeds(model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return embeddings, scale and logits, whichever there are."""
    with torch.no_grad():
        outputs = model(**inputs)
    names = ("text_embeds", "image_embeds", "audio_embeds", "logit_scale", "logits_per_text")
    return [outputs[name] for name in names if name in outputs]


def assert_equal(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Assert that outputs are equal to 1e-6, logits in relation to their size."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_what_takes_a_whole_model_only(tmp_path: Path) -> None:
    """The language encoder alone, for one."""
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ValueError, match="is an adapter, and a whole model is needed: train with --lora_merge, or merge"
    ):
        stage_text_encoder(tmp_path, tmp_path / "staged", "someone/text", CARD)


@pytest.fixture
def image_inputs(make_text_batch: Callable, make_images: Callable) -> dict[str, torch.Tensor]:
    """Four texts and four images."""
    return {**make_text_batch(), "pixel_values": make_images()}


@pytest.fixture
def checkpoint(image_text_model: ImageTextDualEncoder, tmp_path: Path) -> Path:
    """What a training script left of an adapter whose base was a folder."""
    image_text_model.save_pretrained(tmp_path / "base")
    return write_checkpoint(trained_adapter(image_text_model), tmp_path / "run", str(tmp_path / "base"))


def test_what_is_published(checkpoint: Path, tmp_path: Path) -> None:
    assert is_adapter(checkpoint) and not is_adapter(tmp_path / "base")
    before = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    folder = stage_adapter(checkpoint, tmp_path / "staged", "someone/adapter", CARD)
    names = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert {path.name for path in folder.iterdir()} == names | {"recipe.yaml", "run.json", "results.json"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.iterdir() if path.suffix != ".safetensors")
    assert {path.name: path.read_bytes() for path in checkpoint.iterdir()} == before


def test_the_card(checkpoint: Path, tmp_path: Path) -> None:
    folder = stage_adapter(checkpoint, tmp_path / "staged", "someone/adapter", CARD)
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert data["base_model"] == BASE and data["base_model_relation"] == "adapter"
    assert (data["library_name"], data["license"], data["language"]) == ("peft", "mit", ["en"])
    assert {"lora", "xmodal_hf", "image"} <= set(data["tags"])
    assert card.data.eval_results[0].metric_value == 12.5
    numbers = sum(value.numel() for value in load_file(folder / "adapter_model.safetensors").values())
    for said in (f"{numbers:,} numbers", "rank 2", "10.00 to 15.00", "| batch_size | 64 |", "`text_projection`"):
        assert said in card.text
    assert "{{" not in card.text and "None" not in card.text
    for code in re.findall(r"```python\n(.*?)```", card.text, re.DOTALL):
        compile(code, "card", "exec")


def test_a_bare_adapter_has_a_card_too(image_text_model: ImageTextDualEncoder, tmp_path: Path) -> None:
    save_adapter(trained_adapter(image_text_model), tmp_path / "run", BASE)
    folder = stage_adapter(tmp_path / "run", tmp_path / "staged", "someone/adapter", CardArguments())
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == BASE and "Results" not in card.text and "recipe.yaml" not in card.text


@pytest.mark.parametrize("base", [None, "outputs/base", "/outputs/base", "../climbs/out", "a/b/c"])
def test_a_base_that_nobody_else_has_is_refused(
    base: str | None, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outputs" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = base
    (checkpoint / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="publish the base first, and pass its id with --base_models"):
        stage_adapter(checkpoint, tmp_path / "staged", "someone/adapter", CardArguments())
    assert not (tmp_path / "staged").exists()


def test_a_base_that_was_a_folder_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Though its name could be an id, and it is not here."""
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "models/clip"
    (checkpoint / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (checkpoint / "run.json").write_text(json.dumps({"local_sources": ["models/clip"]}), encoding="utf-8")
    with pytest.raises(ValueError, match="the adapter's base is 'models/clip', which others cannot load: publish the"):
        stage_adapter(checkpoint, tmp_path / "staged", "someone/adapter", CardArguments())


def test_how_the_weights_were_chosen(checkpoint: Path, tmp_path: Path) -> None:
    assert "did best" not in (stage_adapter(checkpoint, tmp_path / "last", "a/b", CARD) / "README.md").read_text()
    recipe = RECIPE | {"best_metric": "retrieval.r@10", "eval_split": "dev"}
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    card = (stage_adapter(checkpoint, tmp_path / "best", "a/b", CARD) / "README.md").read_text()
    assert "The released weights are those that did best by `retrieval.r@10` on the dev split of `openmoji`" in card


def test_methods_are_told_and_an_instruction_is_not_lost(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"captions_per_item": 2}), encoding="utf-8")
    card = (stage_adapter(checkpoint, tmp_path / "staged", "a/b", CARD) / "README.md").read_text()
    assert "2 captions of each item were its positives in every step." in card and "zheng2024dreamlip" in card
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"text_prefix": "query: "}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"with --text_prefix 'query: ', .* train with --lora_merge"):
        stage_adapter(checkpoint, tmp_path / "instructed", "a/b", CARD)


def test_unsafe_and_incomplete_adapters_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "recipe.yaml").write_text("token: hf_" + "a" * 34, encoding="utf-8")
    with pytest.raises(UnsafeFolderError, match=r"recipe\.yaml contains an access token"):
        stage_adapter(checkpoint, tmp_path / "staged", "someone/adapter", CARD)
    assert not (tmp_path / "staged").exists()
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    config["auto_mapping"]["base_model_class"] = "LlamaModel"
    (checkpoint / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match="the adapter is for a LlamaModel"):
        stage_adapter(checkpoint, tmp_path / "staged", "someone/adapter", CARD)
    (checkpoint / "adapter_model.safetensors").rename(checkpoint / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        stage_adapter(checkpoint, tmp_path / "staged", "someone/adapter", CARD)


def test_every_way_of_loading_gives_the_same(
    image_text_model: ImageTextDualEncoder, image_inputs: dict, tmp_path: Path
) -> None:
    image_text_model.save_pretrained(tmp_path / "base")
    adapted = trained_adapter(image_text_model)
    expected = embeds(adapted, image_inputs)
    differences = [
        (one - other).abs().max() for one, other in zip(embeds(image_text_model, image_inputs), expected, strict=True)
    ]
    assert min(differences) > 1e-3  # the adapter changes embeddings, logits and the scale
    folder = write_checkpoint(adapted, tmp_path / "adapter", str(tmp_path / "base"))

    assert_equal(embeds(PeftModel.from_pretrained(copy.deepcopy(image_text_model), folder), image_inputs), expected)
    ours = ImageTextDualEncoder.from_pretrained(folder)
    assert type(ours) is ImageTextDualEncoder
    assert_equal(embeds(ours, image_inputs), expected)
    assert_equal(embeds(load_adapted(folder), image_inputs), expected)
    merged = load_adapted(folder, merge=True)
    assert type(merged) is ImageTextDualEncoder and not any("lora" in name for name, _ in merged.named_parameters())
    assert_equal(embeds(merged, image_inputs), expected)
    merged.save_pretrained(tmp_path / "whole")
    assert_equal(embeds(ImageTextDualEncoder.from_pretrained(tmp_path / "whole"), image_inputs), expected)


def test_adapters_of_audio_and_sentences(
    audio_text_model: AudioTextDualEncoder,
    sentence_encoder: SentenceEncoder,
    make_text_batch: Callable,
    make_audio: Callable,
    tmp_path: Path,
) -> None:
    inputs = {"audio": {**make_text_batch(), "input_features": make_audio()}, "text": make_text_batch()}
    for kind, base in {"audio": audio_text_model, "text": sentence_encoder}.items():
        base.save_pretrained(tmp_path / kind / "base")
        adapted = trained_adapter(base)
        folder = write_checkpoint(adapted, tmp_path / kind / "adapter", str(tmp_path / kind / "base"))
        merged = load_adapted(folder, merge=True)
        assert type(merged) is type(base)
        assert_equal(embeds(merged, inputs[kind]), embeds(adapted, inputs[kind]))
        card = ModelCard.load(stage_adapter(folder, tmp_path / kind / "staged", "someone/adapter", CARD) / "README.md")
        assert ("audio" in card.data.tags) == (kind == "audio")


def test_an_adapter_on_a_clip_of_transformers(
    text_config: Callable, image_config: Callable, image_inputs: dict, tmp_path: Path
) -> None:
    parts = {"text_config": text_config("clip_text"), "vision_config": image_config("clip_vision")}
    source = CLIPModel(CLIPConfig(**{name: part.to_dict() for name, part in parts.items()})).eval()
    source.save_pretrained(tmp_path / "clip")
    adapted = trained_adapter(from_transformers(source))
    folder = write_checkpoint(adapted, tmp_path / "adapter", str(tmp_path / "clip"))
    assert_equal(embeds(load_adapted(folder, merge=True), image_inputs), embeds(adapted, image_inputs))


LOAD_FROM_THE_HUB = """
import sys, torch
from peft import PeftModel
from xmodal_hf import ImageTextDualEncoder
from xmodal_hf.hub.adapters import load_adapted
inputs, expected = torch.load(sys.argv[1])
base = ImageTextDualEncoder.from_pretrained("someone/base")
ways = {
    "peft": PeftModel.from_pretrained(base, "someone/adapter"),
    "class": ImageTextDualEncoder.from_pretrained("someone/adapter"),
    "merged": load_adapted("someone/adapter", merge=True),
}
for name, model in ways.items():
    difference = max((model.eval()(**inputs)[key] - value).abs().max().item() for key, value in expected.items())
    print(name, difference < 1e-6)
"""


def test_published_and_loaded_in_a_new_process(
    client: Any,
    run_script: Callable,
    checkpoint: Path,
    image_text_model: ImageTextDualEncoder,
    image_inputs: dict,
    tmp_path: Path,
) -> None:
    expected = ImageTextDualEncoder.from_pretrained(checkpoint)(**image_inputs)
    tensors = {name: expected[name].detach() for name in ("text_embeds", "image_embeds")}
    torch.save((image_inputs, tensors), tmp_path / "expected.pt")
    push_folder(tmp_path / "base", BASE)
    push_folder(stage_adapter(checkpoint, tmp_path / "staged", "someone/adapter", CARD), "someone/adapter")
    done = run_script("-c", LOAD_FROM_THE_HUB, tmp_path / "expected.pt")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["peft True", "class True", "merged True"]


@pytest.mark.slow
def test_loaded_without_this_package(
    image_text_folder: Path, image_text_model: ImageTextDualEncoder, tmp_path: Path, run_with_only: Callable
) -> None:
    """As the card says: the base brings its code, and peft the rest."""
    base = stage_checkpoint(image_text_folder, tmp_path / "base", BASE, CardArguments())
    adapted = trained_adapter(image_text_model)
    folder = stage_adapter(write_checkpoint(adapted, tmp_path / "run"), tmp_path / "adapter", "someone/adapter", CARD)
    code = f"""
from peft import PeftModel
from transformers import AutoModel
base = AutoModel.from_pretrained({str(base)!r}, trust_remote_code=True)
model = PeftModel.from_pretrained(base, {str(folder)!r}).merge_and_unload()
print(model.eval()(input_ids=torch.tensor([[2, 5, 6, 3]])).text_embeds[0].tolist())
"""
    printed = run_with_only(["transformers", "torch", "torchvision", "peft"], code)
    expected = adapted(input_ids=torch.tensor([[2, 5, 6, 3]])).text_embeds[0]
    torch.testing.assert_close(torch.tensor(json.loads(printed)), expected, atol=1e-6, rtol=0)

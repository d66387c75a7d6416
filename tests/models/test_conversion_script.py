"""training_scripts/convert_checkpoint.py: converts, compares by itself, and writes only what is equal."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoProcessor, ClapModel, CLIPModel, PreTrainedModel, PreTrainedTokenizerBase

from xmodal_hf import AudioTextDualEncoder, AudioTextProcessor, ImageTextDualEncoder, ImageTextProcessor
from xmodal_hf.evaluation.adapters import load_adapted
from xmodal_hf.models.conversion import from_transformers, load_dual_processor
from xmodal_hf.training.adapters import add_lora, save_adapter
from xmodal_hf.training.arguments import LoraArguments

SCRIPT = Path(__file__).parents[2] / "training_scripts" / "convert_checkpoint.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks for its annotations
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def clip_folder(
    tmp_path: Path,
    text_config: Callable,
    image_config: Callable,
    randomize: Callable,
    tokenizer: PreTrainedTokenizerBase,
) -> Path:
    """A tiny CLIPModel with its processor."""
    configs = {"text_config": text_config("clip_text"), "vision_config": image_config("clip_vision")}
    config = transformers.CLIPConfig(**{name: part.to_dict() for name, part in configs.items()})
    randomize(CLIPModel(config)).save_pretrained(tmp_path / "clip")
    size = {"height": 16, "width": 16}
    image_processor = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    transformers.CLIPProcessor(image_processor, tokenizer).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def logits(model: PreTrainedModel, processor: transformers.ProcessorMixin, **inputs: list) -> torch.Tensor:
    """Return a model's logits of texts for images or clips."""
    with torch.no_grad():
        return model.eval()(**processor(**inputs, padding=True, return_tensors="pt")).logits_per_text


@pytest.fixture
def adapter_folder(clip_folder: Path, tmp_path: Path) -> Path:
    """An adapter of that CLIPModel, as training saves it with `--lora_rank`, and its processor."""
    adapted = add_lora(from_transformers(CLIPModel.from_pretrained(clip_folder)), LoraArguments(lora_rank=2))
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter += 0.1 * parameter.requires_grad * torch.randn_like(parameter)
    save_adapter(adapted, tmp_path / "adapter", str(clip_folder))
    load_dual_processor(clip_folder).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize(("target", "kind"), [("clip", CLIPModel), ("xmodal_hf", ImageTextDualEncoder)])
def test_an_adapter_becomes_a_whole_model(
    target: str, kind: type, script: ModuleType, adapter_folder: Path, clip_folder: Path, images: list, tmp_path: Path
) -> None:
    script.main(["--model", str(adapter_folder), "--to", target, "--output_dir", str(tmp_path / "out")])
    inputs, processor = {"text": ["rain", "the cat sleeps"], "images": images}, load_dual_processor(adapter_folder)
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert type(model) is kind
    found = logits(model, AutoProcessor.from_pretrained(tmp_path / "out"), **inputs)
    torch.testing.assert_close(found, logits(load_adapted(adapter_folder, merge=True), processor, **inputs))
    assert (found - logits(AutoModel.from_pretrained(clip_folder), processor, **inputs)).abs().max() > 1e-3


def test_the_export_to_onnx_takes_an_adapter(adapter_folder: Path, images: list) -> None:
    from xmodal_hf.training_scripts.export_onnx import load

    model, processor = load(str(adapter_folder))
    inputs = {"text": ["rain"], "images": images}
    expected = logits(load_adapted(adapter_folder, merge=True), processor, **inputs)
    assert isinstance(model, ImageTextDualEncoder) and isinstance(processor, ImageTextProcessor)
    torch.testing.assert_close(logits(model, processor, **inputs), expected)


def test_there_and_back(
    script: ModuleType, clip_folder: Path, images: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    ours, back = tmp_path / "ours", tmp_path / "back"
    script.main(["--model", str(clip_folder), "--output_dir", str(ours)])
    printed = capsys.readouterr().out
    assert "largest differences on random inputs: logits_per_image" in printed
    assert f"{clip_folder} -> ImageTextDualEncoder, " in printed
    script.main(["--model", str(ours), "--to", "clip", "--output_dir", str(back)])

    kinds = {clip_folder: CLIPModel, ours: ImageTextDualEncoder, back: CLIPModel}
    found = []
    for folder, kind in kinds.items():
        model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        assert type(model) is kind
        assert type(processor) is (ImageTextProcessor if folder == ours else transformers.CLIPProcessor)
        found.append(logits(model, processor, text=["rain", "the dog barks"], images=images))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2], found[0], atol=1e-5, rtol=1e-5)


def test_clap(
    script: ModuleType,
    text_config: Callable,
    audio_config: Callable,
    randomize: Callable,
    audio_text_processor: AudioTextProcessor,
    clips: list,
    tmp_path: Path,
) -> None:
    configs = {"text_config": text_config("clap_text"), "audio_config": audio_config("clap_audio")}
    config = transformers.ClapConfig(**{name: part.to_dict() for name, part in configs.items()})
    source = randomize(ClapModel(config))
    source.save_pretrained(tmp_path / "clap")
    parts = (audio_text_processor.feature_extractor, audio_text_processor.tokenizer)
    transformers.ClapProcessor(*parts).save_pretrained(tmp_path / "clap")
    script.main(["--model", str(tmp_path / "clap"), "--output_dir", str(tmp_path / "ours")])
    script.main(["--model", str(tmp_path / "ours"), "--to", "clap", "--output_dir", str(tmp_path / "back")])
    assert type(AutoModel.from_pretrained(tmp_path / "ours")) is AudioTextDualEncoder
    assert type(AutoProcessor.from_pretrained(tmp_path / "ours")) is AudioTextProcessor
    assert type(AutoProcessor.from_pretrained(tmp_path / "back")) is transformers.ClapProcessor
    back = ClapModel.from_pretrained(tmp_path / "back")
    inputs = {"text": ["rain", "the dog barks"], "audio": clips, "sampling_rate": 8000}
    expected = logits(source, audio_text_processor, **inputs)
    torch.testing.assert_close(logits(back, audio_text_processor, **inputs), expected, atol=1e-5, rtol=1e-5)


def test_what_differs_is_not_written(
    script: ModuleType, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import xmodal_hf.models.conversion as conversion

    convert = conversion.load_dual_encoder

    def slightly_wrong(source: PreTrainedModel) -> ImageTextDualEncoder:
        model = convert(source)
        nn.init.constant_(model.logit_scale, model.logit_scale.item() + 1e-3)
        return model

    monkeypatch.setattr(conversion, "load_dual_encoder", slightly_wrong)
    arguments = ["--model", str(clip_folder), "--output_dir", str(tmp_path / "ours")]
    with pytest.raises(SystemExit, match=r"nothing is written: source and result differ .* logits_per_image \d"):
        script.main(arguments)
    assert not (tmp_path / "ours").exists()
    script.main([*arguments, "--no_verify"])
    assert (tmp_path / "ours" / "model.safetensors").exists()


def test_not_a_number_is_not_written(script: ModuleType, clip_folder: Path, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(clip_folder)
    nn.init.constant_(model.text_projection.weight, float("nan"))
    model.save_pretrained(clip_folder)
    with pytest.raises(SystemExit, match="nothing is written"):
        script.main(["--model", str(clip_folder), "--output_dir", str(tmp_path / "ours")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "clap"], "a ClapModel cannot hold this ImageTextDualEncoder"),
        (["--format", "openai"], "--format openai needs a file of weights"),
    ],
)
def test_what_cannot_be_is_said(
    arguments: list[str], message: str, script: ModuleType, clip_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=message):
        script.main(["--model", str(clip_folder), "--output_dir", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()


def test_ours_stays_ours(script: ModuleType, image_text_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="one of ours already: pass --to clip or --to clap"):
        script.main(["--model", str(image_text_folder), "--output_dir", str(tmp_path / "out")])


def test_a_folder_of_nothing(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"neither a config\.json nor open_clip_config\.json"):
        script.main(["--model", str(tmp_path), "--output_dir", str(tmp_path / "out")])


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_a_pickle_that_runs_code_is_refused(script: ModuleType, clip_folder: Path, tmp_path: Path) -> None:
    (clip_folder / "model.safetensors").unlink()
    torch.save({"weight": Evil(tmp_path / "owned")}, clip_folder / "pytorch_model.bin")
    with pytest.raises(SystemExit, match=r"cannot convert .*: Weights only load failed"):
        script.main(["--model", str(clip_folder), "--output_dir", str(tmp_path / "ours")])
    assert not (tmp_path / "owned").exists() and not (tmp_path / "ours").exists()


def test_a_full_disk_is_said(
    script: ModuleType, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", fail)
    with pytest.raises(SystemExit, match=r"cannot convert .*: No space left on device"):
        script.main(["--model", str(clip_folder), "--output_dir", str(tmp_path / "ours")])


def test_files_of_weights(
    script: ModuleType, tokenizer: PreTrainedTokenizerBase, images: list, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.manual_seed(1)
    weights = open_clip_weights()
    folder = tmp_path / "open_clip"
    folder.mkdir()
    save_file(weights, folder / "open_clip_model.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, tmp_path / "cyclip.pt")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    preprocessing = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "interpolation": "bicubic"}
    settings = {"embed_dim": 16, "vision_cfg": {"image_size": 16}, "text_cfg": {"vocab_size": 64}, "quick_gelu": True}
    config = {"model_cfg": settings, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")

    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    with_tokenizer = ["--tokenizer", str(tmp_path / "tokenizer"), "--no_verify"]
    script.main(["--model", str(folder), "--output_dir", str(one), *with_tokenizer])
    script.main(["--model", str(tmp_path / "cyclip.pt"), "--format", "cyclip", "--output_dir", str(two)])
    assert "no processor is written: weights come without a tokenizer" in capsys.readouterr().out
    assert not (two / "processor_config.json").exists()
    script.main(["--model", str(tmp_path / "cyclip.pt"), "--hidden_act", "gelu", "--output_dir", str(three)])

    processor = AutoProcessor.from_pretrained(one)
    assert list(processor.image_processor.image_mean) == [0.4, 0.5, 0.6]
    inputs = {"text": ["rain", "the dog barks"], "images": images}
    expected = logits(AutoModel.from_pretrained(one), processor, **inputs)
    assert torch.equal(logits(AutoModel.from_pretrained(two), processor, **inputs), expected)
    assert (logits(AutoModel.from_pretrained(three), processor, **inputs) - expected).abs().max() > 1e-4

    with pytest.raises(SystemExit, match="hidden_act is None, and no weight tells it"):
        script.main(["--model", str(tmp_path / "cyclip.pt"), "--output_dir", str(tmp_path / "four")])
    with pytest.raises(SystemExit, match="not LAION-CLAP's with HTSAT and RoBERTa"):
        script.main(["--model", str(tmp_path / "cyclip.pt"), "--format", "laion_clap", "--output_dir", str(three)])


def open_clip_weights() -> dict[str, torch.Tensor]:
    """Return a tiny model in open_clip's layout: one block of one head a tower."""
    width, dim = 64, 16
    weights = {
        "token_embedding.weight": torch.randn(64, width),
        "positional_embedding": torch.randn(24, width),
        "text_projection": torch.randn(width, dim) / 8,
        "logit_scale": torch.tensor(2.0),
        "visual.conv1.weight": torch.randn(width, 3, 8, 8) / 14,
        "visual.class_embedding": torch.randn(width),
        "visual.positional_embedding": torch.randn(5, width),
        "visual.proj": torch.randn(width, dim) / 8,
    }
    norms = ["ln_final", "visual.ln_pre", "visual.ln_post"]
    for block in ("transformer.resblocks.0", "visual.transformer.resblocks.0"):
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        shapes = {
            "attn.in_proj_": (192, 64),
            "attn.out_proj.": (64, 64),
            "mlp.c_fc.": (256, 64),
            "mlp.c_proj.": (64, 256),
        }
        for name, (rows, columns) in shapes.items():
            weights[f"{block}.{name}weight"] = torch.randn(rows, columns) * columns**-0.5
            weights[f"{block}.{name}bias"] = torch.randn(rows) / 3
    for name in norms:
        weights |= {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}
    return weights


@pytest.mark.parametrize("model_format", ["open_clip", "cyclip"])
def test_open_clip_itself_is_compared_with(
    model_format: str,
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("open_clip", reason="compares with open_clip itself")
    save_file(open_clip_weights(), tmp_path / "weights.safetensors")
    if model_format == "open_clip":
        tower = {"width": 64, "layers": 1}
        text = {**tower, "context_length": 24, "vocab_size": 64, "heads": 1}
        settings = {"embed_dim": 16, "vision_cfg": {**tower, "image_size": 16, "patch_size": 8}, "text_cfg": text}
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}), encoding="utf-8")
    arguments = ["--model", str(tmp_path / "weights.safetensors"), "--format", model_format]
    script.main([*arguments, "--output_dir", str(tmp_path / "ours")])
    assert "largest differences on random inputs: image_embeds" in capsys.readouterr().out

    monkeypatch.setattr(script, "open_clip_model", lambda *_: None)
    script.main([*arguments, "--output_dir", str(tmp_path / "unseen")])
    assert "not compared with the source itself, whose library is not here" in capsys.readouterr().out


def test_options(script: ModuleType, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        script.main(["--output_dir", "somewhere"])
    assert "--model is required" in capsys.readouterr().err


def test_help_needs_no_torch() -> None:
    run = f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    code = f"import sys, runpy; sys.argv = ['x', '--help']; sys.modules['torch'] = None; {run}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "--hidden_act" in done.stdout, done.stderr

"""The training scripts end to end, as processes of their own: two steps each, on files made here."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from PIL import Image
from transformers import (
    AutoModel,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from xmodal_hf import AudioTextDualEncoder, ImageTextDualEncoder, SentenceEncoder
from xmodal_hf.hub.adapters import load_adapted
from xmodal_hf.models.conversion import load_dual_encoder

SCRIPTS = Path(__file__).parents[2] / "training_scripts"
TEXT = '{"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}'
IMAGE = '{"model_type": "vit", "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}'
AUDIO = '{"model_type": "audio-spectrogram-transformer", "hidden_size": 24, "num_hidden_layers": 1}'
SHORT = ["--max_steps", "2", "--batch_size", "4", "--vocab_size", "300", "--max_length", "8"]


def check_outputs(folder):
    """What every run leaves behind."""
    log = [json.loads(line) for line in (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(log) == 2 and all(np.isfinite(entry["loss"]) for entry in log)
    names = {"config.json", "model.safetensors", "tokenizer.json", "recipe.yaml", "run.json", "loss_curve.png"}
    assert names <= {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "sentences.txt"
    path.write_text(
        "\n".join(f"a {c} {s}" for c in ("red", "blue", "green") for s in ("dot", "bar", "box")), encoding="utf-8"
    )
    return path


@pytest.fixture(scope="module")
def phase1(tmp_path_factory, sentences, interpreters, script_command):
    """Phase 1 through `accelerate launch`, as the README has it."""
    folder = tmp_path_factory.mktemp("phase1")
    launcher = ["-m", "accelerate.commands.accelerate_cli", "launch"]
    args = ["--sentences", sentences, "--text_config", TEXT, "--head", "mlp", "--pooling", "cls", *SHORT]
    command = [*launcher, *script_command("train_sentence_embedding.py", *args, "--output_dir", folder)]
    done = interpreters.run(command, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_phase_1_unsupervised(phase1):
    check_outputs(phase1)
    assert any(phase1.glob("tracker/events*"))  # TensorBoard
    model = SentenceEncoder.from_pretrained(phase1)
    embeds = model.encode(["a red dot", "a blue box"])
    assert embeds.shape == (2, 16) and torch.allclose(embeds.norm(dim=1), torch.ones(2))


def test_phase_1_supervised(run_script, tmp_path):
    triplets = tmp_path / "triplets.csv"
    with triplets.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sent0", "sent1", "hard_neg"])
        writer.writerows([[f"a man number {i}", f"a person {i}", f"no man {i}"] for i in range(8)])
    folder = tmp_path / "out"
    run_script(
        "train_sentence_embedding.py",
        "--triplets",
        triplets,
        "--mlm_weight",
        "0.1",
        "--text_config",
        TEXT,
        *SHORT,
        "--output_dir",
        folder,
    )
    check_outputs(folder)


@pytest.fixture(scope="module")
def image_pairs(tmp_path_factory):
    """A jsonl beside its image files, several captions a row."""
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for index, colour in enumerate(("red", "blue", "green", "white", "black", "grey", "pink", "brown")):
        Image.new("RGB", (20, 16), colour).save(folder / f"{colour}.png")
        rows.append({"image": f"{colour}.png", "captions": [f"a {colour} picture", f"{colour} {index}"]})
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "objective", ["cyclip", *(pytest.param(name, marks=pytest.mark.slow) for name in ("clip", "siglip"))]
)
def test_phase_2_on_images(objective, phase1, run_script, image_pairs, tmp_path):
    args = ["--dataset", image_pairs, "--text_model", phase1, "--image_config", IMAGE, "--image_size", "16"]
    args += ["--projection_dim", "8", "--objective", objective, "--augment", *SHORT]
    if objective == "cyclip":
        args += [
            "--micro_batch_size",
            "2",
            "--num_workers",
            "2",
            "--gradient_checkpointing",
            "--mixed_precision",
            "bf16",
        ]
    done = run_script("train_contrastive.py", *args, "--output_dir", tmp_path)
    check_outputs(tmp_path)
    recipe = yaml.safe_load((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    rates = [recipe[name] for name in ("learning_rate", "text_learning_rate", "modality_learning_rate")]
    assert rates == [5e-4, 5e-5, 5e-4]  # the text tower is phase 1's
    assert "text tower 5e-05, image tower 0.0005, other layers 0.0005" in done.stderr
    model, processor = AutoModel.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(model, ImageTextDualEncoder)
    inputs = processor(text=["a red picture"], images=[Image.new("RGB", (9, 9))], return_tensors="pt")
    assert model(**inputs).logits_per_image.shape == (1, 1)


@pytest.mark.slow
def test_somebodys_clip_gets_a_better_language_encoder(bpe_tokenizer, run_script, image_pairs, sentences, tmp_path):
    """A CLIPModel comes in, is trained jointly with sentences, and a small adapter comes out; or the merged model."""
    tower = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    text = CLIPTextConfig(vocab_size=64, max_position_embeddings=24, bos_token_id=2, eos_token_id=3, **tower)
    config = CLIPConfig(text_config=text, vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **tower))
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16)
    CLIPProcessor(images, bpe_tokenizer).save_pretrained(tmp_path / "clip")

    args = ["--model", tmp_path / "clip", "--dataset", image_pairs, "--sentences", sentences, "--lora_rank", 2, *SHORT]
    run_script("train_contrastive.py", *args, "--output_dir", tmp_path / "adapter")
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json"} <= files
    assert "model.safetensors" not in files
    run_script("train_contrastive.py", *args, "--lora_merge", "--output_dir", tmp_path / "merged")

    processor = AutoProcessor.from_pretrained(tmp_path / "merged")
    inputs = processor(text=["a red picture"], images=[Image.new("RGB", (9, 9))], return_tensors="pt")
    merged = AutoModel.from_pretrained(tmp_path / "merged")
    assert isinstance(merged, ImageTextDualEncoder)
    outputs = [model.eval()(**inputs) for model in (load_adapted(tmp_path / "adapter"), merged)]
    torch.testing.assert_close(outputs[0].text_embeds, outputs[1].text_embeds, rtol=0, atol=1e-5)
    base = load_dual_encoder(tmp_path / "clip").eval()(**inputs)
    assert (base.text_embeds - merged(**inputs).text_embeds).abs().max() > 1e-4


@pytest.mark.slow
def test_phase_2_on_audio_from_scratch(run_script, tmp_path):
    rows = []
    for index in range(8):
        wave = np.sin(np.arange(8000) * (0.05 + 0.01 * index)).astype("float32")
        soundfile.write(tmp_path / f"{index}.wav", wave, 16000)
        rows.append({"audio": f"{index}.wav", "text": f"tone number {index}"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    args = ["--dataset", path, "--modality", "audio", "--text_config", TEXT, "--audio_config", AUDIO]
    args += ["--max_seconds", "1", "--projection_dim", "8", "--report_to", "none", *SHORT]
    run_script("train_contrastive.py", *args, "--output_dir", tmp_path / "out")
    check_outputs(tmp_path / "out")
    assert isinstance(AutoModel.from_pretrained(tmp_path / "out"), AudioTextDualEncoder)
    AutoProcessor.from_pretrained(tmp_path / "out")


def test_an_output_folder_that_cannot_be_made(run_script, sentences, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("", encoding="utf-8")
    options = ["--sentences", sentences, "--output_dir", blocker / "out", *SHORT]
    done = run_script("train_sentence_embedding.py", *options, returncode=2)
    assert "cannot write to --output_dir" in done.stderr


# What takes seconds to import, and none of it is needed to print a manual.
HEAVY = {"torch", "torchaudio", "datasets", "accelerate", "evaluate", "scipy", "sklearn", "matplotlib", "pandas"}


HELP = f"""
import contextlib, io, json, runpy, sys
import xmodal_hf.commands  # what all scripts share
printed = {{}}
for path in sys.argv[1:]:
    script = path.rpartition("/")[2]
    sys.argv, output = [script, "--help"], io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as stop:
        assert stop.code == 0
    heavy = {HEAVY | {"transformers.modeling_utils"}} & set(sys.modules)
    printed[script] = output.getvalue(), sorted(heavy)
print(json.dumps(printed))
"""
ALL_SCRIPTS = sorted(path.name for path in SCRIPTS.glob("*.py"))


@pytest.fixture(scope="module")
def manuals():
    """Script -> what it prints with --help, and what has been imported by then, by it and those before it."""
    command = [sys.executable, "-c", HELP, *(str(SCRIPTS / name) for name in ALL_SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("script", ALL_SCRIPTS)
def test_help_is_the_manual_and_imports_nothing_heavy(script, manuals):
    printed, heavy = manuals[script]
    assert f"usage: {script}" in printed
    assert heavy == []

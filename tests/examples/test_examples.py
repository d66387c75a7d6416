"""Each file of examples/ runs, with tiny models."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor
from xmodal_hf.evaluation import TASKS
from xmodal_hf.losses import LOSSES, clip_loss

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGE = {"model_type": "vit", "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY = {
    "text_config": json.dumps(TEXT | {"intermediate_size": 32}),
    "image_config": json.dumps(IMAGE | {"intermediate_size": 32}),
    **{"image_size": "16", "projection_dim": "8", "vocab_size": "300", "max_length": "8"},
    **{"batch_size": "8", "max_steps": "2", "report_to": "none"},
}
OPTIONS = [part for name, value in TINY.items() for part in (f"--{name}", value)]
STS_TABLES = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb-test", "sickr")
COLOURS = ("red", "blue", "green", "white", "black", "grey", "pink", "brown")


def load_example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    """Take out what an example adds, and put the name of the program back."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    before = [(dictionary, dict(dictionary)) for dictionary in (LOSSES, TASKS)]
    yield
    for dictionary, content in before:
        dictionary.clear()
        dictionary.update(content)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """16 pictures in a folder, and a table of their captions beside them."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    folder.mkdir()
    rows = []
    for number in range(16):
        colour = COLOURS[number % len(COLOURS)]
        Image.new("RGB", (20, 16), colour).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"a {colour} picture, number {number}"})
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def clip(pictures, tmp_path_factory):
    """What the first example trains in one step."""
    folder = tmp_path_factory.mktemp("models") / "clip"
    towers = {"image_config": TINY["image_config"], "image_size": 16}
    load_example("train_from_python").train(str(pictures / "pairs.jsonl"), str(folder), 1, **towers)
    return folder


def trained(folder):
    model, processor = ImageTextDualEncoder.from_pretrained(folder), ImageTextProcessor.from_pretrained(folder)
    return model.eval(), processor


def log_of(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_train_from_python(clip):
    assert len(log_of(clip)) == 1
    model, processor = trained(clip)
    inputs = processor(text=["a red picture"], images=[Image.new("RGB", (20, 16), "red")], return_tensors="pt")
    assert model(**inputs).logits_per_image.shape == (1, 1)
    source = (EXAMPLES / "train_from_python.py").read_text(encoding="utf-8")
    body = re.sub(r'"""(.*?)"""', "", source.split("def train(")[1].split("if __name__")[0], flags=re.DOTALL)
    assert len([line for line in body.splitlines() if line.strip()]) <= 25


def test_custom_loss(pictures, tmp_path):
    example = load_example("custom_loss")
    data = ["--dataset", str(pictures / "pairs.jsonl"), "--output_dir", str(tmp_path)]
    example.main([*data, "--smoothing", "0.25", *OPTIONS])
    for line in log_of(tmp_path):
        assert line["loss"] == pytest.approx(0.75 * line["contrastive_loss"] + 0.25 * line["uniform_loss"], rel=1e-5)
    assert "smoothing: 0.25" in (tmp_path / "recipe.yaml").read_text(encoding="utf-8")
    # The closed form: cross-entropy with targets (1 - s) one-hot + s / N.
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.nn.functional.normalize(torch.randn(5, 4, generator=generator), dim=1) for _ in range(2))
    logits = 3 * first @ second.T
    targets = 0.8 * torch.eye(5) + 0.2 / 5
    cross_entropy = torch.nn.functional.cross_entropy
    expected = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
    loss, _ = example.smoothed_clip(first, second, torch.tensor(3.0), smoothing=0.2)
    torch.testing.assert_close(loss, expected)
    assert abs(loss - clip_loss(first, second, 3.0)) > 0.01


def test_custom_task(sentence_encoder_folder, tmp_path, capsys):
    example = load_example("custom_task")
    (tmp_path / "sts").mkdir()
    for name in STS_TABLES:
        rows = [{"sentence1": f"the {colour} dog sleeps", "sentence2": "rain", "score": 1.0} for colour in COLOURS]
        table = "\n".join(json.dumps(row | {"subset": "test"}) for row in rows)
        (tmp_path / "sts" / f"{name}.jsonl").write_text(table, encoding="utf-8")
    options = ["--model", str(sentence_encoder_folder), "--sts_data", str(tmp_path / "sts"), "--device", "cpu"]
    example.main([*options, "--num_resamples", "0", "--output_dir", str(tmp_path)])
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["word_order"]["num_texts"] == len(COLOURS) and results["word_order"]["mean_distance"] > 0
    assert "word_order" in capsys.readouterr().out


def test_improve_clip_text(clip, pictures, tmp_path):
    sentences = tmp_path / "corpus.txt"
    sentences.write_text("\n".join(f"the {colour} dog sleeps" for colour in COLOURS), encoding="utf-8")
    arguments = [str(clip), str(pictures / "pairs.jsonl"), str(sentences), str(tmp_path / "better")]
    load_example("improve_clip_text").main([*arguments, "--batch_size", "8", "--max_steps", "1", "--report_to", "none"])
    before, after = trained(clip)[0].state_dict(), trained(tmp_path / "better")[0].state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert "text_model" in changed and "image_model" not in changed


def test_search_folder(clip, pictures, capsys):
    example = load_example("search_folder")
    store = pictures.with_name("pictures_clip.npz")
    example.main([str(clip), str(pictures), "a red picture", "a blue picture", "--k", "3"])
    printed = capsys.readouterr().out
    assert printed.count(".png") == 6 and "a blue picture" in printed
    with np.load(store) as kept:
        assert len(kept["names"]) == 16
    # The next search embeds what is new alone.
    Image.new("RGB", (20, 16), "yellow").save(pictures / "new.png")
    embedded = []
    model, processor = trained(clip)
    embedder = example.as_embedder(model, processor)
    encode = embedder.encode_image
    embedder.encode_image = lambda images: encode(embedded.extend(images) or embedded)
    identity = example.model_identity(str(clip))
    names, embeds = example.embed_folder(embedder, pictures, store, identity)
    assert [path.name for path in embedded] == ["new.png"] and embeds.shape == (17, 512) and len(names) == 17
    embedded.clear()
    example.embed_folder(embedder, pictures, store, "another model in that folder")
    assert len(embedded) == 17
    np.savez(store, names=np.array(names), embeds=embeds)  # as the first release did
    embedded.clear()
    example.embed_folder(embedder, pictures, store, identity)
    assert len(embedded) == 17
    (pictures / "new.png").unlink()


def test_the_list_is_whole():
    listed = re.findall(r"\]\((\w+\.py)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))
    tests = Path(__file__).read_text(encoding="utf-8")
    assert all(f"def test_{name.removesuffix('.py')}(" in tests for name in listed)

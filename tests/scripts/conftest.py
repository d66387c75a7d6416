"""Running the real scripts on small made data."""

import json
from pathlib import Path

import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[2] / "training_scripts"
WORDS = ("red", "blue", "green", "white", "black", "grey", "pink", "brown", "gold", "lime", "navy", "teal")
TEXT_CONFIG = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE_CONFIG = {
    "model_type": "vit",
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture(scope="session")
def tower_configs():
    """Configs of a tiny text tower and a tiny image tower."""
    return TEXT_CONFIG | {"intermediate_size": 32}, IMAGE_CONFIG


@pytest.fixture(scope="session")
def script_command():
    """Build a command for `interpreters`: (script, *options) -> list of str."""
    return lambda script, *options: [str(SCRIPTS / script), *map(str, options)]


@pytest.fixture(scope="session")
def run_script(interpreters, script_command):
    """Run a script to its end: -> CompletedProcess, whose standard error is shown when it fails unexpectedly."""

    def run(script, *options, returncode=0):
        done = interpreters.run(script_command(script, *options), timeout=300)
        assert done.returncode == returncode, done.stderr[-4000:]
        return done

    return run


@pytest.fixture(scope="session")
def image_rows(tmp_path_factory):
    """48 pictures in a folder with captions: a jsonl of image and captions."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for index in range(48):
        colour = WORDS[index % len(WORDS)]
        Image.new("RGB", (20 + index, 16), colour).save(folder / f"{index}.png")
        rows.append({"image": f"{index}.png", "captions": [f"a {colour} picture", f"{colour} and number {index}"]})
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def sentence_file(tmp_path_factory):
    """40 sentences in a text file."""
    path = tmp_path_factory.mktemp("sentences") / "sentences.txt"
    path.write_text("\n".join(f"{word} is number {n} here" for word in WORDS[:8] for n in range(5)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_options(image_rows):
    """Options of a tiny image-text model from scratch."""
    return [
        *("--dataset", image_rows, "--text_config", json.dumps(TEXT_CONFIG | {"intermediate_size": 32})),
        *("--image_config", json.dumps(IMAGE_CONFIG), "--image_size", 16, "--projection_dim", 8),
        *("--vocab_size", 300, "--max_length", 8, "--report_to", "none", "--learning_rate", 0.01),
    ]


@pytest.fixture(scope="session")
def tiny_base(run_script, tiny_options, tmp_path_factory):
    """A dual encoder with its processor, saved after one step."""
    folder = tmp_path_factory.mktemp("base")
    run_script("train_contrastive.py", *tiny_options, "--batch_size", 8, "--max_steps", 1, "--output_dir", folder)
    return folder

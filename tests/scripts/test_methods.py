"""Newer methods from the command line: trained, resumed, rehearsed, with a card that names them."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from xmodal_hf import SentenceEncoder

SCRIPTS = Path(__file__).parents[2] / "training_scripts"


@pytest.fixture(scope="module")
def run_main():
    """Run a training script in this process: (script, *options)."""

    def run(script, *options):
        runpy.run_path(str(SCRIPTS / script))["main"]([*map(str, options)])

    return run


def losses(folder):
    log = (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in log]


def weights(folder, model_class=SentenceEncoder):
    return model_class.from_pretrained(folder).state_dict()


def check_resumed(run_main, script, options, folder, model_class=SentenceEncoder):
    """Four steps in one run, and from its state of step 2 in another: the same weights, to the bit."""
    options = [*options, "--report_to", "none", "--max_steps", 4, "--checkpoint_steps", 2]
    run_main(script, *options, "--output_dir", folder / "whole")
    assert len(set(losses(folder / "whole"))) == 4
    shutil.copytree(folder / "whole", folder / "half")
    for path in (folder / "half" / "checkpoints").iterdir():
        if not path.name.endswith("2"):
            shutil.rmtree(path)
    run_main(script, *options, "--output_dir", folder / "half", "--resume", "auto")
    assert losses(folder / "half") == losses(folder / "whole")
    expected, found = weights(folder / "whole", model_class), weights(folder / "half", model_class)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.fixture
def sentence_options(tower_configs):
    text, _ = tower_configs
    options = ["--text_config", json.dumps(text), "--vocab_size", 300, "--max_length", 8, "--batch_size", 8]
    return [*options, "--learning_rate", 0.01]


def test_captions_of_one_item_train_and_resume(run_main, sentence_options, image_rows, tmp_path, capsys):
    options = [*sentence_options, "--paraphrases", image_rows]
    check_resumed(run_main, "train_sentence_embedding.py", options, tmp_path)
    assert yaml.safe_load((tmp_path / "half" / "recipe.yaml").read_text())["paraphrases"] == str(image_rows)
    run_main("train_sentence_embedding.py", *options, "--dry_run", "--output_dir", tmp_path / "none")
    assert "the data cannot be reached" not in capsys.readouterr().out
    made_up = [*sentence_options, "--paraphrases", tmp_path / "nothing.csv"]
    run_main("train_sentence_embedding.py", *made_up, "--dry_run", "--output_dir", tmp_path / "none")
    assert "the data cannot be reached" in capsys.readouterr().out

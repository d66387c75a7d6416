"""Newer methods from the command line: trained, resumed, estimated by a dry run, with a card that names them."""

import json
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from xmodal_hf import ImageTextDualEncoder, SentenceEncoder
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.evaluation.embed import TruncatedEmbedder, embed_pairs
from xmodal_hf.evaluation.loading import load_embedder

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
    options = [*sentence_options, "--paraphrases", image_rows, "--text_prefix", "q: "]
    check_resumed(run_main, "train_sentence_embedding.py", options, tmp_path)
    assert yaml.safe_load((tmp_path / "half" / "recipe.yaml").read_text())["paraphrases"] == str(image_rows)
    general = json.loads((tmp_path / "half" / "config_sentence_transformers.json").read_text())
    assert (general["prompts"], general["default_prompt_name"]) == ({"text": "q: "}, "text")
    run_main("train_sentence_embedding.py", *options, "--dry_run", "--output_dir", tmp_path / "none")
    assert "the data cannot be reached" not in capsys.readouterr().out
    made_up = [*sentence_options, "--paraphrases", tmp_path / "nothing.csv"]
    run_main("train_sentence_embedding.py", *made_up, "--dry_run", "--output_dir", tmp_path / "none")
    assert "the data cannot be reached" in capsys.readouterr().out


@pytest.fixture
def pair_options(image_rows, tower_configs, tmp_path):
    """Options of a tiny image-text model; every other picture has negative captions."""
    rows = [json.loads(line) for line in image_rows.read_text("utf-8").splitlines()]
    for number, row in enumerate(rows):
        row["image"] = str(image_rows.parent / row["image"])
        row["wrong"] = [f"no {row['captions'][0]}", "nothing"] if number % 2 else []
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    text, image = tower_configs
    options = ["--dataset", path, "--text_config", json.dumps(text), "--image_config", json.dumps(image)]
    options += ["--image_size", 16, "--projection_dim", 8, "--vocab_size", 300, "--max_length", 8, "--batch_size", 8]
    return [*options, "--learning_rate", 0.01]


def test_several_captions_and_negative_ones_train_and_resume(run_main, pair_options, tmp_path, capsys):
    options = [*pair_options, "--captions_per_item", 2, "--negative_text_column", "wrong", "--micro_batch_size", 4]
    options += ["--negative_text_weight", 0.5]
    check_resumed(run_main, "train_contrastive.py", options, tmp_path, ImageTextDualEncoder)
    run_main("train_contrastive.py", *options, "--dry_run", "--output_dir", tmp_path / "none")
    assert "the data cannot be reached" not in capsys.readouterr().out
    plain = losses_of_first_step(run_main, [*pair_options, "--freeze", "image"], tmp_path / "plain")
    several = losses_of_first_step(
        run_main, [*pair_options, "--freeze", "image", "--captions_per_item", 2], tmp_path / "two"
    )
    assert plain != several


def losses_of_first_step(run_main, options, folder):
    run_main("train_contrastive.py", *options, "--report_to", "none", "--max_steps", 1, "--output_dir", folder)
    return losses(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--captions_per_item", 0], "--captions_per_item must be at least 1"),
        (
            ["--captions_per_item", 2, "--objective", "cyclip"],
            "--captions_per_item does not go with --objective cyclip",
        ),
        (["--negative_text_column", "wrong", "--objective", "siglip"], "does not go with --objective siglip"),
        (["--negative_text_column", "wrong", "--streaming"], "--negative_text_column and --streaming exclude"),
        (["--negative_text_weight", 1], "--negative_text_weight needs --negative_text_column"),
        (["--negative_text_column", "wrong", "--freeze", "text"], "pass --features off"),
    ],
)
def test_combinations_that_make_no_sense_exit_with_the_fix(run_main, options, message, capsys):
    with pytest.raises(SystemExit):
        run_main("train_contrastive.py", "--dataset", "a", *options)
    assert message in " ".join(capsys.readouterr().err.split())


def test_matryoshka_trains_resumes_and_is_measured_at_each_width(run_main, pair_options, tmp_path):
    options = [*pair_options, "--matryoshka_dims", "8,4", 2]
    check_resumed(run_main, "train_contrastive.py", options, tmp_path, ImageTextDualEncoder)
    out = tmp_path / "results"
    pairs = pair_options[1]
    measure = ["--model", tmp_path / "whole", "--tasks", "retrieval", "--pairs", pairs, "--num_resamples", 5]
    run_main("evaluate_model.py", *measure, "--output_dir", out, "--matryoshka_dims", "4,2")
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {"retrieval", "retrieval_dim4", "retrieval_dim2"} < results.keys()
    assert results["retrieval_dim2"]["num_items"] == results["retrieval"]["num_items"] == 48
    embedder = load_embedder(str(tmp_path / "whole"))
    items = [json.loads(line) for line in Path(pairs).read_text("utf-8").splitlines()]
    found = embed_pairs(TruncatedEmbedder(embedder, 2), load_pairs(pairs))
    whole = embed_pairs(embedder, load_pairs(pairs))
    cut = whole.text_embeds[:, :2] / np.linalg.norm(whole.text_embeds[:, :2], axis=1, keepdims=True)
    assert len(items) == len(found.modality_embeds) and np.allclose(found.text_embeds, cut, atol=1e-5)
    with pytest.raises(ValueError, match="--matryoshka_dims 9: the model's vectors have 8 dimensions"):
        run_main("evaluate_model.py", *measure, "--output_dir", out, "--matryoshka_dims", 9)

"""Newer methods from the command line: trained, resumed, estimated by a dry run, with a card that names them."""

import json
import logging
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

from xmodal_hf import ImageTextDualEncoder, SentenceEncoder
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.evaluation.embed import TruncatedEmbedder, embed_pairs
from xmodal_hf.evaluation.loading import load_embedder
from xmodal_hf.hub.card_training import TrainingRecord, describe_phase, hyperparameters
from xmodal_hf.hub.citations import citations
from xmodal_hf.training.arguments import LORA_RATE

WORDS = ("red", "blue", "green", "white", "black", "grey", "pink", "brown", "gold", "lime", "navy", "teal")
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


@pytest.fixture(scope="module")
def phase_1_folder(run_main, tower_configs, image_rows, tmp_path_factory):
    """A sentence encoder with its tokenizer, saved after one step."""
    folder = tmp_path_factory.mktemp("phase1")
    options = ["--text_config", json.dumps(tower_configs[0]), "--vocab_size", 300, "--max_length", 8, "--max_steps", 1]
    options += ["--paraphrases", image_rows, "--batch_size", 8, "--head", "mlp", "--report_to", "none"]
    run_main("train_sentence_embedding.py", *options, "--output_dir", folder)
    return folder


@pytest.fixture
def adapter_options(phase_1_folder, image_rows):
    options = ["--text_model", phase_1_folder, "--paraphrases", image_rows, "--lora_rank", 2, "--lora_dropout", 0.1]
    return [*options, "--max_length", 8, "--batch_size", 8, "--learning_rate", 0.02]


def test_an_adapter_of_a_sentence_encoder_trains_resumes_and_loads(
    run_main, adapter_options, phase_1_folder, tmp_path, capsys
):
    check_resumed(run_main, "train_sentence_embedding.py", adapter_options, tmp_path)
    whole = tmp_path / "whole"
    assert (whole / "adapter_config.json").is_file() and not (whole / "model.safetensors").exists()
    texts = ["a red picture", "blue and number 1"]
    base = SentenceEncoder.from_pretrained(phase_1_folder).encode(texts)
    found = SentenceEncoder.from_pretrained(whole).eval()
    vectors = load_embedder(str(whole)).encode_text(texts)
    assert np.abs(vectors - base.numpy()).max() > 1e-3
    trained = [name for name in found.state_dict() if "lora_" in name]
    assert len(trained) == 2 * 2 * 6  # A and B of six layers in each of two blocks
    recipe = TrainingRecord.read(whole)
    assert "LoRA adapter of rank 2 and alpha 4." in describe_phase(recipe, follows=False)
    assert any("hu2022lora" in entry for entry in citations([recipe], None))
    run_main("train_sentence_embedding.py", *adapter_options, "--dry_run", "--output_dir", tmp_path / "none")
    parameters = sum(value.numel() for value in SentenceEncoder.from_pretrained(phase_1_folder).parameters())
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("parameters "))
    total, trained_parameters = (int(word.replace(",", "")) for word in line.split() if word[0].isdigit())
    assert total == parameters + trained_parameters and trained_parameters < parameters / 2


def test_a_merged_adapter_is_a_whole_model(run_main, adapter_options, phase_1_folder, tmp_path):
    options = [*adapter_options, "--lora_merge", "--report_to", "none", "--max_steps", 2]
    run_main("train_sentence_embedding.py", *options, "--output_dir", tmp_path)
    before, after = weights(phase_1_folder), weights(tmp_path)
    assert before.keys() == after.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed and {name.split(".")[0] for name in changed} == {"text_model", "head"}
    assert not any("embeddings" in name or "LayerNorm" in name for name in changed)


def test_a_stretched_model_trains_resumes_and_is_measured_on_long_captions(
    run_main, phase_1_folder, tower_configs, tmp_path, caplog
):
    """Captions of about 40 tokens on a CLIP of 24 positions that are stretched to 48."""
    caplog.set_level(logging.INFO, logger="xmodal_hf")
    tokenizer = AutoTokenizer.from_pretrained(phase_1_folder)
    shape = {name: value for name, value in tower_configs[0].items() if name != "model_type"}
    ids = {"bos_token_id": 1, "eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=24, **shape, **ids)
    tokenizer.model_max_length = 24
    for part in (CLIPTextModel(config), tokenizer):
        part.save_pretrained(tmp_path / "clip")
    rows = []
    for number, colour in enumerate(WORDS):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"a picture and {'a number ' * 15}of {colour}"})
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    options = ["--dataset", tmp_path / "long.jsonl", "--text_model", tmp_path / "clip", "--pooling", "last"]
    options += ["--image_config", json.dumps(tower_configs[1]), "--image_size", 16, "--projection_dim", 8]
    options += ["--batch_size", 3, "--learning_rate", 0.01]
    check_resumed(run_main, "train_contrastive.py", [*options, "--max_length", 48], tmp_path, ImageTextDualEncoder)
    assert "24 positions of the text tower are stretched; the first 20 stay" in caplog.text
    assert "texts are longer than" not in caplog.text
    for folder in ("whole", "half"):
        record = TrainingRecord.read(tmp_path / folder)
        assert "positions of the text tower were stretched from 24 to 48, the" in describe_phase(record, follows=False)
        assert any("zhang2024longclip" in entry for entry in citations([record], "image"))
    measure = ["--tasks", "retrieval", "--pairs", tmp_path / "long.jsonl", "--num_resamples", 0]
    for name, said in (("whole", False), ("short", True)):
        if name == "short":  # cut before the colour, so that captions are equal
            run_main(
                "train_contrastive.py",
                *options,
                "--report_to",
                "none",
                "--max_steps",
                1,
                "--output_dir",
                tmp_path / name,
            )
            assert "12 of the first 12 texts are longer than 24 tokens and are cut" in caplog.text
        caplog.clear()
        run_main(
            "evaluate_model.py", "--model", tmp_path / name, *measure, "--output_dir", tmp_path / f"{name}-results"
        )
        assert ("12 of 12 texts are longer than 24 tokens and are cut" in caplog.text) == said
    run_main(
        *("evaluate_model.py", "--model", tmp_path / "short", *measure, "--max_length", 48),
        *("--output_dir", tmp_path / "again"),
    )
    assert "max_length 48: the text tower and its tokenizer take 24 tokens" in caplog.text


@pytest.fixture
def own_precision(phase_1_folder):
    """Accelerate keeps the precision of its first use in a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("own_precision")
def test_frozen_weights_in_bfloat16_change_nothing_and_are_released_in_float32(
    run_main, adapter_options, phase_1_folder, tmp_path, caplog
):
    sts = tmp_path / "sts.csv"
    sts.write_text("sentence1,sentence2,score\na red one,red,4\nblue,a picture,1\ngreen,a green one,5\n")
    options = [*adapter_options, "--lora_merge", "--mixed_precision", "bf16", "--eval_sts", sts, "--eval_steps", 2]
    caplog.set_level(logging.INFO, logger="xmodal_hf")
    check_resumed(
        run_main, "train_sentence_embedding.py", [*options, "--frozen_dtype", "bfloat16"], tmp_path, SentenceEncoder
    )
    assert "frozen weights are kept in bfloat16, which saves" in caplog.text
    run_main("train_sentence_embedding.py", *options, "--report_to", "none", "--max_steps", 4, "--output_dir", tmp_path)
    assert losses(tmp_path) == losses(tmp_path / "whole")
    released = load_file(tmp_path / "whole" / "model.safetensors")
    assert {value.dtype for value in released.values()} == {torch.float32}
    expected, base = weights(tmp_path), weights(phase_1_folder)
    for name, value in weights(tmp_path / "whole").items():  # below the adapter, the weights are rounded
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2.0**-8 * float(base[name].abs().max()))
    record = TrainingRecord.read(tmp_path / "whole")
    assert ("precision of frozen weights", ["bfloat16"]) in hyperparameters([record])
    assert "precision of frozen weights" not in dict(hyperparameters([TrainingRecord.read(tmp_path)]))


@pytest.mark.usefixtures("own_precision")
def test_frozen_weights_in_bfloat16_need_something_frozen(run_main, sentence_options, sentence_file, tmp_path):
    options = [*sentence_options, "--sentences", sentence_file, "--frozen_dtype", "bfloat16", "--report_to", "none"]
    with pytest.raises(SystemExit):
        run_main("train_sentence_embedding.py", *options, "--output_dir", tmp_path)
    with pytest.raises(ValueError, match="--frozen_dtype bfloat16: no tower is frozen"):
        run_main("train_sentence_embedding.py", *options, "--mixed_precision", "bf16", "--output_dir", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--pooling", "max"], "the options change pooling of --text_model"),
        (["--head", "none"], "the options change head of --text_model"),
    ],
)
def test_what_an_adapter_does_not_hold_needs_merging(run_main, adapter_options, changes, message, tmp_path):
    options = [*adapter_options, *changes, "--report_to", "none", "--max_steps", 1]
    with pytest.raises(ValueError, match=f"{message}, which no adapter holds: pass --lora_merge"):
        run_main("train_sentence_embedding.py", *options, "--output_dir", tmp_path / "adapter")
    run_main("train_sentence_embedding.py", *options, "--lora_merge", "--output_dir", tmp_path / "merged")
    assert getattr(SentenceEncoder.from_pretrained(tmp_path / "merged").config, changes[0][2:]) == changes[1]


def test_a_plain_tower_needs_merging(run_main, phase_1_folder, image_rows, tmp_path):
    """As a decoder of the Hub is."""
    tower = tmp_path / "tower"
    SentenceEncoder.from_pretrained(phase_1_folder).text_model.save_pretrained(tower)
    AutoTokenizer.from_pretrained(phase_1_folder).save_pretrained(tower)
    options = ["--text_model", tower, "--paraphrases", image_rows, "--lora_rank", 2, "--report_to", "none"]
    options += ["--max_length", 8, "--batch_size", 8, "--max_steps", 1]
    with pytest.raises(ValueError, match=r"--text_model .*tower is no SentenceEncoder: pass --lora_merge"):
        run_main("train_sentence_embedding.py", *options, "--output_dir", tmp_path / "adapter")
    run_main("train_sentence_embedding.py", *options, "--lora_merge", "--output_dir", tmp_path / "merged")
    assert SentenceEncoder.from_pretrained(tmp_path / "merged").config.pooling == "mean"
    assert yaml.safe_load((tmp_path / "merged" / "recipe.yaml").read_text())["learning_rate"] == LORA_RATE


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


def test_siglip_takes_several_captions_and_negative_ones(run_main, pair_options, tmp_path):
    plain = [*pair_options, "--objective", "siglip", "--micro_batch_size", 4]
    several = [*plain, "--captions_per_item", 2, "--negative_text_column", "wrong", "--negative_text_weight", 0.5]
    check_resumed(run_main, "train_contrastive.py", several, tmp_path, ImageTextDualEncoder)
    assert losses_of_first_step(run_main, plain, tmp_path / "plain") != losses(tmp_path / "whole")[:1]


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
        (["--negative_text_column", "wrong", "--objective", "cyclip"], "of one each: pass clip or siglip"),
        (["--captions_per_item", 2, "--streaming"], "--captions_per_item and --streaming exclude"),
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
    with pytest.raises(ValueError, match="--matryoshka_dims 9: the model's vectors have only 8 dimensions"):
        run_main("evaluate_model.py", *measure, "--output_dir", out, "--matryoshka_dims", 9)

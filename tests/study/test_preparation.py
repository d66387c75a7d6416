"""What the models of a study share."""

import json
import zipfile

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from xmodal_hf.data.audio import load_waveform
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.study import language_model
from xmodal_hf.study.preparation import check_prepared, prepare


@pytest.fixture
def clips(tmp_path):
    """Three clips of two classes in a zip beside their table."""
    folder = tmp_path / "esc"
    folder.mkdir()
    rows = [
        {"file": "1.wav", "fold": 1, "category": "dog_bark", "freesound_title": "Rex, garden"},
        {"file": "2.wav", "fold": 4, "category": "rain", "freesound_title": None},
        {"file": "3.wav", "fold": 2, "category": "rain", "freesound_title": " "},
    ]
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with zipfile.ZipFile(folder / "audio.zip", "w") as archive:
        for row in rows:
            soundfile.write(tmp_path / row["file"], np.full(800, 0.1 * row["fold"], dtype=np.float32), 8000)
            archive.write(tmp_path / row["file"], row["file"])
    return folder / "clips.jsonl"


def test_captions_by_template_and_title_and_the_official_folds(tmp_path, clips):
    options = {
        "kind": "captioned_clips",
        "sets": {"esc": {"clips": str(clips), "templates": ["{}", "the sound of {}"], "test_folds": [4]}},
    }
    prepare({"esc": options}, tmp_path / "study")
    train = load_pairs(tmp_path / "study" / "esc", modality="audio", split="train")
    assert sorted(train["text"][:]) == [
        ["dog bark", "the sound of dog bark", "Rex, garden"],
        ["rain", "the sound of rain"],
    ]
    (test,) = load_pairs(tmp_path / "study" / "esc", modality="audio", split="test")
    assert test["id"] == "2.wav"
    assert load_waveform(test["audio"], 8000)[5] == pytest.approx(0.4, abs=1e-3)  # out of the archive


def clip_options(clips, **of_set):
    return {"kind": "captioned_clips", "sets": {"esc": {"clips": str(clips), "templates": ["{}"], **of_set}}}


def test_sets_with_splits_are_mixed_with_others(tmp_path, clips):
    words = tmp_path / "digits" / "clips.jsonl"
    words.parent.mkdir()
    rows = [{"file": f"{index}_one.flac", "word": "one", "split": ("train", "test")[index % 2]} for index in range(20)]
    words.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    digits = {"clips": str(words), "category": "word", "templates": ["a person says {}"]}
    options = clip_options(clips, test_folds=[4])
    prepare({"clips": options | {"sets": options["sets"] | {"digits": digits}}}, tmp_path / "study")
    folder = tmp_path / "study" / "clips"
    made = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(row["file_name"] for row in made if row["set"] == "digits") == sorted(row["file"] for row in rows)
    (first,) = (row for row in made if row["file_name"] == "1_one.flac")
    expected = {"text": ["a person says one"], "category": "one", "set": "digits", "split": "test"}
    assert first == {"file_name": "1_one.flac", **expected}
    assert {row["set"] for row in made[:3]} != {"esc"} != {row["set"] for row in made[-3:]}
    assert [path.name for path in folder.glob("*.zip")] == ["esc_audio.zip"]


def test_done_once(tmp_path, clips):
    options = clip_options(clips, test_folds=[4])
    prepare({"esc": options}, tmp_path / "study")
    table = tmp_path / "study" / "esc" / "metadata.jsonl"
    table.write_text("kept", encoding="utf-8")
    prepare({"esc": options}, tmp_path / "study")
    assert table.read_text(encoding="utf-8") == "kept"
    with pytest.raises(ValueError, match="has been made with other options than the grid has now"):
        prepare({"esc": clip_options(clips, test_folds=[1])}, tmp_path / "study")
    # A study whose jobs are all done makes nothing, and checks this too.
    with pytest.raises(ValueError, match="has been made with other options than the grid has now"):
        check_prepared({"esc": clip_options(clips, test_folds=[1])}, tmp_path / "study")
    check_prepared({"esc": options, "later": options}, tmp_path / "study")


def test_a_sample_of_each_class(tmp_path):
    source = tmp_path / "all.zip"
    names = [f"{label}/{index}.png" for label in ("cat", "dog") for index in range(6)]
    with zipfile.ZipFile(source, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    prepare({"some": {"kind": "class_sample", "archive": str(source), "per_class": 2}}, tmp_path)
    with zipfile.ZipFile(tmp_path / "some" / "test.zip") as archive:
        kept = archive.namelist()
        assert all(archive.read(name).decode() == name for name in kept)
    assert sorted(name.split("/")[0] for name in kept) == ["cat", "cat", "dog", "dog"] and set(kept) <= set(names)
    with pytest.raises(ValueError, match=r"the class cat of .* has 6 items, fewer than 7"):
        prepare({"more": {"kind": "class_sample", "archive": str(source), "per_class": 7}}, tmp_path)


def test_one_tokenizer_of_all_texts(tmp_path):
    (tmp_path / "corpus.txt").write_text("zebra crossing\nzebra crossing here\n" * 3, encoding="utf-8")
    row = {"anchor": "a yellow submarine", "positive": "yellow submarine", "negative": "no submarine"}
    (tmp_path / "nli.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    options = {"kind": "tokenizer", "vocab_size": 400, "max_length": 16}
    sources = {"sentences": [str(tmp_path / "corpus.txt")], "triplets": [str(tmp_path / "nli.jsonl")]}
    prepare({"tokenizer": options | sources}, tmp_path / "study")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "study" / "tokenizer")
    assert len(tokenizer.tokenize("zebra submarine")) == 2
    assert tokenizer.model_max_length == 16


def test_clear_errors(tmp_path, clips):
    with pytest.raises(ValueError, match="has the kind 'tokeniser', known are tokenizer, captioned_clips"):
        prepare({"x": {"kind": "tokeniser"}}, tmp_path)
    with pytest.raises(ValueError, match="has no fold 7"):
        prepare({"esc": clip_options(clips, test_folds=[7])}, tmp_path / "study")
    with pytest.raises(ValueError, match="has no column split"):
        prepare({"esc": clip_options(clips)}, tmp_path / "study")
    assert not (tmp_path / "study" / "esc").exists()


def test_a_language_model_is_trained_and_says_for_how_long(tmp_path):
    words = ["red", "blue", "dog", "cat", "rain", "snow"]
    lines = [f"the {first} {second} is here" for first in words for second in words]
    (tmp_path / "lines.txt").write_text("\n".join(lines), encoding="utf-8")
    config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    options = {
        **{"kind": "language_model", "sentences": [str(tmp_path / "lines.txt")], "vocab_size": 320, "max_length": 16},
        **{"config": config | {"intermediate_size": 32}, "steps": 60, "batch_size": 8, "learning_rate": 0.01},
    }
    prepare({"bert": options}, tmp_path / "study")
    folder = tmp_path / "study" / "bert"
    training = json.loads((folder / "training.json").read_text())
    assert (training["steps"], training["sentences"]) == (60, 36) and training["seconds"] > 0
    assert training["last_loss"] < 0.7 * training["first_loss"]
    tower = AutoModel.from_pretrained(folder)
    assert tower.config.hidden_dropout_prob == 0.1  # which unsupervised SimCSE needs
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (
        training["mask_probability"] == 0.15
        and type(tower).__name__ == "BertModel"
        and tower.config.vocab_size == len(tokenizer)
    )
    with pytest.raises(ValueError, match="at least 64 sentences"):
        prepare({"other": options | {"batch_size": 64}}, tmp_path / "study")


def tiny_language_model(tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(f"line {number} of the text" for number in range(30)))
    config = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        **{"kind": "language_model", "sentences": [str(tmp_path / "lines.txt")], "vocab_size": 320, "max_length": 16},
        **{"config": config | {"intermediate_size": 32}, "steps": 7, "batch_size": 8, "mask_probability": 0.4},
    }


def stop_after(steps, monkeypatch, options, folder):
    """Train a language model that is interrupted."""
    step = language_model._Training._step

    def stopped(training, batch):
        if len(training.losses) == steps:
            raise KeyboardInterrupt
        return step(training, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(language_model._Training, "_step", stopped)
        prepare({"bert": options}, folder)


def test_a_language_model_that_was_interrupted_goes_on(tmp_path, monkeypatch, caplog):
    options = tiny_language_model(tmp_path)
    prepare({"bert": options}, tmp_path / "whole")
    monkeypatch.setattr(language_model, "_CHECKPOINT_STEPS", 5)
    stop_after(6, monkeypatch, options, tmp_path / "study")
    with caplog.at_level("INFO"):
        prepare({"bert": options}, tmp_path / "study")
    assert "goes on after step 5" in caplog.text
    weights = [load_file(tmp_path / name / "bert" / "model.safetensors") for name in ("whole", "study")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    first, second = (
        json.loads((tmp_path / name / "bert" / "training.json").read_text()) for name in ("whole", "study")
    )
    assert first["last_loss"] == second["last_loss"]
    assert not list((tmp_path / "study").glob("*.state.pt*"))


@pytest.mark.parametrize("kind", ["options", "sentences", "damaged"])
def test_a_language_model_goes_on_from_its_own_state_only(tmp_path, monkeypatch, caplog, kind):
    options = tiny_language_model(tmp_path) | {"steps": 3}
    monkeypatch.setattr(language_model, "_CHECKPOINT_STEPS", 1)
    stop_after(2, monkeypatch, options, tmp_path / "study")
    state = tmp_path / "study" / "bert.partial.state.pt"
    if kind == "options":
        options["learning_rate"] = 0.001
    elif kind == "sentences":
        text = (tmp_path / "lines.txt").read_text()
        (tmp_path / "lines.txt").write_text(text.replace("line 7", "line seven"))
    else:
        state.write_bytes(state.read_bytes()[:-100])
    with caplog.at_level("INFO"):
        prepare({"bert": options}, tmp_path / "study")
    assert "a new training begins" in caplog.text and "goes on" not in caplog.text


def test_more_tokens_are_masked_where_the_recipe_says_so(tmp_path, monkeypatch):
    fractions = []

    def count(training, batch):
        fractions.append(((batch["mlm_labels"] != -100).sum() / batch["attention_mask"].sum()).item())
        return 1.0

    monkeypatch.setattr(language_model._Training, "_step", count)
    for probability in (0.1, 0.7):
        options = tiny_language_model(tmp_path) | {"mask_probability": probability, "steps": 6}
        prepare({f"bert{probability}": options}, tmp_path / "study")
    assert sum(fractions[6:]) > 3 * sum(fractions[:6])


def test_a_batch_without_masked_tokens_teaches_nothing(tmp_path):
    options = tiny_language_model(tmp_path) | {"mask_probability": 1e-9, "steps": 3}
    prepare({"bert": options}, tmp_path / "study")
    tower = AutoModel.from_pretrained(tmp_path / "study" / "bert")
    assert all(parameter.isfinite().all() for parameter in tower.parameters())


def test_language_models_that_cannot_be_trained(tmp_path):
    options = tiny_language_model(tmp_path)
    with pytest.raises(ValueError, match="mask_probability must lie between 0 and 1, got 0"):
        prepare({"bert": options | {"mask_probability": 0}}, tmp_path / "study")
    config = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2}
    with pytest.raises(ValueError, match="gpt2 is causal"):
        prepare({"gpt": options | {"config": config}}, tmp_path / "study")


def test_towers_from_packages(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("xmodal_hf.study.preparation.prepare_towers", lambda *given: asked.append(given))
    prepare({"towers": {"kind": "towers", "image": {"image_size": 64}, "text": None}}, tmp_path)
    assert asked == [(tmp_path / "towers.partial", {"image": {"image_size": 64}, "text": {}})]

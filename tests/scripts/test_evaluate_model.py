"""The evaluation script on tiny checkpoints: ours and every kind of peer, on files made here."""

import copy
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import transformers
from PIL import Image

from xmodal_hf.data.bad_items import TooManyBadItemsError
from xmodal_hf.features import FeatureStore

SCRIPT = Path(__file__).parents[2] / "training_scripts" / "evaluate_model.py"
STS_TABLES = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb-test", "sickr")
WORDS = ["a red apple", "the dog barks", "rain", "two small birds", "a car drives past", "the cat sleeps"]


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("evaluate_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def sts_data(tmp_path):
    folder = tmp_path / "sts"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for stem in STS_TABLES:
        rows = [
            {"sentence1": " ".join(rng.choice(WORDS, 2)), "sentence2": " ".join(rng.choice(WORDS, 2)),
             "score": round(float(rng.uniform(0, 5)), 2), "subset": "test"}
            for _ in range(12)
        ]  # fmt: skip
        write_rows(folder / f"{stem}.jsonl", rows)
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Six captioned pictures in two classes."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i, words in enumerate(WORDS):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        rows.append({"file": f"{i}.png", "captions": [words, f"a {words}"], "kind": ("dog_bark", "rain")[i % 2]})
    write_rows(folder / "captions.jsonl", rows)
    return folder / "captions.jsonl"


@pytest.fixture
def sounds(tmp_path):
    """Six clips in three classes and two folds."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    rows = []
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", np.sin(np.arange(4000) * (i + 1) / 20), 8000)
        rows.append({"file": f"{i}.wav", "category": ("cat", "dog", "rain")[i % 3], "fold": i // 3 + 1})
    write_rows(folder / "clips.jsonl", rows)
    return folder / "clips.jsonl"


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def test_our_model_on_all_cross_modal_tasks(main, image_text_folder, pictures, sts_data, tmp_path, capsys):
    out = tmp_path / "out"
    common = ["--model", str(image_text_folder), "--output_dir", str(out), "--num_resamples", "20"]
    data = ["--pairs", str(pictures), "--zero_shot_data", str(pictures), "--label_column", "kind", "--prompts", "photo"]
    main([*common, "--tasks", "retrieval,zero_shot,representation", *data, "--name", "tiny"])
    results = results_of(out)
    assert results["retrieval"]["num_texts"] == 12 and results["retrieval"]["num_items"] == 6
    assert 0 <= results["zero_shot"]["top1_accuracy"] <= 100
    assert set(results["zero_shot"]) >= {"accuracy/dog bark", "accuracy/rain", "top1_accuracy_ci95_low"}
    assert results["representation"]["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-3)
    meta = results["meta"]
    assert meta["name"] == "tiny"
    for task in ("retrieval", "zero_shot", "representation"):
        assert set(meta["tasks"][task]) >= {"dataset", "sha256", "protocol", "seed", "runtime_seconds"}
        assert meta["tasks"][task]["versions"]["torch"]
    for name in ("map.png", "map_tsne.png", "cosines.png", "spectrum.png", "confusion.png"):
        assert Image.open(out / name).size[0] > 300
    printed = capsys.readouterr().out
    assert f"| retrieval | text_to_image_recall@5 | {results['retrieval']['text_to_image_recall@5']:.2f} |" in printed

    main([*common, "--tasks", "sts,sts_text_tower", "--sts_data", str(sts_data)])  # added to what is there
    merged = results_of(out)
    assert merged["retrieval"] == results["retrieval"] and -100 <= merged["sts"]["average"] <= 100
    assert merged["sts_text_tower"]["average"] != merged["sts"]["average"]
    assert set(merged["meta"]["tasks"]) == {"retrieval", "zero_shot", "representation", "sts", "sts_text_tower"}


def test_results_of_two_models_are_never_mixed(main, image_text_folder, sentence_encoder_folder, sts_data, tmp_path):
    args = ["--sts_data", str(sts_data), "--num_resamples", "0", "--output_dir", str(tmp_path / "out")]
    main(["--model", str(image_text_folder), *args])
    (image_text_folder / "README.md").write_text("a card is not the model")
    main(["--model", str(image_text_folder), *args])
    with pytest.raises(ValueError, match="is of another model"):
        main(["--model", str(sentence_encoder_folder), *args])


def test_comparison_of_two_models(main, image_text_folder, pictures, tmp_path, capsys):
    common = ["--model", str(image_text_folder), "--tasks", "retrieval,representation", "--pairs", str(pictures)]
    main([*common, "--output_dir", str(tmp_path / "a"), "--num_resamples", "0"])
    compare = ["--compare", f"before={tmp_path / 'a' / 'results.json'}", "--name", "after"]
    main([*common, "--output_dir", str(tmp_path / "b"), "--num_resamples", "0", *compare])
    printed = capsys.readouterr().out
    assert "| | before | after |" in printed
    recall = results_of(tmp_path / "a")["retrieval"]["image_to_text_recall@1"]
    assert f"| retrieval: image_to_text_recall@1 | {recall:.2f} | {recall:.2f} |" in printed
    assert (tmp_path / "b" / "alignment_uniformity.png").exists()
    capsys.readouterr()
    main([*common, "--output_dir", str(tmp_path / "c"), "--num_resamples", "0", "--max_pairs", "5", *compare])
    assert "| retrieval: image_to_text_recall@1 | other data |" in capsys.readouterr().out
    assert not (tmp_path / "c" / "alignment_uniformity.png").exists()
    main([*common, "--output_dir", str(tmp_path / "d"), "--num_resamples", "0", "--text_column", "kind", *compare])
    assert "| retrieval: image_to_text_recall@1 | other data |" in capsys.readouterr().out
    # The column that is found by itself, named.
    main([*common, "--output_dir", str(tmp_path / "e"), "--num_resamples", "0", "--text_column", "captions", *compare])
    assert f"| retrieval: image_to_text_recall@1 | {recall:.2f} | {recall:.2f} |" in capsys.readouterr().out
    assert results_of(tmp_path / "a")["representation"] == results_of(tmp_path / "b")["representation"]


def test_differences_of_two_models_have_paired_intervals(
    main, image_text_folder, sentence_encoder_folder, sts_data, tmp_path, capsys
):
    args = ["--sts_data", str(sts_data), "--num_resamples", "200"]
    main(["--model", str(image_text_folder), *args, "--output_dir", str(tmp_path / "a")])
    assert "95 % interval)" not in capsys.readouterr().out
    compare = ["--compare", f"a={tmp_path / 'a' / 'results.json'}", "--name", "b", "--output_dir", str(tmp_path / "b")]
    main(["--model", str(sentence_encoder_folder), *args, *compare])
    values, resamples = (
        [read(tmp_path / name)["sts" if kind else "sts.average"] for name in ("a", "b")]
        for kind, read in ((True, results_of), (False, lambda folder: np.load(folder / "resamples.npz")))
    )
    low, high = np.percentile(resamples[1] - resamples[0], [2.5, 97.5])
    difference = values[1]["average"] - values[0]["average"]
    expected = f"| sts: average | {difference:+.2f} ({low:+.2f} to {high:+.2f}) |"
    printed = capsys.readouterr().out
    assert "| | b − a (95 % interval) |" in printed and printed.count(expected) == 1

    # Nor may the file be of another folder's results.
    (tmp_path / "a" / "results.json").rename(tmp_path / "b" / "a.json")
    elsewhere = ["--compare", f"a={tmp_path / 'b' / 'a.json'}", *compare[2:]]
    main(["--model", str(sentence_encoder_folder), *args, *elsewhere])
    assert "95 % interval)" not in capsys.readouterr().out
    (tmp_path / "b" / "a.json").rename(tmp_path / "a" / "results.json")
    # Other draws are not paired, and what has no intervals keeps no resamples.
    main(["--model", str(sentence_encoder_folder), *args, "--seed", "1", *compare])
    assert "95 % interval)" not in capsys.readouterr().out
    main(["--model", str(sentence_encoder_folder), *args, "--num_resamples", "0", *compare])
    assert not np.load(tmp_path / "b" / "resamples.npz").files


def saved_clap(folder, tokenizer, audio_text_processor):
    audio = {"hidden_size": 32, "patch_embeds_hidden_size": 16, "depths": [1, 1], "num_attention_heads": [2, 2],
             "num_mel_bins": 16, "spec_size": 64, "window_size": 4, "projection_dim": 16}  # fmt: skip
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64, "pad_token_id": 0,
            "max_position_embeddings": 25, "projection_dim": 16}  # fmt: skip
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    transformers.ClapModel(config).save_pretrained(folder)
    transformers.ClapProcessor(audio_text_processor.feature_extractor, tokenizer).save_pretrained(folder)


def test_audio_peers_agree_on_folds(main, audio_text_folder, audio_text_processor, tokenizer, sounds, tmp_path):
    saved_clap(tmp_path / "clap", tokenizer, audio_text_processor)
    for model in (audio_text_folder, tmp_path / "clap"):
        out = tmp_path / f"out_{model.name}"
        main(["--model", str(model), "--tasks", "zero_shot", "--zero_shot_data", str(sounds), "--output_dir", str(out),
              "--label_column", "category", "--fold_column", "fold", "--num_resamples", "0"])  # fmt: skip
        results = results_of(out)["zero_shot"]
        folds = [results["accuracy/fold 1"], results["accuracy/fold 2"]]
        assert results["fold_mean_accuracy"] == pytest.approx(np.mean(folds)) == results["top1_accuracy"]
        assert results["num_classes"] == 3


def test_long_clips_are_their_beginning_or_their_mean(main, audio_text_folder, tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i, samples in enumerate((4000, 4000, 60_000, 60_000)):
        soundfile.write(tmp_path / f"{i}.wav", rng.normal(0, 0.1, samples), 8000)
        rows.append({"audio": f"{i}.wav", "caption": WORDS[i]})
    write_rows(tmp_path / "clips.jsonl", rows)
    found = {}
    for way in ("first", "mean"):
        main(["--model", str(audio_text_folder), "--tasks", "representation", "--pairs", str(tmp_path / "clips.jsonl"),
              "--long_clips", way, "--num_resamples", "0", "--output_dir", str(tmp_path / way)])  # fmt: skip
        found[way] = results_of(tmp_path / way)
    numbers = [found[way]["representation"]["audio_uniformity"] for way in ("first", "mean")]
    assert numbers[0] != pytest.approx(numbers[1], abs=1e-6)
    assert found["mean"]["meta"]["tasks"]["representation"]["long_clips"] == "mean"


def test_ids_join_captions(main, image_text_folder, pictures, tmp_path):
    """Rows of one file are one item, unless another column says that they are not."""
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    write_rows(pictures, [{**row, "file": f"{i // 2}.png", "row": i} for i, row in enumerate(rows)])
    for options, num_items in (([], 3), (["--id_column", "row"], 6)):
        main(["--model", str(image_text_folder), "--tasks", "retrieval", "--pairs", str(pictures), *options,
              "--num_resamples", "0", "--output_dir", str(tmp_path / f"{num_items}")])  # fmt: skip
        results = results_of(tmp_path / f"{num_items}")
        assert (results["retrieval"]["num_items"], results["retrieval"]["num_texts"]) == (num_items, 12)
        assert results["meta"]["tasks"]["retrieval"]["num_items"] == num_items


def test_folds_of_a_folder_with_a_table(main, audio_text_folder, sounds, tmp_path):
    """As the study prepares ESC-10: no folder of the split, which the table knows."""
    rows = [json.loads(line) for line in sounds.read_text().splitlines()]
    rows = [{**row, "file_name": row["file"], "split": "test" if i else "train"} for i, row in enumerate(rows)]
    write_rows(sounds.parent / "metadata.jsonl", rows)
    main(["--model", str(audio_text_folder), "--tasks", "zero_shot", "--zero_shot_data", str(sounds.parent),
          "--output_dir", str(tmp_path / "out"), "--num_resamples", "0",
          "--label_column", "category", "--fold_column", "fold"])  # fmt: skip
    results = results_of(tmp_path / "out")["zero_shot"]
    assert results["num_items"] == 5 and {"accuracy/fold 1", "accuracy/fold 2"} <= set(results)


def test_a_table_of_captions_needs_the_column_of_its_classes(main, pictures, tmp_path):
    (pictures.parent / "test").mkdir()
    for folder in (pictures.parent, pictures.parent / "test"):
        write_rows(folder / "metadata.jsonl", [{"file_name": "0.png", "text": "a caption"}])
        with pytest.raises(ValueError, match="needs --label_column"):
            main(["--model", "nowhere", "--tasks", "zero_shot", "--zero_shot_data", str(pictures.parent)])
        (folder / "metadata.jsonl").unlink()


def test_classes_that_are_numbers_are_warned_of(main, image_text_folder, pictures, tmp_path, caplog):
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    write_rows(pictures, [{**row, "label": i % 2} for i, row in enumerate(rows)])
    main(["--model", str(image_text_folder), "--tasks", "zero_shot", "--zero_shot_data", str(pictures),
          "--output_dir", str(tmp_path / "out"), "--num_resamples", "0", "--label_column", "label"])  # fmt: skip
    assert "The class names are numbers (0, ...)" in caplog.text


def sentence_transformer(bert_folder, folder):
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.models import Pooling, Transformer

    words = Transformer(str(bert_folder))
    library.SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension(), "mean")], device="cpu").save(
        str(folder)
    )


def test_text_peers_give_the_same_numbers(main, text_config, tokenizer, make_sentence_encoder, sts_data, tmp_path):
    """One BERT as Auto model, as SentenceEncoder and as SentenceTransformer, mean pooling."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer._set_processor_class(None)  # another test may have saved it with a processor
    encoder = make_sentence_encoder()
    encoder.save_pretrained(tmp_path / "sentence_encoder")
    tokenizer.save_pretrained(tmp_path / "sentence_encoder")
    encoder.text_model.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    sentence_transformer(tmp_path / "bert", tmp_path / "sentence_transformer")
    averages = []
    for name in ("bert", "sentence_encoder", "sentence_transformer"):
        out = tmp_path / f"out_{name}"
        args = ["--model", str(tmp_path / name), "--sts_data", str(sts_data), "--num_resamples", "0"]
        main([*args, "--output_dir", str(out)])
        averages.append(results_of(out)["sts"]["average"])
    assert averages == pytest.approx([averages[0]] * 3, abs=1e-3)


@pytest.mark.parametrize("kind", ["t5", "gpt2"])
def test_encoder_decoders_and_decoders_are_text_models(main, tokenizer, sts_data, tmp_path, kind):
    """Of T5 the encoder; GPT-2's tokenizer has no token to pad with."""
    tokenizer = copy.deepcopy(tokenizer)
    if kind == "t5":
        config = transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        config.decoder_start_token_id = 0
        model = transformers.T5Model(config)
    else:
        model = transformers.GPT2Model(
            transformers.GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)
        )
        tokenizer.pad_token = None
    model.save_pretrained(tmp_path / kind)
    tokenizer.save_pretrained(tmp_path / kind)
    main(["--model", str(tmp_path / kind), "--sts_data", str(sts_data), "--num_resamples", "0",
          "--output_dir", str(tmp_path / "out")])  # fmt: skip
    assert -100 <= results_of(tmp_path / "out")["sts"]["average"] <= 100


def test_the_cache_folder_is_used_again(main, image_text_folder, pictures, tmp_path):
    args = ["--model", str(image_text_folder), "--tasks", "retrieval", "--pairs", str(pictures), "--num_resamples", "0"]
    args += ["--cache_dir", str(tmp_path / "cache")]
    main([*args, "--output_dir", str(tmp_path / "a")])
    stores = sorted((tmp_path / "cache").rglob("manifest.json"))
    assert [len(FeatureStore.open(path.parent)) for path in stores] == [6, 12]  # pictures, captions
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.*")}
    main([*args, "--output_dir", str(tmp_path / "b")])
    assert len(written) >= 6 and all(path.stat().st_mtime_ns == time for path, time in written.items())
    assert results_of(tmp_path / "a")["retrieval"] == results_of(tmp_path / "b")["retrieval"]


@pytest.mark.slow
def test_two_processes_embed_and_one_measures(interpreters, image_text_folder, pictures, sts_data, tmp_path):
    tasks = ["--tasks", "sts,sts_text_tower,retrieval,zero_shot,representation", "--sts_data", sts_data]
    tasks += ["--pairs", pictures, "--zero_shot_data", pictures, "--label_column", "kind", "--prompts", "photo"]
    options = ["--model", image_text_folder, *tasks, "--num_resamples", 5, "--batch_size", 2, "--device", "cpu"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, launcher in (("one", []), ("two", torchrun)):
        done = interpreters.run([*launcher, SCRIPT, *options, "--output_dir", tmp_path / name])
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("results.json") == 1  # one measures
    one, two = results_of(tmp_path / "one"), results_of(tmp_path / "two")
    assert one.keys() == two.keys()
    for task in one.keys() - {"meta"}:
        assert two[task] == pytest.approx(one[task], rel=1e-4, abs=1e-4), task
    # An error of the main process ends the others too.
    done = interpreters.run([*torchrun, SCRIPT, "--model", sts_data.parent / "nothing", *options[2:]])
    assert done.returncode != 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tasks", "sst"], "--tasks takes sts, sts_text_tower, transfer"),
        (["--tasks", "transfer"], "needs --transfer_data"),
        (["--tasks", "sts,retrieval"], "needs --pairs"),
        (["--tasks", "zero_shot", "--zero_shot_data", "x.jsonl"], "needs --label_column"),
        (["--tasks", "sts"], "needs --sts_data, or --sts_protocol mteb"),
        (["--sts_protocol", "mteb", "--compare", "results.json"], "takes name=results.json"),
    ],
)
def test_wrong_options_are_named_before_the_model_is_loaded(main, args, message):
    with pytest.raises(ValueError, match=message):
        main(["--model", "nowhere", *args])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--model is required"),
        (["--model", "x", "--prompts", "imagnet"], "--prompts takes imagenet, photo"),
        (["--model", "x", "--sts_data", "nowhere"], "there is no folder nowhere"),
        (["--model", "x", "--batch_size", "0"], "--batch_size must be at least 1"),
        (["--model", "x", "--sets", "sts"], "--sets"),
        (["--model", "x", "--max_bad_fraction", "2"], "--max_bad_fraction must lie between 0 and 1"),
    ],
)
def test_wrong_values_give_the_usage(main, args, message, capsys):
    with pytest.raises((SystemExit, ValueError)) as stopped:
        main(args)
    assert message in capsys.readouterr().err + str(stopped.value)


def test_missing_data_of_a_late_task_is_told_before_the_first_one(main, image_text_folder, pictures, tmp_path):
    args = ["--model", str(image_text_folder), "--output_dir", str(tmp_path / "out"), "--pairs", str(pictures)]
    args += ["--tasks", "retrieval,zero_shot", "--zero_shot_data", str(pictures)]
    for wrong, message in (
        (["--label_column", "colour"], "no column 'colour'"),
        (["--label_column", "kind", "--fold_column", "fold"], "--fold_column fold: the columns are"),
    ):
        with pytest.raises(ValueError, match=message):
            main([*args, *wrong])
    assert not (tmp_path / "out").exists()


def test_what_is_done_stays_when_a_later_task_fails(main, image_text_folder, pictures, tmp_path):
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    write_rows(pictures.with_name("broken.jsonl"), [*rows, {"file": "none.png", "captions": ["x"], "kind": "rain"}])
    with pytest.raises(ValueError, match=r"missing file: .*none\.png"):
        main(["--model", str(image_text_folder), "--output_dir", str(tmp_path / "out"), "--pairs", str(pictures),
              "--tasks", "retrieval,zero_shot", "--zero_shot_data", str(pictures.with_name("broken.jsonl")),
              "--label_column", "kind", "--on_bad_item", "error"])  # fmt: skip
    results = results_of(tmp_path / "out")
    assert results["retrieval"]["num_items"] == 6 and "zero_shot" not in results


@pytest.mark.parametrize("task", ["retrieval", "representation", "zero_shot"])
def test_more_bad_items_than_are_tolerated(main, image_text_folder, pictures, tmp_path, task):
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    bad = [{"file": "none.png", "captions": ["x"], "kind": "rain"}, {**rows[0], "captions": [" "], "kind": None}]
    write_rows(pictures, [*bad, *rows])
    options = ["--model", str(image_text_folder), "--tasks", task, "--pairs", str(pictures), "--num_resamples", "0"]
    options += ["--zero_shot_data", str(pictures), "--label_column", "kind", "--output_dir", str(tmp_path / "out")]
    if task != "zero_shot":
        options += ["--id_column", "file", "--text_column", "captions"]
    main([*options, "--max_bad_fraction", "0.25"])
    assert results_of(tmp_path / "out")["meta"]["tasks"][task]["bad_items"]["count"] == 2
    with pytest.raises(TooManyBadItemsError, match=r"2 of 8 items cannot be used, more than max_bad_fraction=0\.2"):
        main([*options, "--max_bad_fraction", "0.24"])


def test_what_cannot_be_used_is_left_out_counted_and_said(main, image_text_folder, pictures, tmp_path, capsys):
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    (pictures.parent / "cut.png").write_bytes((pictures.parent / rows[0]["file"]).read_bytes()[:50])
    more = [{"file": name, "captions": ["x"], "kind": "rain"} for name in ("none.png", "cut.png")]
    rows[1]["captions"] += ["", None]
    broken = pictures.with_name("broken.jsonl")
    write_rows(broken, [*rows, *more, rows[0] | {"kind": " ", "captions": [" "]}])
    options = ["--model", str(image_text_folder), "--tasks", "retrieval,representation,zero_shot"]
    options += ["--num_resamples", "0", "--label_column", "kind"]
    compare = ["--compare", f"whole={tmp_path}/whole/results.json"]
    for name, file, compared in (("whole", pictures, []), ("some", broken, compare)):
        files = ["--pairs", str(file), "--zero_shot_data", str(file), "--output_dir", str(tmp_path / name)]
        main([*options, *files, *compared])
    whole, some = results_of(tmp_path / "whole"), results_of(tmp_path / "some")
    for task in ("retrieval", "representation", "zero_shot"):
        assert some[task] == pytest.approx(whole[task])
        assert whole["meta"]["tasks"][task]["bad_items"] == {"count": 0, "reasons": {}, "ids": []}
    expected = {"corrupt image": 1, "empty caption": 2, "missing file": 1, "no caption": 1}
    left_out = some["meta"]["tasks"]["retrieval"]["bad_items"]
    assert left_out["count"] == 5 and left_out["reasons"] == expected
    assert left_out["ids"] == [rows[1]["file"], "none.png", "cut.png", rows[0]["file"]]
    assert some["meta"]["tasks"]["zero_shot"]["bad_items"]["reasons"]["no class"] == 1
    printed = capsys.readouterr().out
    assert "| retrieval | **left out: other data than asked for** | 5 | 1 corrupt image, 2 empty caption" in printed
    assert "| retrieval: text_to_image_recall@1 | other data | " in printed  # in the comparison too


def test_equal_captions_are_one_text_unless_the_plain_protocol_is_chosen(main, image_text_folder, pictures, tmp_path):
    rows = [json.loads(line) for line in pictures.read_text().splitlines()]
    write_rows(pictures, [row | {"captions": row["kind"] + " " * (number % 2)} for number, row in enumerate(rows)])
    found = {}
    for protocol in ("distinct", "plain"):
        options = ["--retrieval_protocol", protocol, "--output_dir", str(tmp_path / protocol), "--num_resamples", "0"]
        main(["--model", str(image_text_folder), "--tasks", "retrieval", "--pairs", str(pictures), *options])
        results = results_of(tmp_path / protocol)
        found[protocol] = results["retrieval"]
        assert (found[protocol]["num_texts"], found[protocol]["num_distinct_texts"]) == (6, 2)
        assert ("one text" in results["meta"]["tasks"]["retrieval"]["protocol"]) == (protocol == "distinct")
    assert found["plain"]["image_to_text_recall@1"] == 0  # three equal captions tie
    assert found["distinct"]["image_to_text_recall@1"] > 0


def test_scores_beside_the_cosine(main, image_text_folder, pictures, tmp_path, caplog):
    bank = tmp_path / "bank.txt"
    bank.write_text("the cat\na piano plays\nRAIN\nmusic\n", encoding="utf-8")
    options = ["--model", str(image_text_folder), "--tasks", "retrieval", "--pairs", str(pictures)]
    options += ["--num_resamples", "0", "--output_dir", str(tmp_path / "out")]
    main([*options, "--retrieval_scores", "csls", "querybank", "--query_bank", str(bank)])
    results = results_of(tmp_path / "out")
    ways = {name.partition("_text_to_image")[0] for name in results["retrieval"] if "text_to_image_recall@1" in name}
    assert {"csls", "querybank"} < ways
    assert results["meta"]["tasks"]["retrieval"]["scores"]["csls"] == "neighbours among 3 captions of bank.txt"
    assert "1 of 4 captions occur in --pairs" in caplog.text
    main([*options, "--retrieval_scores", "csls"])
    assert "transductive" in results_of(tmp_path / "out")["meta"]["tasks"]["retrieval"]["scores"]["csls"]
    with pytest.raises(ValueError, match="querybank needs --query_bank"):
        main([*options, "--retrieval_scores", "querybank"])


@pytest.mark.parametrize(("column", "message"), [("kind", "no class: item "), ("fold", "item 1 has no fold")])
def test_a_missing_class_or_fold_is_named(main, image_text_folder, pictures, tmp_path, column, message):
    rows = [json.loads(line) | {"fold": 1} for line in pictures.read_text().splitlines()]
    rows[1][column] = None
    write_rows(pictures, rows)
    with pytest.raises(ValueError, match=message):
        main(["--model", str(image_text_folder), "--tasks", "zero_shot", "--zero_shot_data", str(pictures),
              "--label_column", "kind", "--fold_column", "fold", "--output_dir", str(tmp_path / "out"),
              "--on_bad_item", "error"])  # fmt: skip


def test_a_text_model_has_no_cross_modal_tasks(main, sentence_encoder_folder, pictures, tmp_path):
    with pytest.raises(ValueError, match="takes text only"):
        main(["--model", str(sentence_encoder_folder), "--tasks", "retrieval", "--pairs", str(pictures),
              "--output_dir", str(tmp_path / "out")])  # fmt: skip

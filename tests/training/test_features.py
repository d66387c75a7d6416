"""Training on pooled vectors of frozen towers: every loss as without them, and nothing runs or is decoded again."""

import io
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import BertConfig, ViTConfig
from transformers.models.bert.modeling_bert import BertEmbeddings
from transformers.models.vit.modeling_vit import ViTEmbeddings

from xmodal_hf import AudioTextConfig, AudioTextDualEncoder, ImageTextConfig, ImageTextDualEncoder, ImageTextProcessor
from xmodal_hf.data import sampling as sampling_module
from xmodal_hf.evaluation.search import Gallery, Search
from xmodal_hf.features import FeatureError, FeatureStore
from xmodal_hf.features.frozen import FrozenSide

SCRIPT = Path(__file__).parents[2] / "training_scripts" / "train_contrastive.py"
ITEMS, BATCH, STEPS = 25, 6, 7
WORDS = ("rain", "the dog barks at night", "a red apple", "two small birds sing in the tall old tree", "music plays")
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="session")
def picture_table(tmp_path_factory):
    """25 pictures with one to three captions each; number 7 is cut off."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(ITEMS):
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        captions = [f"{WORDS[(number + k) % 5]} {WORDS[number % 3]}" for k in range(1 + number % 3)]
        rows.append({"image": f"{number}.png", "captions": captions})
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:60])
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.fixture(scope="session")
def sound_table(tmp_path_factory):
    """25 tones of half a second to two seconds."""
    folder = tmp_path_factory.mktemp("sounds")
    rows = []
    for number in range(ITEMS):
        seconds = np.arange(4000 * (1 + number % 4)) / 8000
        buffer = io.BytesIO()
        soundfile.write(buffer, 0.5 * np.sin(2 * np.pi * 100 * (number + 1) * seconds), 8000, format="WAV")
        (folder / f"{number}.wav").write_bytes(buffer.getvalue())
        rows.append({"audio": f"{number}.wav", "caption": WORDS[number % 5]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.fixture
def models(tmp_path, tokenizer, audio_config, image_text_processor, audio_text_processor):
    """Folders of an image-text and an audio-text model, with dropout in the text towers."""
    text = BertConfig(vocab_size=64, max_position_embeddings=24, **TOWER)
    image = ViTConfig(image_size=16, patch_size=8, **TOWER)
    fields = {"text_config": text, "projection_dim": 16, "logit_bias_init_value": -2.0, "logit_scale_init_value": 1.0}
    pairs = {
        "image": (ImageTextDualEncoder(ImageTextConfig(image_config=image, **fields)), image_text_processor),
        "audio": (AudioTextDualEncoder(AudioTextConfig(audio_config=audio_config(), **fields)), audio_text_processor),
    }
    for kind, parts in pairs.items():
        for part in parts:
            part.save_pretrained(tmp_path / "models" / kind)
    return tmp_path / "models"


@pytest.fixture
def train(models, picture_table, sound_table, tmp_path):
    """Give `train(name, *options, modality="image")`: run the script; -> the lines of its log."""

    def run(name, *options, modality="image"):
        table = picture_table if modality == "image" else sound_table
        common = {
            **{
                "dataset": table,
                "modality": modality,
                "model": models / modality,
                "output_dir": tmp_path / "runs" / name,
            },
            **{"batch_size": BATCH, "max_steps": STEPS, "num_epochs": 9, "max_length": 12, "learning_rate": 0.003},
            **{"report_to": "none", "max_bad_fraction": 0.1, "audio_window": "first", "checkpoint_steps": 0},
        }
        given = [str(value) for name, value in common.items() for value in (f"--{name}", value)]
        runpy.run_path(str(SCRIPT))["main"]([*given, *map(str, options)])
        return read_log(tmp_path / "runs" / name)

    return run


def read_log(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]


def check_losses(log, expected, tolerance):
    assert len(log) == len(expected) == STEPS
    losses, wanted = ([line["loss"] for line in lines] for lines in (log, expected))
    assert max(wanted) - min(wanted) > 0.01  # something is trained, on other items in each step
    assert losses == pytest.approx(wanted, rel=tolerance)


CASES = {
    **{f"image {loss}": ("image", ["--freeze", "image", "--objective", loss]) for loss in ("clip", "cyclip", "siglip")},
    **{f"audio {loss}": ("audio", ["--freeze", "audio", "--objective", loss]) for loss in ("clip", "cyclip", "siglip")},
    **{f"text {loss}": ("image", ["--freeze", "text", "--objective", loss]) for loss in ("clip", "cyclip", "siglip")},
    "both towers": ("image", ["--freeze", "image", "text"]),
    "text and audio": ("audio", ["--freeze", "text", "audio", "--objective", "cyclip"]),
    "LoRA": ("image", ["--lora_rank", 2, "--lora_dropout", 0.1]),
    "gradient caching": ("image", ["--freeze", "image", "--micro_batch_size", 2, "--objective", "cyclip"]),
    "text, in parts": ("image", ["--freeze", "text", "--micro_batch_size", 4, "--num_workers", 1]),
}


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_without_the_store(train, tmp_path, case):
    modality, options = CASES[case]
    plain = train("off", *options, "--features", "off", modality=modality)
    precisions = {"float32": 1e-5, "float16": 1e-2}
    for dtype, tolerance in precisions.items():
        log = train(dtype, *options, "--feature_dtype", dtype, modality=modality)
        check_losses(log, plain, tolerance)
    stores = list((tmp_path / "runs" / "features").iterdir())
    assert len(stores) == len(precisions) * max(1, sum(options.count(side) for side in ("image", "audio", "text")))


def test_joint_training_with_validation(train, tmp_path, held_out):
    sentences = tmp_path / "sentences.txt"
    sentences.write_text("\n".join(f"{word} {number}" for number in range(4) for word in WORDS), encoding="utf-8")
    options = ["--freeze", "image", "--sentences", sentences, "--objective", "cyclip", "--ema_decay", 0.5, *held_out]
    options += ["--best_metric", "representation.alignment"]
    plain = train("off", *options, "--features", "off")
    check_losses(train("on", *options, "--feature_dtype", "float32"), plain, 1e-5)
    measured = [validations(tmp_path / "runs" / name) for name in ("off", "on")]
    assert [line["step"] for line in measured[0]] == [3, 6, 7]
    for line, expected in zip(measured[1], measured[0], strict=True):
        assert line == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.fixture
def held_out(tmp_path, picture_table):
    """Options of a validation every three steps on six of the pictures."""
    rows = [json.loads(line) for line in picture_table.read_text().splitlines()][:6]
    rows = [{"image": str(picture_table.parent / row["image"]), "caption": row["captions"][0]} for row in rows]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--eval_steps", 3, "--eval_dataset", tmp_path / "held.jsonl", "--eval_split", "train"]


def validations(folder):
    return [json.loads(line) for line in (folder / "validation_log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("frozen", [["image"], ["text"], ["image", "text"]])
def test_validation_runs_frozen_towers_once_per_item(train, tmp_path, held_out, monkeypatch, frozen):
    options = ["--freeze", *frozen, "--feature_dtype", "float32", *held_out]
    train("off", *options, "--features", "off")
    expected = validations(tmp_path / "runs" / "off")
    seen = {"image": [], "text": []}
    for side, module in (("image", ViTEmbeddings), ("text", BertEmbeddings)):
        forward = module.forward
        monkeypatch.setattr(
            module,
            "forward",
            lambda self, *args, side=side, forward=forward, **inputs: (
                seen[side].append(len(next(iter([*args, *inputs.values()])))) or forward(self, *args, **inputs)
            ),
        )
    train("on", *options)
    for line, wanted in zip(validations(tmp_path / "runs" / "on"), expected, strict=True):
        assert line == pytest.approx(wanted, rel=1e-4, abs=1e-4)
    if "image" in frozen:  # the store of the training pictures, and the six
        assert sum(seen["image"]) == 24 + 6
    if "text" in frozen:  # every caption once, and a few texts by which the pooling is checked
        captions = sum(1 + number % 3 for number in range(ITEMS))
        assert captions <= sum(seen["text"]) <= captions + 6 + 12
    for side in seen:
        seen[side].clear()
    train("again", *options)
    assert validations(tmp_path / "runs" / "again") == validations(tmp_path / "runs" / "on")
    assert not seen["image"] if "image" in frozen else sum(seen["image"]) > 50
    assert sum(seen["text"]) <= 12 if "text" in frozen else sum(seen["text"]) > 50


def test_later_runs_neither_decode_nor_run_the_tower(train, tmp_path, monkeypatch, caplog):
    options = ["--freeze", "image"]
    train("first", *options)
    assert "24 vectors of the frozen image tower, kept in" in caplog.text
    (store,) = (tmp_path / "runs" / "features").iterdir()
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    monkeypatch.setattr(sampling_module, "load_image", lambda *_, **__: pytest.fail("a picture was decoded"))
    monkeypatch.setattr(ViTEmbeddings, "forward", lambda *_, **__: pytest.fail("the tower ran"))
    monkeypatch.setattr(FrozenSide, "pooled", lambda *_: pytest.fail("an item was embedded again"))
    train("seed", *options, "--seed", 3)
    train("objective", *options, "--objective", "siglip", "--num_workers", 1)
    train("adapter", "--lora_rank", 2)
    assert caplog.text.count(f"24 vectors of the frozen image tower, read from {store}") == 3
    assert before == {path.name: path.read_bytes() for path in store.iterdir()}
    # And all of them search it: models and adapters.
    for name in ("seed", "adapter"):
        hits = Search.load(tmp_path / "runs" / name, store, device="cpu")("rain", k=3)
        assert len(hits) == 3 and hits[0].score >= hits[1].score


def test_unusable_items_are_replaced_and_listed_as_without_the_store(train, tmp_path):
    train("off", "--freeze", "image", "--features", "off")
    train("on", "--freeze", "image")
    lists = [(tmp_path / "runs" / name / "bad_items.jsonl").read_text() for name in ("off", "on")]
    assert "corrupt image" in lists[0] and lists[0] == lists[1]


def test_a_resumed_run_is_the_same_to_the_bit(train, tmp_path):
    options = ["--freeze", "image", "--checkpoint_steps", 3]
    whole = train("run", *options)
    folder = tmp_path / "runs" / "run"
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (store,) = (tmp_path / "runs" / "features").iterdir()
    for path in store.iterdir():  # computed again, it is the same
        path.unlink()
    resumed = train("run", *options, "--resume", folder / "checkpoints" / "step_00000003")
    assert resumed == whole
    again = load_file(folder / "model.safetensors")
    assert weights.keys() == again.keys() and all(torch.equal(weights[name], again[name]) for name in weights)


class TestWhatAutoDecides:
    def test_changing_inputs(self, train, tmp_path, caplog):
        train("pictures", "--freeze", "image", "--augment")
        assert "the image tower is frozen and runs in each step, because --augment gives" in caplog.text
        train("sounds", "--freeze", "audio", "--audio_window", "random", modality="audio")
        assert "because --audio_window random gives" in caplog.text
        train("masks", "--freeze", "audio", "--spec_augment", modality="audio")
        assert "because --spec_augment gives" in caplog.text
        assert not (tmp_path / "runs" / "features").exists()

    def test_less_than_one_epoch(self, train, tmp_path, caplog):
        assert len(train("short", "--freeze", "image", "--max_steps", 3)) == 3
        assert "3 steps see less than the data once" in caplog.text
        assert not (tmp_path / "runs" / "features").exists()

    def test_nothing_is_frozen(self, train, tmp_path):
        train("all")
        assert not (tmp_path / "runs" / "features").exists()
        with pytest.raises(ValueError, match="--features keeps vectors of frozen towers, and all towers are trained"):
            train("folder", "--features", tmp_path / "store")
        with pytest.raises(ValueError, match="--features: --augment gives the image tower another input"):
            train("augmented", "--freeze", "image", "--augment", "--features", tmp_path / "store")


class TestFolders:
    def test_one_side_is_the_folder_itself(self, train, tmp_path):
        train("run", "--freeze", "image", "--features", tmp_path / "store", "--max_steps", 2)
        assert FeatureStore.open(tmp_path / "store").side == "image"
        # With another side it stays where it is.
        train("both", "--freeze", "image", "text", "--features", tmp_path / "store")
        assert FeatureStore.open(tmp_path / "store" / "text").side == "text"
        assert not (tmp_path / "store" / "image").exists()

    def test_another_tower_or_length_is_refused(self, train, models, tmp_path):
        train("run", "--freeze", "text", "--features", tmp_path / "store")
        with pytest.raises(FeatureError, match=r"input\.max_length is 12 in the store, 8 here"):
            train("length", "--freeze", "text", "--features", tmp_path / "store", "--max_length", 8)
        with pytest.raises(FeatureError, match='side is "text" in the store, "image" here'):
            train("side", "--freeze", "image", "--features", tmp_path / "store")
        weights = load_file(models / "image" / "model.safetensors")
        weights["text_model.embeddings.word_embeddings.weight"][5, 0] += 0.01
        save_file(weights, models / "image" / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(FeatureError, match=r"tower\.weights_sha256"):
            train("weights", "--freeze", "text", "--features", tmp_path / "store")


def test_views_are_drawn_each_epoch(train, tmp_path):
    log = train("run", "--freeze", "image", "--augment", "--feature_views", 3)
    assert len(log) == STEPS
    (folder,) = (tmp_path / "runs" / "features").iterdir()
    store = FeatureStore.open(folder)
    assert store.num_views == 3 and len(store) == 3 * 24
    assert store.identity["views"] == {"number": 3, "augment": True, "audio_window": "first", "seed": 0} | {
        "spec_augment": False
    }
    assert not torch.equal(store.vector(0, 0), store.vector(0, 1))
    train("seed", "--freeze", "image", "--augment", "--feature_views", 3, "--seed", 5)  # shares them
    assert len(list((tmp_path / "runs" / "features").iterdir())) == 1
    with pytest.raises(SystemExit):
        train("off", "--freeze", "image", "--augment", "--feature_views", 3, "--features", "off")


class TestExtractionBeforehand:
    """`extract_features.py` writes what training reads."""

    @pytest.fixture
    def extract(self, picture_table, sound_table):
        def run(*options, modality="image"):
            table = picture_table if modality == "image" else sound_table
            common = ["--dataset", table, "--modality", modality, "--max_bad_fraction", 0.1, "--max_length", 12]
            script = SCRIPT.with_name("extract_features.py")
            runpy.run_path(str(script))["main"]([str(value) for value in (*common, *options)])

        return run

    def test_training_takes_it_as_its_own(self, train, extract, models, tmp_path, monkeypatch, capsys):
        extract("--model", models / "image", "--output_dir", tmp_path / "image")
        extract("--model", models / "image", "--side", "text", "--output_dir", tmp_path / "text")
        extract("--model", models / "audio", "--output_dir", tmp_path / "audio", modality="audio")
        assert "of long clips, the first window" in capsys.readouterr().out
        sizes = [len(FeatureStore.open(tmp_path / side)) for side in ("image", "text", "audio")]
        assert sizes == [24, sum(1 + number % 3 for number in range(ITEMS)), 25]
        monkeypatch.setattr(FrozenSide, "pooled", lambda *_: pytest.fail("an item was embedded again"))
        train("image", "--freeze", "image", "--features", tmp_path / "image")
        train("text", "--freeze", "text", "--features", tmp_path / "text")
        train("audio", "--freeze", "audio", "--features", tmp_path / "audio", modality="audio")

    def test_a_tower_alone_is_the_tower_of_the_model(self, extract, models, image_text_processor, tmp_path):
        whole = ImageTextDualEncoder.from_pretrained(models / "image")
        for kind, tower, part in (
            ("image", whole.image_model, image_text_processor.image_processor),
            ("text", whole.text_model, image_text_processor.tokenizer),
        ):
            tower.save_pretrained(tmp_path / kind)
            part.save_pretrained(tmp_path / kind)
            extract(f"--{kind}_model", tmp_path / kind, "--output_dir", tmp_path / "alone" / kind)
            extract("--model", models / "image", "--side", kind, "--output_dir", tmp_path / "whole" / kind)
            stores = [FeatureStore.open(tmp_path / name / kind) for name in ("alone", "whole")]
            assert stores[0].identity == stores[1].identity
            vectors = [store.vectors(range(len(store))) for store in stores]
            assert len(vectors[0]) >= 24 and torch.equal(*vectors)

    def test_sentences_of_a_text_file(self, models, tmp_path, capsys):
        (tmp_path / "lines.txt").write_text("rain\n\nthe dog barks at night\na red apple\n", encoding="utf-8")
        common = [
            "--dataset",
            tmp_path / "lines.txt",
            "--max_length",
            12,
            "--model",
            models / "image",
            "--side",
            "text",
        ]
        arguments = [*map(str, common), "--output_dir", str(tmp_path / "store"), "--feature_dtype", "float32"]
        runpy.run_path(str(SCRIPT.with_name("extract_features.py")))["main"](arguments)
        store = FeatureStore.open(tmp_path / "store")
        assert store.ids(range(3)) == ["0", "1", "2"]
        model = ImageTextDualEncoder.from_pretrained(models / "image").eval()
        tokenizer = ImageTextProcessor.from_pretrained(models / "image").tokenizer
        inputs = tokenizer(["the dog barks at night"], return_tensors="pt")
        torch.testing.assert_close(store["1"], model(**inputs).text_model_output.pooler_output[0])
        search = ["--model", models / "image", "--features", tmp_path / "store", "the dog barks at night"]
        sheet = tmp_path / "sheet.png"
        runpy.run_path(str(SCRIPT.with_name("search.py")))["main"]([*map(str, search), "--output", str(sheet)])
        assert "1.000  1  the dog barks at night" in capsys.readouterr().out and sheet.is_file()

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
    def test_sentences_of_a_table_without_pictures(self, models, extract, tmp_path, kind):
        rows = {"key": ["a", "b", "c"], "sentence": ["rain", " ", "the dog barks at night"]}
        table = Dataset.from_dict(rows)
        getattr(table, "to_json" if kind == "jsonl" else f"to_{kind}")(tmp_path / f"lines.{kind}")
        where = ["--dataset", tmp_path / f"lines.{kind}", "--output_dir", tmp_path / "store"]
        tower = ["--side", "text", "--max_length", 12, "--max_bad_fraction", 0.5, "--feature_dtype", "float32"]
        extract("--model", models / "image", *tower, *where)
        store = FeatureStore.open(tmp_path / "store")
        assert store.ids(range(len(store))) == ["a", "c"]  # the blank one is a bad item
        model = ImageTextDualEncoder.from_pretrained(models / "image").eval()
        inputs = ImageTextProcessor.from_pretrained(models / "image").tokenizer(
            rows["sentence"][2], return_tensors="pt"
        )
        torch.testing.assert_close(store["c"], model(**inputs).text_model_output.pooler_output[0])
        assert Gallery(store).caption("c") == rows["sentence"][2]
        with pytest.raises(ValueError, match=r"column is the image\? Pass --image_column"):
            extract("--model", models / "image", *where, "--side", "image")

    def test_an_adapter_with_a_trained_audio_tower(self, train, extract, models, tmp_path, capsys):
        """Its store is of the tower that was trained, and `search.py` finds with it what lies in the store."""
        options = ["--lora_rank", 2, "--train_modality", "--max_steps", 2, "--learning_rate", 0.01]
        train("adapter", *options, modality="audio")
        adapter = tmp_path / "runs" / "adapter"
        for name, model in (("adapted", adapter), ("base", models / "audio")):
            extract("--model", model, "--output_dir", tmp_path / name, modality="audio")
        adapted, base = (FeatureStore.open(tmp_path / name) for name in ("adapted", "base"))
        assert adapted.identity["tower"] != base.identity["tower"]
        sound = Path(adapted.identity["data"]["source"]["dataset"][0]).with_name("3.wav")
        found = ["--features", tmp_path / "adapted", "--audio", sound, "--top_k", 1, "--device", "cpu"]
        search = runpy.run_path(str(SCRIPT.with_name("search.py")))["main"]
        search([*map(str, ["--model", adapter, *found, "--output", tmp_path / "sheet.png"])])
        assert "1.000  3.wav" in capsys.readouterr().out
        with pytest.raises(FeatureError, match="of another tower"):
            Search.load(models / "audio", tmp_path / "adapted", device="cpu")

    def test_an_adapter(self, train, extract, models, tmp_path):
        train("adapter", "--lora_rank", 2, "--max_steps", 2)
        for side in ("image", "text"):
            extract("--model", tmp_path / "runs" / "adapter", "--side", side, "--output_dir", tmp_path / side)
            extract("--model", models / "image", "--side", side, "--output_dir", tmp_path / "base" / side)
        adapted = [FeatureStore.open(tmp_path / side) for side in ("image", "text")]
        base = [FeatureStore.open(tmp_path / "base" / side) for side in ("image", "text")]
        assert adapted[0].identity == base[0].identity and len(adapted[1]) == len(base[1]) > 24
        assert adapted[1].identity["tower"] != base[1].identity["tower"]
        for store in adapted:
            assert len(Search.load(tmp_path / "runs" / "adapter", store.folder, device="cpu")("rain", k=3)) == 3

    @pytest.mark.parametrize(
        "options, message",
        [
            ([], "pass one of --model"),
            (["--model", "a", "--text_model", "b"], "pass one of --model"),
            (["--image_model", "a", "--side", "text"], "--image_model has no text tower"),
            (["--image_model", "a", "--pooling", "eos"], "--pooling eos is of texts: an image tower takes cls, mean"),
            (["--audio_model", "a", "--modality", "audio", "--pooling", "last"], "--pooling last is of texts"),
            (["--model", "a", "--side", "audio"], "the audio side needs --modality audio"),
            (["--model", "a", "--features", "b"], "the folder of the vectors is --output_dir"),
        ],
    )
    def test_options_that_do_not_fit(self, extract, capsys, options, message):
        with pytest.raises(SystemExit):
            extract(*options)
        assert message in capsys.readouterr().err

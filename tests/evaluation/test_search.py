"""Search in feature stores: the answers of a product of all embeddings, by tiles and through FAISS."""

import importlib.util
import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from xmodal_hf import AudioTextDualEncoder, ImageTextDualEncoder, ImageTextProcessor
from xmodal_hf.evaluation import as_embedder
from xmodal_hf.evaluation.search import Gallery, Search
from xmodal_hf.features import FeatureError, FeatureStore
from xmodal_hf.models.text_format import set_text_prefix
from xmodal_hf.training.arguments import PairArguments
from xmodal_hf.training.features import _source

SCRIPTS = Path(__file__).parents[2] / "training_scripts"
WORDS = ("rain", "the dog barks", "a red apple", "music plays", "two small birds sing")


# FAISS is an extra of the package (`faiss`), without which search gives the same answers.
has_no_faiss = importlib.util.find_spec("faiss") is None
with_and_without_faiss = pytest.mark.parametrize(
    "use_faiss", [False, pytest.param(True, marks=pytest.mark.skipif(has_no_faiss, reason="FAISS is not installed"))]
)


def run_script(name, *options):
    runpy.run_path(str(SCRIPTS / name))["main"]([str(option) for option in options])


@pytest.fixture
def pictures(tmp_path):
    """Twenty pictures with two captions each."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(20):
        path = tmp_path / f"{number}.png"
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        rows.append({"image": path.name, "captions": [WORDS[number % 5], f"{WORDS[number % 3]} {WORDS[number % 4]}"]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "rows.jsonl"


@pytest.fixture
def store(image_text_folder, pictures, tmp_path):
    run_script(
        "extract_features.py", "--model", image_text_folder, "--dataset", pictures, "--output_dir", tmp_path / "f"
    )
    return tmp_path / "f"


def expected(folder, pictures, query, k):
    """The best by the embedder of the evaluation, without a store."""
    model = ImageTextDualEncoder.from_pretrained(folder)
    embedder = as_embedder(model, None)
    images = [pictures.parent / f"{number}.png" for number in range(20)]
    cosines = (embedder.encode_image(images) @ embedder.encode_text([query])[0]).tolist()
    order = sorted(range(20), key=lambda number: -cosines[number])[:k]
    return [f"{number}.png" for number in order], [cosines[number] for number in order]


@with_and_without_faiss
def test_text_finds_what_the_embedder_finds(image_text_folder, pictures, store, use_faiss, monkeypatch):
    monkeypatch.setattr(FeatureStore, "tiles", lambda self, size=7, real=FeatureStore.tiles: real(self, size))
    search = Search.load(image_text_folder, store, device="cpu", use_faiss=use_faiss)
    for query in ("rain", "a red apple"):
        ids, cosines = expected(image_text_folder, pictures, query, 6)
        hits = search(query, k=6)
        assert [hit.id for hit in hits] == ids
        assert [hit.score for hit in hits] == pytest.approx(cosines, abs=2e-3)
        assert [hit.row for hit in hits] == [int(hit.id.split(".")[0]) for hit in hits]


def test_an_instruction_comes_before_each_query(image_text_folder, pictures, store, tmp_path):
    """The model's processor brings it, for the words of a query and for stores of captions."""
    processor = ImageTextProcessor.from_pretrained(image_text_folder)
    set_text_prefix(processor.tokenizer, "music plays ")
    folder = shutil.copytree(image_text_folder, tmp_path / "instructed")
    processor.save_pretrained(folder)
    plain, instructed = (Search.load(one, store, device="cpu") for one in (image_text_folder, folder))
    for query in ("rain", "a red apple"):
        scores = [hit.score for hit in instructed(query, k=6)]
        assert scores == [hit.score for hit in plain(f"music plays {query}", k=6)]
        assert scores != [hit.score for hit in plain(query, k=6)]
    options = ("--model", image_text_folder, "--dataset", pictures, "--side", "text", "--output_dir", tmp_path / "t")
    run_script("extract_features.py", *options)
    with pytest.raises(FeatureError, match=r"is of another tokenizer or instruction: tokenizer\.sha256"):
        Search.load(folder, tmp_path / "t", device="cpu")


def test_a_picture_finds_itself_first(image_text_folder, pictures, store):
    search = Search.load(image_text_folder, store, device="cpu")
    for number in (0, 13):
        hits = search(image=pictures.parent / f"{number}.png", k=3)
        assert hits[0].id == f"{number}.png" and hits[0].score == pytest.approx(1, abs=1e-3) and len(hits) == 3
    assert len(search("rain", k=100)) == 20


def test_captions_are_found_by_a_picture(image_text_folder, pictures, tmp_path):
    options = ("--model", image_text_folder, "--dataset", pictures, "--side", "text", "--output_dir", tmp_path / "t")
    run_script("extract_features.py", *options)
    search = Search.load(image_text_folder, tmp_path / "t", device="cpu")
    hit = search(search_caption := f"{WORDS[1]} {WORDS[2]}", k=1)[0]  # the second caption of number 10, for one
    assert hit.position == 1 and Gallery(search.store).caption(hit.id, 1) == search_caption
    hits = search(image=pictures.parent / "3.png", k=8)
    assert len({hit.id for hit in hits}) == 8  # each item once


@with_and_without_faiss
def test_an_item_with_very_many_captions_hides_no_other(image_text_folder, tmp_path, use_faiss):
    """Its captions are nearer than those of all others, and count as one answer."""
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    rows = [{"id": str(number), "image": "0.png", "captions": [word]} for number, word in enumerate(WORDS[1:] * 5)]
    rows[0]["captions"] = ["rain"] * 60
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--model", image_text_folder, "--dataset", tmp_path / "rows.jsonl", "--side", "text")
    run_script("extract_features.py", *options, "--output_dir", tmp_path / "t")
    search = Search.load(image_text_folder, tmp_path / "t", device="cpu", use_faiss=use_faiss)
    found = search.nearest(search.embedder.encode_text(["rain", "a red apple"]), k=3)
    assert [len({hit.id for hit in hits}) for hits in found] == [3, 3]
    assert found[0][0].id == "0"
    assert all(hits == sorted(hits, key=lambda hit: -hit.score) for hits in found)
    assert len(search("rain", k=100)) == len(rows)


def test_items_of_several_data_sets(image_text_folder, tmp_path, monkeypatch):
    """Which have equal ids, and had other names when they were embedded."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("a", "b")):
        for row, colour in enumerate(("red", "blue")):
            Path(name).mkdir(exist_ok=True)
            Image.new("RGB", (8 + number, 8 + row), colour).save(f"{name}/{row}.png")
        (tmp_path / name / "rows.csv").write_text(f"file_name,text\n0.png,{name} red\n1.png,{name} blue\n")
    names = ("a/rows.csv", "b/rows.csv")
    run_script("extract_features.py", "--model", image_text_folder, "--dataset", *names, "--output_dir", "f")
    store = FeatureStore.open("f")
    for gallery in (Gallery(store), Gallery(store, names)):
        ids = store.ids(range(4))
        assert ids == ["a/rows.csv/0.png", "a/rows.csv/1.png", "b/rows.csv/0.png", "b/rows.csv/1.png"]
        assert [gallery.caption(item_id) for item_id in ids] == ["a red", "a blue", "b red", "b blue"]
        assert [gallery.picture(item_id).size for item_id in ids] == [(8, 8), (8, 9), (9, 8), (9, 9)]
        assert gallery.caption("c/rows.csv/0.png") == "" and list(gallery.table["id"]) == [
            row["id"] for row in map(gallery.table.__getitem__, range(4))
        ]


def test_captions_of_joined_rows(pictures, tmp_path):
    """As --captions_per_item joins them: the number of a caption is that among all of its item."""
    pairs = [{"image": f"{number}.png", "caption": text} for number, text in ((0, "rain"), (1, "a"), (0, "b"))]
    table = pictures.parent / "repeated.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    source = _source(PairArguments(dataset=[str(table)], captions_per_item=2))
    gallery = Gallery(SimpleNamespace(identity={"data": {"source": source}}))
    assert [gallery.caption("0.png", number) for number in range(3)] == ["rain", "b", ""]
    assert gallery.caption("1.png", 0) == "a"


def test_a_trained_projection_searches_the_same_store(image_text_folder, store):
    search = Search.load(image_text_folder, store, device="cpu")
    model = ImageTextDualEncoder.from_pretrained(image_text_folder)
    with torch.no_grad():
        model.image_projection.weight.copy_(torch.randn_like(model.image_projection.weight))
    other = Search(model, search.embedder.processor, search.store)
    assert [hit.score for hit in other("rain")] != [hit.score for hit in search("rain")]
    with torch.no_grad():
        next(model.image_model.parameters()).add_(1)
    with pytest.raises(FeatureError, match=r"of another tower: tower\.weights_sha256"):
        Search(model, search.embedder.processor, search.store)


def test_the_script_prints_and_draws(image_text_folder, pictures, store, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    options = ("--model", image_text_folder, "--features", store, "--top_k", 4, "--output", sheet, "--device", "cpu")
    run_script("search.py", *options, "rain", "a red apple", "--image", pictures.parent / "5.png")
    printed = capsys.readouterr().out
    ids, _ = expected(image_text_folder, pictures, "rain", 4)
    lines = printed[printed.index("“rain”") :].splitlines()
    assert [line.split()[1] for line in lines[1:5]] == ids
    assert lines[11].split()[1:] == ["5.png", "rain"]  # itself, with its caption
    assert min(Image.open(sheet).size) > 300
    with pytest.raises(SystemExit):
        run_script("search.py", *options)
    assert "say what to look for" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_script("search.py", *options, "--image", tmp_path / "none.png")
    assert f"--image: there is no file {tmp_path / 'none.png'}" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match="--model: there is no file or folder outputs/none"):
        run_script("search.py", "--model", "outputs/none", *options[2:], "rain")
    with pytest.raises(ValueError, match="the model takes no sounds"):
        run_script("search.py", *options, "--audio", pictures.parent / "5.png")


def test_sounds(audio_text_folder, tmp_path, capsys):
    rows = []
    for number in range(5):
        path = tmp_path / f"tone{number}.wav"
        soundfile.write(path, 0.5 * np.sin(np.arange(8000) * (number + 1) / 20), 8000)
        rows.append({"audio": path.name, "caption": WORDS[number]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("--model", audio_text_folder)
    data = ("--modality", "audio", "--dataset", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "f")
    run_script("extract_features.py", *common, *data)
    sheet = tmp_path / "sheet.png"
    sound = tmp_path / "tone3.wav"
    run_script("search.py", *common, "--features", tmp_path / "f", "rain", "--audio", sound, "--output", sheet)
    printed = capsys.readouterr().out
    assert printed[printed.rindex("tone3.wav\n") :].splitlines()[1].split()[1] == "tone3.wav"
    assert Image.open(sheet).size[0] > 300
    assert isinstance(Search.load(audio_text_folder, tmp_path / "f").model, AudioTextDualEncoder)


def test_bad_queries(image_text_folder, store):
    search = Search.load(image_text_folder, store, device="cpu")
    with pytest.raises(ValueError, match="exactly one query: a text, an image"):
        search()
    with pytest.raises(ValueError, match="k, the number of answers, must be at least 1, got 0"):
        search("rain", k=0)
    with pytest.raises(ValueError, match="no feature_extractor"):
        search(audio=np.zeros(10))

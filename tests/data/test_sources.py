import csv
import gzip
import io
import json
import logging
import zipfile

import numpy as np
import PIL.Image
import pytest
import soundfile
from datasets import Audio, ClassLabel, Dataset, Features, Image, List

from xmodal_hf.data.builtin import BUILT_IN, load_built_in, openmoji, soundfont
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.data.files import read_media
from xmodal_hf.data.sampling import PairDataset
from xmodal_hf.data.sentences import load_sentences, sentence_rows
from xmodal_hf.data.sources import load_pairs, stream_pairs


def write_jsonl(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def assert_pairs_match(samples):
    """Every picture goes with the caption that names its number."""

    def check(pairs):
        assert pairs.column_names == ["id", "image", "text"]
        items = PairDataset(pairs, seed=0)
        assert len(items) == 12
        for index in range(12):
            item = items[index]
            assert item["text"] == f"picture of number {samples.number_of(item['image'])}"
        assert samples.number_of(pairs[3]["image"].convert("RGB")) == 3  # the column decodes for other users too

    return check


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.tsv"])
def test_table_with_paths(tmp_path, image_table, assert_pairs_match, name):
    write = write_csv if name.endswith("sv") else write_jsonl
    pairs = load_pairs(write(tmp_path / name, image_table))
    assert_pairs_match(pairs)
    assert pairs["id"][:2] == ["files/0.png", "files/1.png"]


def test_parquet_with_bytes(tmp_path, image_table, assert_pairs_match):
    contents = [(tmp_path / row["image"]).read_bytes() for row in image_table]
    captions = [row["caption"] for row in image_table]
    Dataset.from_dict({"png": contents, "caption": captions}).to_parquet(tmp_path / "bytes.parquet")
    pairs = load_pairs(tmp_path / "bytes.parquet")
    assert_pairs_match(pairs)
    assert pairs["id"][:2] == ["row 0", "row 1"]


def test_parquet_with_an_image_feature(tmp_path, image_table, assert_pairs_match):
    rows = Dataset.from_list(image_table).map(lambda row: {"image": str(tmp_path / row["image"])})
    rows.cast_column("image", Image()).to_parquet(tmp_path / "feature.parquet")
    assert_pairs_match(load_pairs(tmp_path / "feature.parquet"))


def test_zip_beside_a_table(tmp_path, image_table, assert_pairs_match):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        for row in image_table[6:]:
            archive.write(tmp_path / row["image"], row["image"])
            (tmp_path / row["image"]).unlink()
    assert_pairs_match(load_pairs(write_jsonl(tmp_path / "rows.jsonl", image_table)))  # half in files, half in the zip


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("has_split_folder", [False, True])
def test_folder_with_metadata(tmp_path, image_table, assert_pairs_match, name, has_split_folder):
    folder = tmp_path / "validation" if has_split_folder else tmp_path
    folder.mkdir(exist_ok=True)
    (tmp_path / "files").rename(folder / "pictures")
    rows = [{"file_name": row["image"].replace("files", "pictures"), "text": row["caption"]} for row in image_table]
    write = write_csv if name.endswith("csv") else write_jsonl
    write(folder / name, rows)
    assert_pairs_match(load_pairs(tmp_path, split="validation" if has_split_folder else "train"))


def test_folder_with_one_folder_a_class(tmp_path, samples):
    for number, name in ((3, "tree_frog"), (5, "cat")):
        (tmp_path / name).mkdir()
        samples.image(number).save(tmp_path / name / "one.jpg", quality=100)
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    pairs = load_pairs(tmp_path)
    assert pairs["text"][:] == ["cat", "tree frog"]
    assert pairs["id"][:] == ["cat/one.jpg", "tree_frog/one.jpg"]


def test_folder_from_save_to_disk(tmp_path, image_table, assert_pairs_match):
    rows = Dataset.from_list(image_table).map(lambda row: {"image": str(tmp_path / row["image"])})
    rows.cast_column("image", Image()).save_to_disk(tmp_path / "saved")
    assert_pairs_match(load_pairs(tmp_path / "saved"))


def test_many_captions_a_row_stay_a_list(tmp_path, image_table):
    rows = [{"image": row["image"], "captions": [row["caption"], "a picture"]} for row in image_table]
    assert load_pairs(write_jsonl(tmp_path / "rows.jsonl", rows))["text"][0] == ["picture of number 0", "a picture"]


def test_rows_of_one_picture_are_one_item(tmp_path, image_table):
    """The layout of Kaggle's Flickr8k: one row a caption."""
    rows = [row | {"caption": f"{row['caption']} {again}"} for row in image_table for again in range(2)]
    items = PairDataset(load_pairs(write_csv(tmp_path / "rows.csv", rows)), seed=0)
    groups = [items[index]["group_id"] for index in range(len(items))]
    assert groups[0::2] == groups[1::2]
    assert len(set(groups)) == 12


def test_equal_ids_are_counted(tmp_path, image_table, caplog):
    path = write_jsonl(tmp_path / "rows.jsonl", [*image_table, *image_table[:5]])
    with caplog.at_level(logging.WARNING, logger="xmodal_hf"):
        assert len(load_pairs(path)) == 17
    assert "17 rows have 12 different ids" in caplog.text and "--id_column" in caplog.text
    caplog.clear()
    load_pairs(write_jsonl(tmp_path / "unique.jsonl", image_table))
    assert not caplog.text


def test_a_column_named_split_selects_rows(tmp_path, image_table):
    rows = [row | {"split": "val" if index % 3 == 0 else "train"} for index, row in enumerate(image_table)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    sizes = [len(load_pairs(path, split=split)) for split in ("train", "val", "validation", "dev", "all")]
    assert sizes == [8, 4, 4, 4, 12]
    with pytest.raises(ValueError, match=r"no row of the split 'test', only of train, val"):
        load_pairs(path, split="test")


def test_columns_can_be_named(tmp_path, image_table, assert_pairs_match):
    rows = [{"a": row["image"], "b": row["caption"], "c": f"item {i}"} for i, row in enumerate(image_table)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    pairs = load_pairs(path, image_column="a", text_column="b", id_column="c")
    assert_pairs_match(pairs)
    assert pairs["id"][4] == "item 4"


def test_an_id_column_is_found(tmp_path, image_table):
    rows = [row | {"image_id": index * 10} for index, row in enumerate(image_table)]
    assert load_pairs(write_jsonl(tmp_path / "rows.jsonl", rows))["id"][:3] == ["0", "10", "20"]


def test_unknown_columns_say_what_to_pass(tmp_path, image_table):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"image": row["image"], "words": "x"} for row in image_table])
    with pytest.raises(ValueError, match=r"Pass --text_column\. Columns found: image, words"):
        load_pairs(path)
    with pytest.raises(ValueError, match=r"no column 'word' for the text\. Columns found: image, words"):
        load_pairs(path, text_column="word")
    with pytest.raises(ValueError, match=r"Pass --audio_column"):
        load_pairs(path, modality="audio", text_column="words")


def test_words_that_pandas_takes_for_missing_are_text(tmp_path, image_table):
    rows = [row | {"caption": word} for row, word in zip(image_table, ["NA", "null", "None"], strict=False)]
    assert load_pairs(write_csv(tmp_path / "rows.csv", rows))["text"][:] == ["NA", "null", "None"]


def test_max_samples(tmp_path, image_table):
    path = write_jsonl(tmp_path / "rows.jsonl", image_table)
    assert len(load_pairs(path, max_samples=5)) == 5
    assert len(load_pairs(path, max_samples=500)) == 12


@pytest.mark.parametrize("limit", [0, -1])
def test_a_maximum_below_one_is_refused(tmp_path, image_table, limit):
    """Programs that mean all rows by -1 would get none, or all but the last."""
    path = write_jsonl(tmp_path / "rows.jsonl", image_table)
    for load in (load_pairs, sentence_rows):
        with pytest.raises(ValueError, match=f"max_samples must be at least 1, got {limit}; leave it out for all rows"):
            load(path, max_samples=limit)
    with pytest.raises(ValueError, match=f"max_sentences must be at least 1, got {limit}"):
        load_sentences(path, max_sentences=limit)


def test_built_in_sets_make_no_more_rows_than_are_kept(monkeypatch):
    whole = {source: load_built_in(source, "test") for source in ("openmoji", "soundfont")}
    drawn, made = [], []
    png, make_clip = openmoji._Painter.png, soundfont.make_clip
    monkeypatch.setattr(openmoji._Painter, "png", lambda self, emoji: drawn.append(emoji) or png(self, emoji))
    monkeypatch.setattr(soundfont, "make_clip", lambda *clip: made.append(clip) or make_clip(*clip))
    few = load_pairs("openmoji", split="test", max_samples=3, negative_text_column="swapped")
    wrong = load_pairs("openmoji", split="test", negative_text_column="swapped")["negative_text"][:3]
    assert drawn[:3] == [id_to_emoji(item_id) for item_id in few["id"]] and len(drawn) == 3 + len(whole["openmoji"])
    assert few["negative_text"][:] == wrong
    sounds = load_pairs("soundfont", modality="audio", split="test", max_samples=2)
    assert made == [("test", 0), ("test", 1)]
    for pairs, name in ((few, "openmoji"), (sounds, "soundfont")):
        kept = whole[name].select(range(len(pairs)))
        assert pairs["id"][:] == kept["id"][:] and pairs["text"][:] == kept["text"][:]
    assert few[2]["image"].tobytes() == whole["openmoji"][2]["image"].tobytes()


def id_to_emoji(item_id):
    return "".join(chr(int(code, 16)) for code in item_id.split("-"))


def test_added_sets_need_not_take_a_maximum(monkeypatch):
    rows = {"id": ["a", "b"], "image": [None, None], "text": ["x", "y"]}
    monkeypatch.setitem(BUILT_IN, "mine", lambda split: Dataset.from_dict(rows))
    assert load_pairs("mine", max_samples=1)["id"][:] == ["a"]


def test_lists_of_class_labels_become_lists_of_their_names(tmp_path):
    features = Features({"image": Image(), "tags": List(ClassLabel(names=["cat", "dog"]))})
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    cells = {"image": [str(tmp_path / "0.png")] * 3, "tags": [[1, 0], [0], None]}
    Dataset.from_dict(cells, features=features).to_parquet(str(tmp_path / "rows.parquet"))
    for load in (load_pairs, stream_pairs):
        pairs = load(tmp_path / "rows.parquet", text_column="tags")
        assert list(pairs["text"]) == [["dog", "cat"], ["cat"], None]


@pytest.mark.parametrize("name", ["start_time", "Onset", "offset"])
def test_several_segments_of_one_sound_are_refused(tmp_path, name):
    """Each would be the whole file, and all of them captions of one item."""
    soundfile.write(tmp_path / "0.wav", np.sin(np.arange(8000)), 8000)
    rows = [{"file_name": "0.wav", "text": text, name: start} for text, start in (("rain", 0.0), ("thunder", 0.5))]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=rf"column '{name}' names several segments of .*0\.wav.*ffmpeg -ss START"):
        load_pairs(path, modality="audio")
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    with pytest.raises(ValueError, match=rf"column '{name}' names several segments of .*0\.wav"):
        stream_pairs(tmp_path / "rows.parquet", modality="audio")
    write_jsonl(path, [row | {name: 30} for row in rows])  # two captions of one segment, as AudioCaps has them
    assert load_pairs(path, modality="audio")["text"][:] == ["rain", "thunder"]
    for empty in (None, float("nan")):  # rows that do not say where a segment begins
        path = tmp_path / f"{empty}.parquet"
        Dataset.from_list([row | {name: empty} for row in rows]).to_parquet(str(path))
        for load in (load_pairs, stream_pairs):
            assert [row["text"] for row in load(path, modality="audio")] == ["rain", "thunder"]


def test_loading_opens_no_picture(tmp_path, image_table):
    path = write_jsonl(tmp_path / "rows.jsonl", [row | {"image": "nowhere.png"} for row in image_table])
    assert len(load_pairs(path)) == 12


def test_sources_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*gone\.jsonl"):
        load_pairs(tmp_path / "gone.jsonl")
    (tmp_path / "rows.docx").write_text("x")
    with pytest.raises(ValueError, match=r"rows\.docx is none of \.txt, \.csv"):
        load_pairs(tmp_path / "rows.docx")
    (tmp_path / "broken.jsonl").write_text('{"image": "a.png", "caption": "x"}\n{"image": \n')
    with pytest.raises(ValueError, match=r"broken\.jsonl cannot be read: line 2: Expecting value"):
        load_pairs(tmp_path / "broken.jsonl")
    lines = ['{"image": "a.png", "caption": "x"}', *["nonsense"] * 8]
    with gzip.open(tmp_path / "broken.jsonl.gz", "wt") as file:
        file.write("\n".join(lines))
    with pytest.raises(ValueError, match=r"line 2: .*line 6: .* \(and 3 more lines\)"):
        load_pairs(tmp_path / "broken.jsonl.gz")
    with pytest.raises(ValueError, match="modality is 'image' or 'audio', not 'video'"):
        load_pairs("openmoji", modality="video")
    with pytest.raises(ValueError, match="has no audio, only id, image, text"):
        load_pairs("openmoji", modality="audio", split="test")


class TestAudio:
    @pytest.fixture
    def sounds(self, tmp_path, samples):
        for number in range(3):
            soundfile.write(tmp_path / f"{number}.wav", samples.tone(0.1 * (number + 1)), 8000)
        return [{"file": f"{number}.wav", "text": f"sound {number}"} for number in range(3)]

    def assert_sounds(self, pairs):
        items = PairDataset(pairs, seed=0, sampling_rate=8000)
        assert [(item["text"], len(item["audio"])) for item in (items[i] for i in range(3))] == [
            ("sound 0", 800),
            ("sound 1", 1600),
            ("sound 2", 2400),
        ]

    def test_paths(self, tmp_path, sounds):
        self.assert_sounds(load_pairs(write_jsonl(tmp_path / "rows.jsonl", sounds), modality="audio"))

    def test_zip(self, tmp_path, sounds):
        with zipfile.ZipFile(tmp_path / "audio.zip", "w") as archive:
            for row in sounds:
                archive.write(tmp_path / row["file"], row["file"])
                (tmp_path / row["file"]).unlink()
        self.assert_sounds(load_pairs(write_jsonl(tmp_path / "rows.jsonl", sounds), modality="audio"))

    @pytest.mark.parametrize("kind", ["binary", "struct", "feature"])
    def test_parquet(self, tmp_path, sounds, kind):
        contents = [(tmp_path / row["file"]).read_bytes() for row in sounds]
        cells = contents if kind == "binary" else [{"bytes": content, "path": None} for content in contents]
        table = Dataset.from_dict({"audio": cells, "text": [row["text"] for row in sounds]})
        if kind == "feature":
            table = table.cast_column("audio", Audio(decode=False))
        table.to_parquet(tmp_path / "rows.parquet")
        self.assert_sounds(load_pairs(tmp_path / "rows.parquet", modality="audio"))

    def test_audio_folder(self, tmp_path, sounds):
        (tmp_path / "train").mkdir()
        for row in sounds:
            (tmp_path / row["file"]).rename(tmp_path / "train" / row["file"])
        rows = [{"file_name": row["file"], "text": row["text"]} for row in sounds]
        write_jsonl(tmp_path / "train" / "metadata.jsonl", rows)
        self.assert_sounds(load_pairs(tmp_path, modality="audio"))


def test_flickr8k(real_data):
    path = real_data / "flickr8k" / "captions.jsonl.gz"
    assert [len(load_pairs(path, split=split)) for split in ("train", "val", "test", "all")] == [6000, 1000, 1000, 8091]
    pairs = load_pairs(path, split="test")
    item = PairDataset(pairs, seed=0)[7]
    assert item["image"].size == (128, 128)
    assert item["text"] in pairs["text"][7] and len(pairs["text"][7]) == 5
    with zipfile.ZipFile(path.parent / "images.zip") as archive:
        stored = archive.read(item["id"])
    assert io.BytesIO(stored).getvalue()[:2] == b"\xff\xd8"


@pytest.mark.parametrize("name, text, length", [("esc10", "category", 400), ("fsdd", "word", 2700)])
def test_real_audio(real_data, name, text, length):
    pairs = load_pairs(real_data / name / "clips.jsonl.gz", modality="audio", text_column=text)
    assert len(pairs) == length
    item = PairDataset(pairs, seed=0, sampling_rate=16_000)[11]
    assert item["audio"].ndim == 1 and abs(item["audio"]).max() > 0.01


def test_an_empty_file(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match=r"empty\.jsonl is empty: pass a file with at least one row"):
        load_pairs(tmp_path / "empty.jsonl")


def test_a_zip_of_class_folders_is_read_like_the_folders(tmp_path):
    for name, colour in (("red_fox", "red"), ("blue_jay", "blue")):
        PIL.Image.new("RGB", (4, 4), colour).save(tmp_path / f"{name}.png")
    for archive, top in (("train.zip", ""), ("test.zip", "pictures/")):
        with zipfile.ZipFile(tmp_path / archive, "w") as target:
            for name in ("red_fox", "blue_jay"):
                target.write(tmp_path / f"{name}.png", f"{top}{name}/0.png")
    table = load_pairs(tmp_path / "test.zip")
    assert table["text"][:] == ["blue jay", "red fox"]  # no member of the other archive
    assert table[1]["image"].getpixel((0, 0)) == (255, 0, 0)
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as target:
        target.write(tmp_path / "red_fox.png", "red_fox.png")
    with pytest.raises(ValueError, match="no <class>/<file> members"):
        load_pairs(tmp_path / "flat.zip")


def test_a_broken_zip_beside_the_table_does_no_harm(tmp_path, image_table, assert_pairs_match, caplog):
    (tmp_path / "backup.zip").write_bytes(b"no zip")
    with caplog.at_level(logging.WARNING, logger="xmodal_hf"):
        assert_pairs_match(load_pairs(write_jsonl(tmp_path / "rows.jsonl", image_table)))
    assert "backup.zip cannot be read" in caplog.text


def test_rows_without_an_id_have_their_own(tmp_path, image_table):
    rows = [row | {"id": None if number < 2 else f"item {number}"} for number, row in enumerate(image_table)]
    ids = load_pairs(write_jsonl(tmp_path / "rows.jsonl", rows))["id"][:]
    assert ids[:3] == ["row 0", "row 1", "item 2"]


def test_what_a_mac_puts_into_archives_is_no_picture(tmp_path, samples):
    with zipfile.ZipFile(tmp_path / "classes.zip", "w") as archive:
        for name in ("top/cat/1.png", "__MACOSX/top/cat/._1.png", "top/cat/.hidden.png"):
            with archive.open(name, "w") as file:
                samples.image(1).save(file, "PNG")
    assert load_pairs(tmp_path / "classes.zip")["id"][:] == ["top/cat/1.png"]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"path": "a\0b.png"}, "unreadable file: .*ValueError: embedded null byte"),
        ({"path": "zip://1.png::{folder}/damaged.zip"}, "unreadable file: .*(BadZipFile|error)"),
        ({"path": "tar://0+10::{folder}/short.tar"}, "archive is cut off: .* has 4 of 10 bytes at 0"),
        ({}, "no media"),
    ],
)
def test_cells_that_cannot_be_read_are_bad_items(cell, reason, tmp_path):
    (tmp_path / "short.tar").write_bytes(b"1234")
    with zipfile.ZipFile(tmp_path / "damaged.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", b"x" * 1000)
    content = bytearray((tmp_path / "damaged.zip").read_bytes())
    content[36:40] = b"\xff" * 4  # within the compressed member
    (tmp_path / "damaged.zip").write_bytes(content)
    cell = {name: value.replace("{folder}", str(tmp_path)) for name, value in cell.items()}
    with pytest.raises(BadItemError, match=reason):
        read_media(cell)


@pytest.mark.parametrize(
    ("captions", "held"),
    [
        (lambda number: {"en": f"item {number}", "fr": "x"}, "dictionaries of en, fr"),
        (lambda number: [{"raw": f"item {number}"}], "lists of dictionaries of raw"),
        (lambda number: [[f"item {number}"], ["x"]], "lists of lists"),
    ],
)
@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_a_column_that_can_hold_no_captions_is_named(tmp_path, captions, held, kind):
    """In training, validation, evaluation and the dry run alike, which load pairs by this function, and streamed."""
    rows = [{"image": f"{number}.png", "caption": captions(number), "alt": "a dog"} for number in range(3)]
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
        with pytest.raises(ValueError, match=f"the column 'caption' holds {held}; .*another column with --text_column"):
            stream_pairs(path)
    else:
        path.write_text(json.dumps(rows) if kind == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=f"the column 'caption' holds {held}; .*another column with --text_column"):
        load_pairs(path)
    assert load_pairs(path, text_column="alt")["text"][:] == ["a dog"] * 3

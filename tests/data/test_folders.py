"""Folders and archives: texts beside files, tables around them, classes where nothing else could be the caption."""

import io
import json
import os
import shutil
import unicodedata
import zipfile

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from PIL import Image

from xmodal_hf.data.mixing import undecoded
from xmodal_hf.data.sampling import PairDataset
from xmodal_hf.data.sentences import load_sentences
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.data.tables import load_table


def content(name):
    buffer = io.BytesIO()
    if name.endswith((".png", ".jpg", ".webp", ".JPG")):
        Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    elif name.endswith((".wav", ".opus", ".aiff", ".flac", ".oga")):
        kinds = {"opus": ("OGG", "OPUS"), "aiff": ("AIFF", None), "flac": ("FLAC", None), "oga": ("OGG", "VORBIS")}
        kind, subtype = kinds.get(name.rpartition(".")[2], ("WAV", None))
        soundfile.write(buffer, np.sin(np.arange(4000)), 8000, format=kind, subtype=subtype)
    else:
        buffer.write(b"no media")
    return buffer.getvalue()


def fill(folder, *names, **texts):
    """Files by name with fitting contents; of keywords, the text."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(name))
    return folder


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("in_zip", [False, True])
@pytest.mark.parametrize("ending", [".txt", ".caption", ".json", ".png.txt", ".png.json"])
@pytest.mark.parametrize("folders", [("", ""), ("cat", "dog")])
def test_texts_beside_the_files_are_the_captions(tmp_path, ending, folders, in_zip, caplog):
    folder = tmp_path / "data"
    for number, name in enumerate(folders):
        fill(folder / name, f"{number}.png")
        text = f"caption of {number}"
        text = json.dumps({"text": "", "caption": text}) if ending.endswith("json") else text
        (folder / name / f"{number}{ending}").write_text(text)
    pairs = load_pairs(zipped(folder, tmp_path / "data.zip") if in_zip else folder)
    assert pairs["text"][:] == [["caption of 0"], ["caption of 1"]]
    assert "classes from folder names" not in caplog.text
    assert pairs[1]["image"].size == (8, 8)


def test_a_named_field_goes_before_the_text_file(tmp_path):
    fill(tmp_path, "0.png")
    (tmp_path / "0.txt").write_text("alt text")
    (tmp_path / "0.json").write_text('{"long": "a long caption", "short": ["a", "b"]}')
    assert load_pairs(tmp_path)["text"][0] == ["alt text"]
    assert load_pairs(tmp_path, text_column="long")["text"][0] == ["a long caption"]
    assert load_pairs(tmp_path, text_column=["short", "long"])["text"][0] == ["a", "b", "a long caption"]


def test_files_without_a_text_beside_them_are_counted_and_stay(tmp_path, caplog):
    fill(tmp_path, "0.png", "1.png", "2.png")
    (tmp_path / "0.txt").write_text("one")
    assert len(load_pairs(tmp_path)) == 3
    assert "2 of 3 files have no caption beside them" in caplog.text


def test_texts_that_hold_no_caption_are_an_error_and_no_reason_for_class_names(tmp_path):
    fill(tmp_path, "cat/0.png", "dog/1.png")
    for name in ("cat/0.json", "dog/1.json"):
        (tmp_path / name).write_text('{"width": 8, "alt": "x"}')
    with pytest.raises(ValueError, match=r"hold no caption.*name another one with --text_column"):
        load_pairs(tmp_path)
    assert load_pairs(tmp_path, text_column="alt")["text"][:] == [["x"], ["x"]]


@pytest.mark.parametrize("modality", ["image", "audio"])
@pytest.mark.parametrize("in_zip", [False, True])
def test_class_names_are_said_and_no_ending_is_lost(tmp_path, modality, in_zip, caplog):
    endings = ("png", "jpg", "JPG", "webp") if modality == "image" else ("wav", "opus", "aiff", "oga")
    names = [f"class_{letter}/1.{ending}" for letter, ending in zip("abcd", endings, strict=True)]
    folder = fill(tmp_path / "data", *names)
    pairs = load_pairs(zipped(folder, tmp_path / "data.zip") if in_zip else folder, modality=modality)
    assert sorted(pairs["text"][:]) == ["class a", "class b", "class c", "class d"]
    assert "4 classes from folder names: class a, class b, class c, class d" in caplog.text


def test_files_that_are_left_out_are_counted_by_ending(tmp_path, caplog):
    fill(tmp_path, "dog/1.wav", "dog/2.m4a", "dog/3.m4a", "cat/1.wav", "cat/notes.txt", "README")
    assert len(load_pairs(tmp_path, modality="audio")) == 2
    assert (
        "4 files are left out: 2 .m4a (cannot be decoded: convert with `ffmpeg -i NAME.m4a NAME.flac`)" in caplog.text
    )


def test_a_class_without_a_file_that_can_be_decoded_does_not_vanish(tmp_path):
    fill(tmp_path, "dog/1.wav", "cat/1.m4a", "cat/2.wma")
    with pytest.raises(ValueError, match=r"no file of the class 'cat' can be decoded: 1 \.m4a .*ffmpeg -i"):
        load_pairs(tmp_path, modality="audio")


@pytest.mark.parametrize("names", [("1.m4a", "2.m4a"), ("dog/1.m4a", "cat/1.webm")])
def test_formats_that_the_decoder_lacks_are_named(tmp_path, names):
    fill(tmp_path, *names)
    with pytest.raises(ValueError, match=r"cannot be decoded: convert with `ffmpeg -i"):
        load_pairs(tmp_path, modality="audio")


@pytest.mark.parametrize("place", ["pictures/captions.csv", "captions.csv", "annotations/all.csv", "captions.txt"])
@pytest.mark.parametrize("source", ["", "pictures"])
def test_a_table_in_a_folder_or_above_it_is_read(tmp_path, place, source, caplog):
    fill(tmp_path, "pictures/cat/0.png", "pictures/dog/1.png")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("file_name,caption\ncat/0.png,a cat sleeps\ndog/1.png,a dog barks\n")
    pairs = load_pairs(tmp_path / source)
    assert pairs["text"][:] == ["a cat sleeps", "a dog barks"] and pairs["id"][:] == ["cat/0.png", "dog/1.png"]
    assert pairs[1]["image"].size == (8, 8) and "classes from folder names" not in caplog.text


def test_of_a_table_above_a_folder_the_rows_of_other_folders_are_left_out(tmp_path):
    fill(tmp_path, "a/0.png", "b/1.png")
    (tmp_path / "all.csv").write_text("file_name,caption\na/0.png,zero\nb/1.png,one\n")
    assert load_pairs(tmp_path / "b")["text"][:] == ["one"]


def test_several_tables_are_told_apart_by_the_split_or_refused(tmp_path):
    fill(tmp_path, "images/0.png", "images/1.png")
    for number, name in enumerate(("train", "val")):
        (tmp_path / f"{name}.csv").write_text(f"file_name,caption\n{number}.png,{name}\n")
    assert load_pairs(tmp_path, split="validation")["text"][:] == ["val"]
    with pytest.raises(ValueError, match="only of train, val"):
        load_pairs(tmp_path, split="test")
    (tmp_path / "other.csv").write_text("file_name,caption\n0.png,x\n")
    (tmp_path / "more.csv").write_text("file_name,caption\n0.png,x\n")
    for name in ("train", "val"):
        (tmp_path / f"{name}.csv").unlink()
    with pytest.raises(ValueError, match=r"several tables name its files, pass the one that is meant: .*more.*other"):
        load_pairs(tmp_path)


def test_a_table_that_names_the_files_without_captions_says_what_to_pass(tmp_path):
    fill(tmp_path, "cat/0.png")
    (tmp_path / "list.csv").write_text("file_name,breed\ncat/0.png,siamese\n")
    with pytest.raises(ValueError, match="Which column is the text"):
        load_pairs(tmp_path)
    assert load_pairs(tmp_path, text_column="breed")["text"][:] == ["siamese"]


def test_tables_of_other_files_do_no_harm(tmp_path, caplog):
    fill(tmp_path / "data", "cat/0.png", "dog/1.png")
    (tmp_path / "other.csv").write_text("file_name,caption\nnowhere.png,x\n")
    (tmp_path / "broken.csv").write_text("file_name,caption\na,b,c\n")
    assert load_pairs(tmp_path / "data")["text"][:] == ["cat", "dog"]
    assert "broken.csv: line 2 has 3 fields" in caplog.text


def test_files_without_anything_that_could_be_a_caption(tmp_path):
    fill(tmp_path, "0.png", "1.png")
    with pytest.raises(ValueError, match=r"has 2 files and nothing that could be their captions.*metadata\.jsonl"):
        load_pairs(tmp_path)


def test_a_table_within_an_archive_says_what_to_do(tmp_path):
    fill(tmp_path / "data", "cat/0.png")
    (tmp_path / "data" / "captions.csv").write_text("file_name,caption\ncat/0.png,x\n")
    with pytest.raises(ValueError, match=r"holds the table captions\.csv.*unzip data\.zip -d data"):
        load_pairs(zipped(tmp_path / "data", tmp_path / "data.zip"))


@pytest.mark.parametrize("in_zip", [False, True])
@pytest.mark.parametrize("places", [("images", "texts"), ("images/cat", "captions/cat"), (".", "captions")])
def test_texts_in_other_folders_than_their_files_are_an_error(tmp_path, places, in_zip):
    """Class names are used only where nothing else could be the caption."""
    folder, (media, texts) = tmp_path / "data", places
    fill(folder / media, "0.png", "1.png")
    fill(folder / texts, "0.txt", "1.txt")
    source = zipped(folder, tmp_path / "data.zip") if in_zip else folder
    with pytest.raises(
        ValueError, match=rf"2 texts have the names of files .*{texts}/0\.txt\): move each beside its file"
    ):
        load_pairs(source)


@pytest.mark.parametrize("in_zip", [False, True])
@pytest.mark.parametrize(
    "name, line",
    [
        ("Flickr8k_text/Flickr8k.token.txt", "0.png#0\ta dog runs in snow ."),
        ("captions.txt", "images/0.png|a dog runs fast"),
        ("captions.tsv", '"0.png"\t"a dog runs"'),
        ("captions.csv", "\ufeff0.png,a dog runs"),
        ("list.txt", "images/0.png a dog runs"),
    ],
)
def test_lists_of_captions_without_a_header_are_an_error(tmp_path, name, line, in_zip):
    folder = fill(tmp_path / "data", "images/0.png")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(f"{line}\n{line.replace('dog', 'cat')}\n", encoding="utf-8")
    source = zipped(folder, tmp_path / "data.zip") if in_zip else folder
    is_refused_before = in_zip and not name.endswith(".txt")
    message = "holds the table" if is_refused_before else f"{name} names files and has captions, and no header"
    with pytest.raises(ValueError, match=message):
        load_pairs(source)


@pytest.mark.parametrize(
    "line",
    [
        *("cat/0.png 0", "1 cat/0.png", "cat/0.png,cat", "cat/0.png\tgolden retriever", "cat/0", "0 1 2 3"),
        *(
            "0.png\thttps://example.org/pictures/of/cats/0.jpg",
            "0.png long_haired_cat/on_a_sofa",
            "0.png,red,round,old",
        ),
    ],
)
def test_lists_of_classes_beside_their_folders_do_no_harm(tmp_path, line):
    fill(tmp_path, "cat/0.png", "dog/1.png")
    (tmp_path / "train.txt").write_text(f"{line}\n")
    assert load_pairs(tmp_path)["text"][:] == ["cat", "dog"]


@pytest.mark.parametrize(
    "name, line",
    [
        ("84/121123/84-121123.trans.txt", "84-121123-0000 GO DO YOU HEAR"),
        ("list.csv", "84-121123-0000|go do you hear"),
    ],
)
def test_lists_of_transcripts_by_the_stems_of_files_are_an_error(tmp_path, name, line):
    fill(tmp_path, "84/121123/84-121123-0000.png")
    (tmp_path / name).write_text(f"{line}\n{line}\n")
    with pytest.raises(ValueError, match=f"{name} names files and has captions, and no header"):
        load_pairs(tmp_path)


def test_a_list_of_numbered_classes_does_no_harm(tmp_path):
    fill(tmp_path, "cat/1.png", "dog/2.png")
    (tmp_path / "classes.txt").write_text("1 a small grey cat\n2 a large brown dog\n")
    assert load_pairs(tmp_path)["text"][:] == ["cat", "dog"]


def test_a_text_that_begins_with_the_name_of_a_file_does_no_harm(tmp_path):
    fill(tmp_path, "a/cat.png", "b/dog.png")
    (tmp_path / "README.txt").write_text("cat and dog in two folders\n")
    assert load_pairs(tmp_path)["text"][:] == ["a", "b"]


def test_other_texts_beside_folders_of_classes_do_no_harm(tmp_path):
    fill(tmp_path, "cat/0.png", "dog/1.png", "README.txt", "cat/notes.txt")
    assert load_pairs(tmp_path)["text"][:] == ["cat", "dog"]


def test_an_encrypted_archive_says_what_to_do(tmp_path):
    archive = zipped(fill(tmp_path / "data", "cat/0.png", "cat/0.txt"), tmp_path / "data.zip")
    content = bytearray(archive.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flags of each member, twice
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + place] |= 1
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.zip is encrypted: `unzip -P PASSWORD data\.zip -d data`"):
        load_pairs(archive)


@pytest.mark.parametrize("in_zip", [False, True])
@pytest.mark.parametrize("is_apart", [False, True])
def test_accents_of_names_may_be_apart(tmp_path, in_zip, is_apart):
    """As the file systems of a Mac write them, and programs for tables do not."""
    forms = ("NFC", "NFD") if is_apart else ("NFD", "NFC")
    in_table, on_disk = (unicodedata.normalize(form, "caf\u00e9.png") for form in forms)
    assert in_table != on_disk
    fill(tmp_path / "files", on_disk)
    if in_zip:
        zipped(tmp_path / "files", tmp_path / "files.zip")
        (tmp_path / "files" / on_disk).unlink()
    place = tmp_path if in_zip else tmp_path / "files"
    (place / "rows.csv").write_text(f"file_name,text\n{in_table},x\n", encoding="utf-8")
    assert load_pairs(place / "rows.csv")[0]["image"].size == (8, 8)


@pytest.mark.parametrize("in_zip", [False, True])
def test_of_two_spellings_the_one_of_the_table_is_read(tmp_path, in_zip):
    forms = [unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFC", "NFD")]
    fill(tmp_path / "files", *forms)
    if in_zip:
        zipped(tmp_path / "files", tmp_path / "files.zip")
        shutil.rmtree(tmp_path / "files")
    place = tmp_path if in_zip else tmp_path / "files"
    (place / "rows.csv").write_text("file_name,text\n" + "".join(f"{name},x\n" for name in forms), encoding="utf-8")
    paths = [row["path"] for row in undecoded(load_pairs(place / "rows.csv"))["image"]]
    assert [name in path for name, path in zip(forms, paths, strict=True)] == [True, True]


def test_files_by_their_stems(tmp_path):
    """A table that was made for other formats, or names files without endings."""
    fill(tmp_path, "a.flac", "b.opus")
    rows = [{"file_name": "a.mp3", "caption": "x"}, {"file_name": "b", "caption": "y"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = load_pairs(tmp_path / "rows.jsonl", modality="audio")
    assert [row["path"].rpartition("/")[2] for row in pairs["audio"]] == ["a.flac", "b.opus"]


def test_files_are_not_looked_for_beside_any_folder(tmp_path):
    """A file of that name in a neighbour is another one, unless the table lies in a folder for tables."""
    fill(tmp_path, "other/0.png")
    for name in ("mine", "meta"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.jsonl").write_text('{"file_name": "0.png", "text": "x"}\n')
    assert not load_pairs(tmp_path / "mine" / "rows.jsonl").data["image"][0]["path"].as_py().endswith("other/0.png")
    assert load_pairs(tmp_path / "meta" / "rows.jsonl")[0]["image"].size == (8, 8)


def test_sentences_of_a_folder_are_its_captions(tmp_path):
    fill(tmp_path, "cat/0.png", "dog/1.png")
    for name, text in (("cat/0.txt", "a cat sleeps"), ("dog/1.txt", "a dog barks")):
        (tmp_path / name).write_text(text)
    assert load_sentences(tmp_path)["anchor"][:] == ["a cat sleeps", "a dog barks"]


def test_a_folder_with_a_table_beside_archives(tmp_path):
    fill(tmp_path / "data", "0.png", "1.png")
    zipped(tmp_path / "data", tmp_path / "set.zip")
    for name in ("0.png", "1.png"):
        (tmp_path / "data" / name).unlink()
    (tmp_path / "set.zip").rename(tmp_path / "data" / "images.zip")
    (tmp_path / "data" / "captions.csv").write_text("file_name,caption\n0.png,zero\n1.png,one\n")
    pairs = load_pairs(tmp_path / "data")
    assert pairs["text"][:] == ["zero", "one"] and pairs[1]["image"].size == (8, 8)


def test_a_table_that_names_files_by_their_ids_goes_before_the_names_of_folders(tmp_path, caplog):
    fill(tmp_path, "Zip_files/BBC/12.flac", "Zip_files/BBC/13.flac")
    rows = [{"id": "12", "caption": "rain"}, {"id": 13, "caption": "wind"}]
    (tmp_path / "json_files").mkdir()
    path = tmp_path / "json_files" / "bbc.json"
    path.write_text(json.dumps({"data": rows, "padding": " " * (1 << 24)}))  # as large as the published ones
    for source in (tmp_path, path):
        assert load_pairs(source, modality="audio")["text"][:] == ["rain", "wind"]
    path.write_text(json.dumps([{"id": 12, "name": "x"}, {"id": 13, "name": "y"}]))  # ids of something else
    assert load_pairs(tmp_path, modality="audio")["text"][:] == ["BBC", "BBC"]


def test_annotations_without_captions_beside_those_with_captions_do_no_harm(tmp_path, caplog):
    fill(tmp_path, "val2017/0.jpg")
    (tmp_path / "annotations").mkdir()
    images = [{"id": 0, "file_name": "0.jpg"}]
    for name, annotation in (("captions", {"image_id": 0, "caption": "a"}), ("instances", {"image_id": 0, "bbox": []})):
        document = json.dumps({"images": images, "annotations": [annotation]})
        (tmp_path / "annotations" / f"{name}_val2017.json").write_text(document)
    assert load_pairs(tmp_path, split="validation")["text"][:] == [["a"]]
    assert "annotations without captions" in caplog.text
    (tmp_path / "annotations" / "captions_val2017.json").unlink()
    with pytest.raises(ValueError, match="annotations without captions"):
        load_pairs(tmp_path, split="validation")


def test_rows_that_were_not_downloaded_are_left_out_of_tables_of_keys_too(tmp_path):
    fill(tmp_path / "00000", "0.jpg", "1.jpg")
    rows = {"key": ["0", "1", "2"], "caption": ["a", "b", "c"], "status": ["success", "success", "failed_to_download"]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "00000.parquet")
    assert load_pairs(tmp_path / "00000.parquet")["text"][:] == ["a", "b"]


@pytest.fixture
def archives(tmp_path):
    """A folder of nothing but test.zip, two classes, and train.zip, one more."""
    folder = tmp_path / "set"
    folder.mkdir()
    for split, names in (("test", ["cat/0.png", "dog/1.png"]), ("train10k", ["cat/2.png", "dog/3.png", "bird/4.png"])):
        zipped(fill(tmp_path / split, *names), folder / f"{split}.zip")
    return folder


def test_a_folder_of_archives_alone_is_read_from_that_of_the_split(archives, caplog):
    with caplog.at_level("INFO"):
        assert load_pairs(archives, split="test")["text"][:] == ["cat", "dog"]
    assert "test.zip" in caplog.text
    assert load_pairs(archives)["text"][:] == ["bird", "cat", "dog"]
    with pytest.raises(ValueError, match="no row of the split 'validation', only of test, train"):
        load_pairs(archives, split="validation")
    with pytest.raises(
        ValueError, match=r"several archives hold files .* pass one of them: .*test\.zip, .*train10k\.zip"
    ):
        load_pairs(archives, split="all")
    (archives / "train10k.zip").unlink()
    assert load_pairs(archives, split="all")["text"][:] == ["cat", "dog"]
    with pytest.raises(ValueError, match="no row of the split 'train', only of test"):
        load_pairs(archives)


def test_a_mark_of_byte_order_is_no_part_of_a_caption(tmp_path):
    fill(tmp_path, "0.png", "1.png")
    (tmp_path / "0.txt").write_text("zero", encoding="utf-8-sig")
    (tmp_path / "1.txt").write_text("one", encoding="utf-8")
    assert load_pairs(tmp_path)["text"][:] == [["zero"], ["one"]]


def test_one_column_of_texts_is_taken_for_the_whole_table(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("image,caption,text\n0.png,zero,\n1.png,one,another\n")
    with caplog.at_level("INFO"):
        assert load_pairs(tmp_path / "a.csv")["text"][:] == ["", "another"]
    assert "captions are in the column 'text', not in caption" in caplog.text
    pairs = load_pairs(tmp_path / "a.csv", text_column=["text", "caption"])
    assert pairs["text"][:] == [["zero"], ["another", "one"]]
    (tmp_path / "b.csv").write_text("image,caption,text\n0.png,zero,\n1.png,one,\n")  # nothing in the whole column
    assert load_pairs(tmp_path / "b.csv")["text"][:] == ["zero", "one"]


def test_a_folder_of_something_else_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("no json\n")
    with pytest.raises(ValueError, match="cannot be read"):
        load_pairs(tmp_path)


@pytest.mark.parametrize("in_zip", [False, True])
@pytest.mark.parametrize("ending", ["txt", "json"])
def test_texts_beyond_the_size_limit_of_files_are_not_read(tmp_path, ending, in_zip, monkeypatch, caplog):
    folder = tmp_path / "pictures"
    fill(folder, "0.png", "1.png")
    long = "a dog " * 200
    (folder / f"0.{ending}").write_text(long if ending == "txt" else json.dumps({"caption": long}))
    (folder / f"1.{ending}").write_text("a cat" if ending == "txt" else json.dumps({"caption": "a cat"}))
    source = zipped(folder, tmp_path / "pictures.zip") if in_zip else folder
    monkeypatch.setattr("xmodal_hf.data.local_files.MAX_FILE_BYTES", 1000)
    pairs = load_pairs(source)
    captions = dict(zip(pairs["id"], pairs["text"], strict=True))
    (empty,), (found,) = ([text for key, text in captions.items() if f"{n}.png" in key] for n in (0, 1))
    assert "dog" not in str(empty) and "a cat" in str(found)
    assert f"0.{ending}" in caplog.text and "file too large" in caplog.text


def test_links_are_followed_and_no_class_vanishes(tmp_path, caplog):
    fill(tmp_path / "elsewhere", "a.png", "deep/b.png")
    data = fill(tmp_path / "data", "dog/0.png")
    (data / "cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (data / "dog" / "1.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (data / "dog" / "around").symlink_to(data, target_is_directory=True)  # would be walked for ever
    pairs = load_pairs(data)
    assert dict(zip(pairs["id"][:], pairs["text"][:], strict=True)) == {
        "cat/a.png": "cat",
        "cat/deep/b.png": "deep",
        "dog/0.png": "dog",
        "dog/1.png": "dog",
    }
    assert pairs[1]["image"].size == (8, 8)


def test_names_that_are_no_regular_files_are_counted(tmp_path, caplog):
    data = fill(tmp_path / "data", "cat/0.png", "dog/0.png")
    (data / "dog" / "1.png").symlink_to("nowhere.png")
    os.mkfifo(data / "dog" / "2.png")
    os.mkfifo(data / "captions.csv")  # not opened, which would block
    assert len(load_pairs(data)) == 2
    assert (
        "3 names that are not regular files are left out (broken links, FIFOs): captions.csv, dog/1.png" in caplog.text
    )


@pytest.mark.parametrize("place", [".", "train"])
def test_files_that_a_table_of_metadata_does_not_name_are_counted(tmp_path, caplog, place):
    folder = fill(tmp_path / place, "0.png", "1.png", "2.jpg")
    (folder / "metadata.csv").write_text("file_name,text\n0.png,a\n1.png,b\n")
    assert len(load_pairs(tmp_path)) == 2
    assert "metadata.csv: 1 files that it does not name are left out: 1 .jpg" in caplog.text
    caplog.clear()
    (folder / "2.jpg").unlink()
    load_pairs(tmp_path)
    assert "left out" not in caplog.text


@pytest.mark.parametrize("levels", [1, 2])
def test_a_table_above_a_folder_is_found(tmp_path, levels):
    folder = fill(tmp_path / "data" / "images" / "train", "0.png", "1.png")
    table = folder.parents[levels - 1] / "captions.csv"
    prefix = folder.relative_to(table.parent).as_posix()
    table.write_text(f"file_name,text\n{prefix}/0.png,a\n{prefix}/1.png,b\n")
    assert load_pairs(folder)["text"][:] == ["a", "b"]


@pytest.mark.parametrize("source", ["outer.zip", "."])
def test_an_archive_within_an_archive_says_what_to_do(tmp_path, source):
    inner = zipped(fill(tmp_path / "in", "cat/0.png"), tmp_path / "inner.zip")
    data = tmp_path / "data"
    data.mkdir()
    with zipfile.ZipFile(data / "outer.zip", "w") as outer:
        outer.write(inner, "inner.zip")
    with pytest.raises(ValueError, match=r"outer\.zip holds the archive inner\.zip.*`unzip outer\.zip -d outer`"):
        load_pairs(data / source)


def test_a_data_set_that_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pairs.csv")
    for read in (load_pairs, load_table):
        with pytest.raises(ValueError, match=r"pairs\.csv is a FIFO: pass a regular file or a folder"):
            read(tmp_path / "pairs.csv")


@pytest.mark.parametrize("modality", ["image", "audio"])
@pytest.mark.parametrize("in_zip", [False, True])
def test_files_without_an_ending_are_told_by_their_contents(tmp_path, modality, in_zip, caplog):
    """Whole classes of files named by their hashes would vanish."""
    kind = "png" if modality == "image" else "wav"
    fill(tmp_path / "data", f"cat/0.{kind}", f"dog/1.{kind}", f"dog/2.{kind}", "README", "dog/NOTES")
    (tmp_path / "data" / "dog" / "NOTES").write_bytes(b"")
    for number in (1, 2):
        (tmp_path / "data" / "dog" / f"{number}.{kind}").rename(tmp_path / "data" / "dog" / f"{number}")
    source = zipped(tmp_path / "data", tmp_path / "data.zip") if in_zip else tmp_path / "data"
    pairs = load_pairs(source, modality=modality)
    assert pairs["text"][:] == ["cat", "dog", "dog"]
    assert "2 files are left out: 2 without an ending" in caplog.text
    item = PairDataset(pairs, seed=0, **({"sampling_rate": 8000} if modality == "audio" else {}))[1]
    assert item["text"] == "dog" and len(item["audio"] if modality == "audio" else item["image"].size) > 1
    (tmp_path / "data" / "dog" / "1.txt").write_text("a dog barks")
    source = zipped(tmp_path / "data", tmp_path / "more.zip") if in_zip else tmp_path / "data"
    assert ["a dog barks"] in load_pairs(source, modality=modality)["text"][:]


def test_a_folder_without_files_is_named(tmp_path):
    (tmp_path / "pictures" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"pictures has no files: pass a folder that holds data"):
        load_pairs(tmp_path / "pictures")
    linked = tmp_path / "real"
    linked.mkdir()
    Image.new("RGB", (8, 8), "red").save(linked / "a.png")
    (linked / "a.txt").write_text("red", encoding="utf-8")
    (tmp_path / "pictures" / "train").rmdir()
    (tmp_path / "pictures" / "train").symlink_to(linked, target_is_directory=True)
    assert len(load_pairs(tmp_path / "pictures")) == 1

import io
import json
import logging
import subprocess
import sys
import tarfile
import textwrap

import fsspec
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

from xmodal_hf.data.collators import PairCollator
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.data.mixing import training_order
from xmodal_hf.data.orders import ShuffledOrder
from xmodal_hf.data.sampling import EpochBatchSampler, PairDataset
from xmodal_hf.data.sources import load_pairs, stream_pairs


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path, image_table):
    """Three tars of four samples; captions as .txt, as .json with one and with several captions."""
    (tmp_path / "shards").mkdir()
    for shard in range(3):
        members = []
        for number in range(4 * shard, 4 * shard + 4):
            content = (tmp_path / "files" / f"{number}.png").read_bytes()
            caption = image_table[number]["caption"]
            fields = {"width": 20, "caption": caption if shard == 1 else [caption]}
            text = ("txt", caption.encode()) if shard == 0 else ("json", json.dumps(fields).encode())
            members += [(f"files/{number}.{text[0]}", text[1]), (f"files/{number}.png", content)]
        write_tar(tmp_path / "shards" / f"part-{shard:03}.tar", members)
    return tmp_path / "shards"


@pytest.mark.parametrize("name", ["", "*.tar", "part-{000..002}.tar"])
def test_samples_come_in_order_with_their_captions(shards, samples, name):
    pairs = load_pairs(str(shards / name) if name else shards)
    assert pairs["id"][:] == [f"files/{number}" for number in range(12)]
    items = PairDataset(pairs, seed=0)
    for number in range(12):
        item = items[number]
        assert item["text"] == f"picture of number {number}" and samples.number_of(item["image"]) == number


def test_one_tar_and_a_split_folder(shards):
    assert load_pairs(shards / "part-001.tar")["id"][0] == "files/4"
    (shards / "train").mkdir()
    (shards / "part-002.tar").rename(shards / "train" / "part-002.tar")
    assert len(load_pairs(shards, split="train")) == 4


def test_plain_files_and_tars_give_the_same_batches(tmp_path, image_table, shards, processor):
    Dataset.from_list(image_table).to_json(tmp_path / "rows.jsonl")

    def batches(source):
        sampler = EpochBatchSampler(ShuffledOrder(12, 3), 4)
        sampler.set_position(2, 0)
        items = PairDataset(load_pairs(source), seed=3)
        collator = PairCollator(processor, max_length=8)
        return list(DataLoader(items, batch_sampler=sampler, collate_fn=collator, num_workers=2))

    for plain, tar in zip(batches(tmp_path / "rows.jsonl"), batches(shards), strict=True):
        assert torch.equal(plain["pixel_values"], tar["pixel_values"])
        assert torch.equal(plain["input_ids"], tar["input_ids"])


def test_a_tar_cut_in_half_is_used_up_to_there(shards, caplog, samples):
    path = shards / "part-001.tar"
    with tarfile.open(path) as archive:
        third = archive.getmembers()[5]  # the picture of the third sample
    path.write_bytes(path.read_bytes()[: third.offset_data + 10])
    with caplog.at_level(logging.WARNING, logger="xmodal_hf"):
        pairs = load_pairs(shards)
    assert "part-001.tar cannot be read to its end: files/6.png is cut off" in caplog.text
    assert pairs["id"][:] == [f"files/{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11)]
    items = PairDataset(pairs, seed=0)
    assert [samples.number_of(items[index]["image"]) for index in (5, 7)] == [5, 8]
    with pytest.raises(BadItemError, match=r"archive is cut off: .*part-001\.tar has 10 of \d+ bytes"):
        items[6]


@pytest.mark.parametrize("kept", [0, 100])
def test_a_tar_cut_between_members_is_told_from_a_whole_one(shards, caplog, kept):
    path = shards / "part-001.tar"
    with tarfile.open(path) as archive:
        third = archive.getmembers()[4]
    path.write_bytes(path.read_bytes()[: third.offset + kept])
    with caplog.at_level(logging.WARNING, logger="xmodal_hf"):
        assert len(load_pairs(shards)) == 10
    assert f"part-001.tar cannot be read to its end: there is no complete header at byte {third.offset}" in caplog.text


def test_hidden_files_are_no_samples(tmp_path, samples):
    buffer = io.BytesIO()
    samples.image(3).save(buffer, "PNG")
    members = [(".DS_Store", b"x"), ("a/._3.png", b"x"), ("a/3.png", buffer.getvalue()), ("a/3.txt", b"three")]
    assert load_pairs(write_tar(tmp_path / "mac.tar", members))["id"][:] == ["a/3"]


def test_a_named_text_column_goes_before_text_files(tmp_path):
    members = [("1.png", b"x"), ("1.txt", b"alt text"), ("1.json", b'{"caption": "short", "long": "a long caption"}')]
    tar = write_tar(tmp_path / "a.tar", members)
    assert load_pairs(tar)["text"][0] == ["alt text"]
    assert load_pairs(tar, text_column="long")["text"][0] == ["a long caption"]


@pytest.mark.parametrize("option", ["image_column", "id_column"])
@pytest.mark.parametrize("load", [load_pairs, stream_pairs])
def test_columns_that_tars_do_not_have_are_refused(shards, load, option):
    with pytest.raises(ValueError, match="leave out --image_column and --id_column"):
        load(shards, **{option: "picture"})


def test_rows_that_are_left_out_leave_their_shards_order_whole(shards):
    pairs = load_pairs(shards).select([1, 2, 3, 8, 11])  # nothing of the second tar
    order = training_order(pairs, seed=0, buffer_size=2)
    assert sorted(order(0).tolist()) == list(range(5))


@pytest.mark.parametrize("whole_folder", [True, False])
def test_compressed_tars_say_what_to_do(shards, whole_folder):
    for tar in shards.glob("*.tar"):
        subprocess.run(["gzip", tar], check=True)
    with pytest.raises(ValueError, match="decompress them first"):
        load_pairs(shards if whole_folder else shards / "part-{000..002}.tar.gz")


def test_a_compressed_tar_beside_other_data_does_no_harm(tmp_path, image_table):
    Dataset.from_list(image_table).to_json(tmp_path / "metadata.jsonl")
    (tmp_path / "download.tar.gz").write_bytes(b"")
    assert len(load_pairs(tmp_path)) == len(image_table)


def test_a_file_that_is_no_tar_is_passed_over(shards, caplog):
    (shards / "part-001.tar").write_text("not a tar" * 100)
    with caplog.at_level(logging.WARNING, logger="xmodal_hf"):
        assert len(load_pairs(shards)) == 8
    assert "part-001.tar cannot be read" in caplog.text


def test_samples_without_caption_or_picture_are_reported_when_asked_for(tmp_path, samples):
    buffer = io.BytesIO()
    samples.image(3).save(buffer, "PNG")
    picture = ("1.png", buffer.getvalue())
    write_tar(tmp_path / "a.tar", [("1.json", b"{broken"), picture, ("2.txt", b"a caption"), ("2.cls", b"3")])
    items = PairDataset(load_pairs(tmp_path / "a.tar"), seed=0)
    with pytest.raises(BadItemError, match="no caption"):
        items[0]
    with pytest.raises(BadItemError, match="no media"):
        items[1]


def test_a_caption_field_can_be_named(tmp_path):
    fields = json.dumps({"caption": "no", "alt": "yes"}).encode()
    write_tar(tmp_path / "a.tar", [("1.json", fields), ("1.png", b"x")])
    assert load_pairs(tmp_path / "a.tar", text_column="alt")["text"][0] == ["yes"]


def test_a_changed_tar_is_indexed_again(tmp_path):
    for captions in ("one", "seventeen"):
        write_tar(tmp_path / "a.tar", [("1.txt", captions.encode()), ("1.png", b"x")])
        assert load_pairs(tmp_path / "a.tar")["text"][0] == [captions]


def test_sounds(tmp_path, samples):
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples.tone(0.1), 8000, format="FLAC")
    write_tar(tmp_path / "a.tar", [("1.flac", buffer.getvalue()), ("1.txt", b"a tone")])
    pairs = load_pairs(tmp_path / "a.tar", modality="audio")
    assert len(PairDataset(pairs, seed=0, sampling_rate=8000)[0]["audio"]) == 800


def test_remote_tars(shards, samples):
    """At any address that fsspec opens; here, its file system in memory."""
    memory = fsspec.filesystem("memory")
    for tar in shards.glob("*.tar"):
        memory.pipe(f"/tars/{tar.name}", tar.read_bytes())
    for source in ("memory://tars/*.tar", "memory://tars/part-{000..002}.tar"):
        items = PairDataset(load_pairs(source), seed=0)
        assert [samples.number_of(items[number]["image"]) for number in range(12)] == list(range(12))
        assert items[7]["text"] == "picture of number 7"
    with pytest.raises(FileNotFoundError, match=r"part-003\.tar"):
        load_pairs("memory://tars/part-{000..003}.tar")


def test_tars_can_be_read_one_after_the_other(shards):
    pairs = load_pairs(shards)
    assert pairs["shard"][:] == [0] * 4 + [1] * 4 + [2] * 4
    tars = training_order(pairs, seed=0, buffer_size=4)(5) // 4  # of each row
    assert [len(set(tars[start : start + 4])) for start in (0, 4, 8)] == [1, 1, 1]


def test_what_is_not_there(tmp_path, shards):
    with pytest.raises(FileNotFoundError, match=r"part-003\.tar"):
        load_pairs(str(shards / "part-{000..003}.tar"))
    write_tar(tmp_path / "empty.tar", [])
    with pytest.raises(ValueError, match=r"no sample in .*empty\.tar"):
        load_pairs(tmp_path / "empty.tar")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path, samples):
    """A pass over 15,000 samples in tars, after one over 1,000, raises the peak of memory by less than 15 MB.

    The pictures alone take 110 MB, so keeping what was read would show, and so would 1 kB kept of each sample.
    """
    buffer = io.BytesIO()
    samples.image(3).resize((50, 48)).save(buffer, format="BMP")
    for folder, count in (("small", 4), ("large", 60)):
        (tmp_path / folder).mkdir()
        for shard in range(count):
            members = []
            for number in range(250):
                members += [(f"{shard}-{number}.txt", b"a picture"), (f"{shard}-{number}.bmp", buffer.getvalue())]
            write_tar(tmp_path / folder / f"{shard:03}.tar", members)
    program = textwrap.dedent("""
        import resource, sys
        from xmodal_hf.data.orders import ShuffledOrder
        from xmodal_hf.data.sampling import EpochBatchSampler, PairDataset
        from xmodal_hf.data.sources import load_pairs
        for folder in ("small", "large"):
            items = PairDataset(load_pairs(folder), seed=0)
            batches = EpochBatchSampler(ShuffledOrder(len(items), 0), 8)
            seen = sum(items[key]["text"] == "a picture" for keys in batches for key in keys)
            print(seen, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    """)
    environment = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", program]  # nothing but the passes has ever raised its memory
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=tmp_path)
    small, small_peak, large, large_peak = map(int, done.stdout.split())
    assert (small, large) == (1_000, 15_000)
    assert large_peak < small_peak + 15, (small_peak, large_peak)


def png(samples, number):
    buffer = io.BytesIO()
    samples.image(number).save(buffer, "PNG")
    return buffer.getvalue()


def test_members_of_a_sample_need_not_follow_each_other(tmp_path, samples):
    texts = [(f"{number}.txt", f"picture of number {number}".encode()) for number in range(3)]
    pictures = [(f"{number}.png", png(samples, number)) for number in (2, 0, 1)]
    items = PairDataset(load_pairs(write_tar(tmp_path / "a.tar", [*texts, *pictures])), seed=0)
    for number in range(3):
        assert samples.number_of(items[number]["image"]) == number
        assert items[number]["text"] == f"picture of number {number}"


@pytest.mark.parametrize(("image", "text"), [("image.jpeg", "caption.txt"), ("img.PNG", "txt"), ("png", "text.txt")])
def test_names_before_the_last_ending(tmp_path, samples, image, text):
    members = [(f"000.{image}", png(samples, 3)), (f"000.{text}", b"three"), ("000.mask.png", png(samples, 9))]
    pairs = load_pairs(write_tar(tmp_path / "a.tar", members))
    assert pairs["text"][:] == [["three"]] and samples.number_of(PairDataset(pairs, seed=0)[0]["image"]) == 3


def test_named_texts_are_members_or_fields(tmp_path):
    members = [("0.png", b"x"), ("0.short.txt", b"a"), ("0.long.txt", b"b"), ("0.json", b'{"alt": "c"}')]
    tar = write_tar(tmp_path / "a.tar", members)
    assert load_pairs(tar, text_column="long")["text"][0] == ["b"]
    assert load_pairs(tar, text_column=["short", "alt"])["text"][0] == ["a", "c"]


def test_two_pictures_of_one_key_are_an_error_naming_both(tmp_path):
    """Keys end at the first dot, so that names with other dots fall together."""
    tar = write_tar(tmp_path / "a.tar", [("1.5_a.png", b"x"), ("1.7_b.png", b"y"), ("1.txt", b"z")])
    with pytest.raises(ValueError, match=r"the sample 1 has 1\.5_a\.png and 1\.7_b\.png, and it is not clear"):
        load_pairs(tar)


@pytest.mark.parametrize("empty", [None, "", " ", [], [None], [" "], 3])
def test_the_first_field_that_holds_a_caption_is_taken(tmp_path, empty):
    fields = json.dumps({"text": empty, "caption": "a dog"}).encode()
    assert load_pairs(write_tar(tmp_path / "a.tar", [("1.png", b"x"), ("1.json", fields)]))["text"][0] == ["a dog"]


def test_an_empty_text_file_gives_way_to_the_json(tmp_path):
    members = [("1.png", b"x"), ("1.txt", b" "), ("1.json", b'{"caption": "a dog"}')]
    assert load_pairs(write_tar(tmp_path / "a.tar", members))["text"][0] == ["a dog"]


def test_tars_without_captions_or_pictures_say_what_they_hold(tmp_path):
    tar = write_tar(tmp_path / "a.tar", [("1.png", b"x"), ("1.cls", b"3"), ("1.json", b'{"alt": "x"}')])
    with pytest.raises(
        ValueError, match=r"no sample of .*a\.tar has a caption .*\.png \(1\), \.cls \(1\).*--text_column"
    ):
        load_pairs(tar)
    tar = write_tar(tmp_path / "b.tar", [("1.m4a", b"x"), ("1.txt", b"a sound")])
    with pytest.raises(ValueError, match=r"has a sound; .*1 \.m4a \(cannot be decoded: convert with `ffmpeg -i"):
        load_pairs(tar, modality="audio")


def test_sounds_of_every_ending_that_can_be_decoded(tmp_path, samples):
    import soundfile

    members = []
    for ending, kind, subtype in (("opus", "OGG", "OPUS"), ("aiff", "AIFF", None), ("oga", "OGG", "VORBIS")):
        buffer = io.BytesIO()
        soundfile.write(buffer, samples.tone(0.1), 8000, format=kind, subtype=subtype)
        members += [(f"{ending}.{ending}", buffer.getvalue()), (f"{ending}.txt", ending.encode())]
    pairs = load_pairs(write_tar(tmp_path / "a.tar", members), modality="audio")
    items = PairDataset(pairs, seed=0, sampling_rate=8000)
    assert [items[index]["text"] for index in range(3)] == ["opus", "aiff", "oga"]


def test_a_mark_of_byte_order_is_no_part_of_a_caption(tmp_path):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    members = [("0.png", picture.getvalue()), ("0.txt", "zero".encode("utf-8-sig"))]
    assert load_pairs(write_tar(tmp_path / "a.tar", members))["text"][0] == ["zero"]


@pytest.mark.parametrize("ending", ["txt", "json"])
def test_captions_beyond_the_size_limit_of_files_are_not_read(tmp_path, samples, ending, monkeypatch, caplog):
    picture = (tmp_path / "files" / "0.png").read_bytes() if (tmp_path / "files").exists() else b"picture"
    long = b"a dog " * 20 if ending == "txt" else json.dumps({"caption": "a dog " * 20}).encode()
    members = [("0.png", picture), (f"0.{ending}", long), ("1.png", picture), ("1.txt", b"a cat")]
    monkeypatch.setattr("xmodal_hf.data.local_files.MAX_FILE_BYTES", 100)
    pairs = load_pairs(write_tar(tmp_path / "large.tar", members))
    assert pairs["text"][:] == [[], ["a cat"]]
    assert f"0.{ending}" in caplog.text and "file too large" in caplog.text

"""Thirty kinds of damage at random places: every other item keeps its own caption, and each bad one is listed once."""

import io
import json
import multiprocessing
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from datasets import Dataset, Features, Image, Json, Value
from torch.utils.data import DataLoader

from xmodal_hf.data.bad_items import BAD_ITEMS_NAME, BadItemLog, TooManyBadItemsError, count_bad_items, sort_bad_items
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.data.orders import ShuffledOrder
from xmodal_hf.data.sampling import EpochBatchSampler, EpochIndex, PairDataset

NUM_ROWS = 120


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def wav(samples, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 8000, format="WAV", **options)
    return buffer.getvalue()


def image_damage(samples):
    """Name -> cell: what an image column can hold that is no picture."""
    image = samples.image(77).resize((200, 200))
    noise = np.random.default_rng(0).bytes(3000)
    jpeg, png, gif, webp, bmp = (encoded(image, kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP"))
    contents = {
        "truncated jpeg": jpeg[:600],
        "jpeg header only": jpeg[:20],
        "truncated png": png[: len(png) // 2],
        "png with a wrong checksum": png[:60] + bytes([png[60] ^ 255]) + png[61:],
        "truncated gif": gif[:40],
        "truncated webp": webp[: len(webp) // 2],
        "truncated bmp": bmp[:500],
        "zero bytes": b"",
        "text": b"This is a text file." * 30,
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "noise": noise,
        "wav": wav(samples.tone()),
        "one pixel": encoded(samples.image(77).resize((1, 1)), "PNG"),
        "bomb": bmp[:18] + struct.pack("<ii", 30_000, 30_000) + bmp[26:],
    }
    cells = {name: {"bytes": content, "path": f"{name}.png"} for name, content in contents.items()}
    cells["missing file"] = {"bytes": None, "path": "/nowhere/gone.png"}
    cells["missing archive"] = {"bytes": None, "path": "zip://a.png::/nowhere/gone.zip"}
    cells["null picture"] = None
    return cells


CAPTION_DAMAGE = {
    "null": None,
    "empty": "",
    "white space": " \t\n ",
    "page": "word " * 20_000,
    "binary": "\x00\x01PNG",
    "not utf-8": "caf\ufffd",
    "number": 3,
    "object": {"text": "x"},
    "empty list": [],
    "list of null": [None],
    "list of empty": [""],
    "list of lists": [["x"]],
}


def damaged_rows(samples):
    """Rows of which item i says i in its picture and its caption, and the numbers of the damaged ones."""
    rows = [
        {
            "id": str(number),
            "image": {"bytes": encoded(samples.image(number), "PNG"), "path": None},
            "text": f"picture of number {number}",
        }
        for number in range(NUM_ROWS)
    ]
    damage = [("image", cell) for cell in image_damage(samples).values()]
    damage += [("text", caption) for caption in CAPTION_DAMAGE.values()]
    places = np.random.default_rng(1).permutation(NUM_ROWS)[: len(damage)]
    for place, (column, value) in zip(places, damage, strict=True):
        rows[place][column] = value
    return rows, {int(place) for place in places}


@pytest.fixture(scope="module")
def damaged(samples):
    rows, bad = damaged_rows(samples)
    features = Features({"id": Value("string"), "image": Image(decode=False), "text": Json()})
    return Dataset.from_list(rows, features=features), bad


def read_epoch(dataset, path, processes, process, num_workers):
    """(id, text, number in the picture) of all items that one process gets in one epoch."""
    items = PairDataset(dataset, seed=0, bad_items=BadItemLog(path, total=len(dataset), max_fraction=0.4))
    batches = EpochBatchSampler(ShuffledOrder(len(items), 0), 5, rank=process, num_processes=processes)
    loader = DataLoader(items, batch_sampler=batches, num_workers=num_workers, collate_fn=list)
    return [(row["id"], row["text"], row["image"].getpixel((5, 5))[0]) for batch in loader for row in batch]


def listed(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_there_are_thirty_kinds_of_damage_with_those_of_sounds(samples):
    assert len(image_damage(samples)) + len(CAPTION_DAMAGE) + len(SOUND_DAMAGE) >= 30


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_skip_never_shifts_which_picture_has_which_caption(damaged, tmp_path, num_workers):
    dataset, bad = damaged
    seen = read_epoch(dataset, tmp_path / "bad_items.jsonl", 1, 0, num_workers)
    assert len(seen) == NUM_ROWS  # batches keep their size
    for item_id, text, number in seen:
        assert text == f"picture of number {item_id}" and number == int(item_id)
    assert {int(item_id) for item_id, _, _ in seen} == set(range(NUM_ROWS)) - bad
    assert sorted(entry["index"] for entry in listed(tmp_path / "bad_items.jsonl")) == sorted(bad)


def test_workers_and_processes_see_the_same_items_and_share_the_list(damaged, tmp_path):
    dataset, bad = damaged
    path = tmp_path / "bad_items.jsonl"
    with multiprocessing.get_context("fork").Pool(2, initializer=allow_children) as pool:
        shards = pool.starmap(read_epoch, [(dataset, path, 2, process, 2) for process in range(2)])
    alone = read_epoch(dataset, tmp_path / "alone.jsonl", 1, 0, 0)
    expected = [alone[i : i + 5] for i in range(0, NUM_ROWS, 5)]
    for process, shard in enumerate(shards):
        assert shard == [row for batch in expected[process::2] for row in batch]
    assert sorted(entry["index"] for entry in listed(path)) == sorted(bad)


@pytest.mark.slow
def test_two_processes_under_torchrun_with_two_workers_each(interpreters, damaged, processor, tmp_path):
    """The training stream itself, over gloo: pictures keep their captions, and each bad item is listed once."""
    dataset, bad = damaged
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(dataset))  # `save_to_disk` would open the missing files
    processor.save_pretrained(tmp_path / "processor")
    (tmp_path / "bad_items.jsonl").write_text('{"index": 0, "reason": "of an earlier run"}\n')
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    worker = Path(__file__).with_name("bad_items_worker.py")
    done = interpreters.run([*launcher, worker, tmp_path], environment=environment, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    shards = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert [len(shard) for shard in shards] == [60, 60]
    for item_id, number, text in shards[0] + shards[1]:
        assert number == int(item_id) and text == f"picture of number {item_id}"
    assert {int(item_id) for item_id, _, _ in shards[0] + shards[1]} == set(range(NUM_ROWS)) - bad
    assert sorted(entry["index"] for entry in listed(tmp_path / "bad_items.jsonl")) == sorted(bad)


def allow_children():
    """Pool workers are daemons, which must not start the loader's workers."""
    multiprocessing.current_process()._config["daemon"] = False


def test_a_second_epoch_lists_nothing_twice_and_a_resumed_run_goes_on(damaged, tmp_path):
    dataset, bad = damaged
    path = tmp_path / "bad_items.jsonl"
    for _ in range(2):
        read_epoch(dataset, path, 1, 0, 0)
    assert len(listed(path)) == len(bad)
    assert count_bad_items(path).total() == len(bad)


def test_reasons_are_counted(damaged, tmp_path):
    path = tmp_path / "bad_items.jsonl"
    read_epoch(damaged[0], path, 1, 0, 0)
    assert not count_bad_items(tmp_path / "no_such_list")
    assert count_bad_items(path) == {
        "corrupt image": 6,
        "not an image": 5,
        "empty file": 1,
        "image without content": 1,
        "decompression bomb": 1,
        "missing file": 2,
        "no media": 1,
        "no caption": 3,
        "empty caption": 3,
        "binary caption": 2,
        "caption too long": 1,
        "caption is not text": 3,
    }


def test_replacements_depend_on_seed_epoch_and_index(damaged, tmp_path):
    dataset, bad = damaged
    log = BadItemLog(tmp_path / "bad_items.jsonl", total=NUM_ROWS, max_fraction=0.4)
    items = PairDataset(dataset, seed=0, bad_items=log)
    place = min(bad)
    ids = [items[EpochIndex(epoch, place)]["id"] for epoch in (0, 0, 1, 2, 3)]
    assert ids[0] == ids[1] and len(set(ids)) > 2
    assert items[EpochIndex(0, place)]["position"].index == int(ids[0])


def test_error_policy_raises_at_the_first_one(damaged):
    dataset, bad = damaged
    items = PairDataset(dataset, seed=0)
    for place in bad:
        with pytest.raises(BadItemError):
            items[place]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_items_stop_the_run_with_the_list(damaged, tmp_path, num_workers):
    dataset, _ = damaged
    log = BadItemLog(tmp_path / "bad_items.jsonl", total=NUM_ROWS, max_fraction=0.1)
    loader = DataLoader(PairDataset(dataset, seed=0, bad_items=log), batch_size=5, num_workers=num_workers)
    loader.collate_fn = list
    with pytest.raises(TooManyBadItemsError, match=r"of 120 items cannot be used, more than max_bad_fraction=0\.1:"):
        list(loader)
    # 12 of 120 are 10 %. Each worker may be two batches of five ahead when the first one stops the run.
    assert 13 <= len(listed(tmp_path / "bad_items.jsonl")) <= 13 + 10 * num_workers


def test_a_list_that_another_worker_has_sorted_is_read_anew(tmp_path):
    """Lines of different lengths change places: what one worker has read ends within a line afterwards."""
    path = tmp_path / "bad_items.jsonl"
    first, second = (BadItemLog(path, total=100, max_fraction=1.0) for _ in range(2))
    error = BadItemError("corrupt image")
    first.record(7, "a", "", error)
    second.record(3, "a much longer id", "", error)
    second.record(5, "b", "", error)
    sort_bad_items(path)
    for index, item_id in ((3, "a much longer id"), (9, "c"), (7, "a")):
        first.record(index, item_id, "", error)
        second.record(index, item_id, "", error)
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [3, 5, 7, 9]


@pytest.mark.parametrize(
    ("reason", "source", "hint"),
    [
        ("not an image", "a.wav", "The files are sounds by their names: pass --modality audio."),
        ("corrupt audio", "a.png", "The files are images by their names: pass --modality image."),
        ("not an image", "a.png", ""),
        ("corrupt audio", "a.wav", ""),
        ("corrupt image", "a.wav", ""),
        ("not an image", "", ""),
    ],
)
def test_files_of_another_modality_are_told(tmp_path, reason, source, hint):
    log = BadItemLog(tmp_path / "bad_items.jsonl", total=10, max_fraction=0)
    with pytest.raises(TooManyBadItemsError) as caught:
        log.record(0, "a", source, BadItemError(reason))
    message = str(caught.value)
    assert message.endswith(hint or "bad_items.jsonl.") and ("pass --modality" in message) == bool(hint)


def test_the_complaint_shows_ids_sources_and_reasons(tmp_path):
    log = BadItemLog(tmp_path / "bad_items.jsonl", total=10, max_fraction=0.1)
    log.record(4, "id four", "four.png", BadItemError("corrupt image", "cut off"))
    with pytest.raises(TooManyBadItemsError) as caught:
        log.record(7, "id seven", "seven.png", BadItemError("no caption"))
    message = str(caught.value)
    assert "2 of 10 items cannot be used" in message and "1 corrupt image, 1 no caption" in message
    assert "id four (four.png): corrupt image" in message and str(tmp_path) in message
    assert listed(log.path)[0] == {
        "index": 4,
        "id": "id four",
        "source": "four.png",
        "reason": "corrupt image",
        "detail": "cut off",
    }


SOUND_DAMAGE = {
    "zero bytes": b"",
    "text": b"no sound" * 40,
    "header only": wav(np.ones(50) / 2)[:30],
    "no samples": wav(np.zeros(0)),
    "silence": wav(np.zeros(500)),
    "nan": wav(np.array([0.1, np.nan] * 50, dtype=np.float32), subtype="FLOAT"),
    "0 Hz": wav(np.ones(50) / 2)[:24] + b"\0\0\0\0" + wav(np.ones(50) / 2)[28:],
    "two samples": wav(np.ones(2) / 2),
    "picture": b"\x89PNG\r\n\x1a\n" + bytes(300),
}


def test_sounds(tmp_path, samples):
    good = [wav(samples.tone(0.01 * (number + 3))) for number in range(40)]
    contents = list(good)
    places = np.random.default_rng(2).permutation(40)[: len(SOUND_DAMAGE)]
    for place, content in zip(places, SOUND_DAMAGE.values(), strict=True):
        contents[place] = content
    contents[39 if 39 not in places else 38] = wav(np.tile(samples.tone(0.4)[:, None], (1, 8)))  # 8 channels are fine
    dataset = Dataset.from_dict(
        {
            "id": [str(number) for number in range(40)],
            "audio": [{"bytes": content, "path": None} for content in contents],
            "text": [f"sound {number}" for number in range(40)],
        }
    )
    log = BadItemLog(tmp_path / "bad_items.jsonl", total=40, max_fraction=0.5)
    items = PairDataset(dataset, seed=0, sampling_rate=8000, bad_items=log)
    for number in range(40):
        item = items[number]
        assert item["text"] == f"sound {item['id']}"
        if int(item["id"]) < 38:
            assert len(item["audio"]) == 80 * (int(item["id"]) + 3)
    assert {entry["index"] for entry in listed(log.path)} == {int(place) for place in places}


@pytest.mark.parametrize(
    "name", ["a\u2028b", "a\u2029b", "a\x85b", "a\nb", "a\r\nb", "a\x0b\x0c\x1c\x1d\x1eb", "a\udcffb", "aéb"]
)
def test_any_name_survives_the_list(tmp_path, name):
    """Lines end where JSON's readers think that they do: `str.splitlines` knows nine ends of lines."""
    path = tmp_path / "bad_items.jsonl"
    for index in range(3):
        error = BadItemError("empty file", f"{name}: 0 bytes")
        BadItemLog(path, total=10, max_fraction=1).record(index, f"{name}{index}", f"{name}.png", error)
    assert count_bad_items(path) == {"empty file": 3}
    for lines in (path.read_text().splitlines(), path.read_bytes().split(b"\n")[:-1]):
        assert [json.loads(line)["id"] for line in lines] == [f"{name}{index}" for index in range(3)]
    sort_bad_items(path)
    assert count_bad_items(path) == {"empty file": 3}


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_that_was_cut_off_costs_one_entry_and_no_run(tmp_path, cut, caplog):
    """A process was killed while it wrote, or its disk was full; the run goes on from its state."""
    path = tmp_path / BAD_ITEMS_NAME
    BadItemLog(path, total=10, max_fraction=1).record(3, "three", "3.png", BadItemError("corrupt image"))
    whole = path.read_bytes()
    BadItemLog(path, total=10, max_fraction=1).record(5, "five", "5.png", BadItemError("corrupt image"))
    path.write_bytes(path.read_bytes()[:-cut])
    resumed = BadItemLog(path, total=10, max_fraction=1)
    resumed.record(7, "seven", "7.png", BadItemError("corrupt image"))
    resumed.record(3, "three", "3.png", BadItemError("corrupt image"))
    kept = [3, 5, 7] if cut == 1 else [3, 7]  # a line without its end is whole
    assert count_bad_items(path) == {"corrupt image": len(kept)}
    assert ("is cut off" in caplog.text) == (cut > 1)
    sort_bad_items(path)
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == kept
    assert path.read_bytes().startswith(whole)


def test_no_entry_holds_an_address_in_memory():
    detail = f"cannot identify image file {io.BytesIO()!r}, at 0x7f00, and {object()!r}"
    assert BadItemError("not an image", detail).detail == (
        "cannot identify image file the content, at the content, and the content"
    )
    assert BadItemError("missing file", "0xdeadbeef.png").detail == "0xdeadbeef.png"


def test_the_sorted_list_does_not_depend_on_who_came_first(damaged, tmp_path):
    dataset, bad = damaged
    lists = []
    for number, num_workers in enumerate((0, 2)):
        path = tmp_path / f"{number}.jsonl"
        read_epoch(dataset, path, 1, 0, num_workers)
        sort_bad_items(path)
        lists.append(path.read_bytes())
    assert lists[0] == lists[1]
    assert [entry["index"] for entry in listed(path)] == sorted(bad)


def test_bad_captions_are_left_out_and_the_others_are_drawn(samples, tmp_path):
    picture = {"bytes": encoded(samples.image(1), "PNG"), "path": None}
    captions = ["one", "", None, " two ", "\0"]
    features = Features({"id": Value("string"), "image": Image(decode=False), "text": Json()})
    dataset = Dataset.from_list([{"id": "7", "image": picture, "text": captions}], features=features)
    log = BadItemLog(tmp_path / "bad_items.jsonl", total=1, max_fraction=1)
    items = PairDataset(dataset, seed=0, bad_items=log)
    assert {items[EpochIndex(epoch, 0)]["text"] for epoch in range(30)} == {"one", "two"}
    assert count_bad_items(log.path) == {"empty caption": 1}  # an item is listed once
    with pytest.raises(BadItemError, match="empty caption: item 7: ''"):
        PairDataset(dataset, seed=0)[0]


def test_deferred_items_are_listed_by_whoever_uses_the_rows(damaged, tmp_path):
    dataset, bad = damaged
    log = BadItemLog(tmp_path / "bad_items.jsonl", total=NUM_ROWS, max_fraction=0.4)
    items = PairDataset(dataset, seed=0, bad_items=log, defer_bad_items=True)
    row = items[min(bad)]
    assert row["bad_items"][0].index == min(bad) and not log.path.exists()
    assert items[min(set(range(NUM_ROWS)) - bad)]["bad_items"] == []
    with pytest.raises(TooManyBadItemsError):  # where all are bad, it does not look for ever
        bad_rows = dataset.select(sorted(bad))
        log = BadItemLog(tmp_path / "all.jsonl", total=len(bad), max_fraction=0.5)
        PairDataset(bad_rows, seed=0, bad_items=log, defer_bad_items=True)[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_list_is_in_order_where_no_item_is_usable(samples, tmp_path, num_workers):
    rows = [{"id": str(number), "image": {"bytes": b"", "path": None}, "text": "x"} for number in range(12)]
    features = Features({"id": Value("string"), "image": Image(decode=False), "text": Value("string")})
    path = tmp_path / "bad_items.jsonl"
    items = PairDataset(
        Dataset.from_list(rows, features=features), seed=0, bad_items=BadItemLog(path, total=12, max_fraction=1)
    )
    batches = EpochBatchSampler(ShuffledOrder(12, 0), 3)
    with pytest.raises(TooManyBadItemsError, match="12 of 12 items cannot be used: 12 empty file"):
        list(DataLoader(items, batch_sampler=batches, num_workers=num_workers, collate_fn=list))
    assert [entry["index"] for entry in listed(path)] == list(range(12))

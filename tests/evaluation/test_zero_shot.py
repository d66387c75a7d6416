"""Prompts against the published facts, prompt ensembling against plain loops, accuracies by hand, ESC-style folds."""

import hashlib

import numpy as np
import pytest

from xmodal_hf.evaluation import as_embedder, evaluate_zero_shot
from xmodal_hf.evaluation.embed import Embedder
from xmodal_hf.evaluation.prompts import PROMPT_SETS, clean_class_name, resolve_templates
from xmodal_hf.evaluation.tasks.zero_shot import read_class_names
from xmodal_hf.evaluation.zero_shot import (
    class_embeddings,
    confusion_counts,
    merge_classes,
    prompt_embeddings,
    zero_shot_metrics,
)

CLASSES = ["dog", "cat_small", "red"]


def test_imagenet_has_the_published_eighty_templates():
    templates = PROMPT_SETS["imagenet"]
    assert len(templates) == len(set(templates)) == 80
    joined = "\n".join(sorted(templates)).encode()
    assert hashlib.sha256(joined).hexdigest() == "a8a4822f2921936e2ef07cf2e7a5df69be9532aab2f3f4880156bb03563e2467"


def test_cifar10_has_the_published_eighteen_templates():
    templates = PROMPT_SETS["cifar10"]
    assert len(templates) == len(set(templates)) == 18
    assert sum("a {}" in template or "a small {}" in template or "a big {}" in template for template in templates) == 9
    assert {template.replace(" the ", " a ") for template in templates} == {
        "a photo of a {}.",
        *(f"a {quality} photo of a {{}}." for quality in ("blurry", "black and white", "bad", "good")),
        *(f"a {level} contrast photo of a {{}}." for level in ("low", "high")),
        *(f"a photo of a {size} {{}}." for size in ("small", "big")),
    }


def test_audio_prompts():
    named = {name: PROMPT_SETS[name][0].replace("{}", "dog bark") for name in ("laion_clap", "wavcaps", "msclap")}
    assert named["laion_clap"] == "This is a sound of dog bark."
    assert named["wavcaps"] == "dog bark can be heard"
    assert named["msclap"] == "this is the sound of dog bark"


def test_class_names_are_words():
    assert clean_class_name("  sea__waves ") == "sea waves"


def test_classes_are_renormalised_means_of_prompts(clip):
    embedder = as_embedder(*clip)
    classes = class_embeddings(embedder, CLASSES, ["a photo of a {}", "a {}"])
    for row, name in zip(classes, ("dog", "cat small", "red"), strict=True):
        mean = embedder.encode_text([f"a photo of a {name}", f"a {name}"]).mean(axis=0)
        assert np.allclose(row, mean / np.linalg.norm(mean), atol=1e-6)


def test_classes_may_have_different_numbers_of_prompts(clip):
    embedder = as_embedder(*clip)
    classes = prompt_embeddings(embedder, [["rain", "a dog", "red"], ["birds sing"]])
    mean = embedder.encode_text(["rain", "a dog", "red"]).mean(axis=0)
    assert np.allclose(classes[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert np.allclose(classes[1], embedder.encode_text(["birds sing"])[0], atol=1e-6)


class OneHot(Embedder):
    """Knows each class by its name and each item by its number."""

    def encode_text(self, texts, normalize=True):
        return np.array([[name.replace("_", " ") in text for name in CLASSES] for text in texts], dtype=np.float32)

    def encode_image(self, images):
        return np.eye(3, dtype=np.float32)[list(images)]

    encode_audio = encode_image


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_a_perfect_model_is_perfect(modality):
    results = evaluate_zero_shot(OneHot(), [0, 1, 2, 2], [0, 1, 2, 2], CLASSES, modality=modality)
    assert results["top1_accuracy"] == results["mean_per_class_accuracy"] == results["accuracy/cat small"] == 100
    assert "top5_accuracy" not in results  # there are three classes
    assert results["num_items"] == 4 and results["num_classes"] == 3


def test_metrics_by_hand():
    scores = np.array([[3, 2, 1, 0], [3, 2, 1, 0], [0, 3, 2, 1], [1, 1, 0, 0], [0, 1, 2, 3], [3, 1, 2, 0]], float)
    labels = [0, 1, 1, 0, 3, 2]
    results = zero_shot_metrics(scores, labels, ["a", "b", "c", "d"], folds=[1, 1, 1, 2, 2, 2], ks=(1, 2))
    assert results["top1_accuracy"] == pytest.approx(100 * 3 / 6)  # items 0, 2, 4; item 3 ties with b
    assert results["top2_accuracy"] == 100
    assert [results[f"accuracy/{name}"] for name in "abcd"] == [50, 50, 0, 100]
    assert results["mean_per_class_accuracy"] == 50
    assert results["accuracy/fold 1"] == pytest.approx(200 / 3) and results["accuracy/fold 2"] == pytest.approx(100 / 3)
    assert results["fold_mean_accuracy"] == pytest.approx(50)
    assert results["fold_std_accuracy"] == pytest.approx(100 / 6)
    for name in ("top1_accuracy", "fold_mean_accuracy", "mean_per_class_accuracy"):
        assert results[f"{name}_ci95_low"] < 50 < results[f"{name}_ci95_high"]
    assert results["mean_per_class_accuracy_ci95_low"] >= 25  # class d is right however it is drawn
    assert confusion_counts(scores, labels).tolist() == [[2, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]


def metrics_by_name(scores, labels, names):
    """A slow oracle that knows names only: hits at rank 1 and 2 of each item among the different names."""
    hits = {1: [], 2: []}
    for row, label in zip(scores, labels, strict=True):
        best = {}
        for name, score in zip(names, row, strict=True):
            best[name] = max(score, best.get(name, -np.inf))
        own = best.pop(names[label])
        rank = 1 + sum(score >= own for score in best.values())
        for k in hits:
            hits[k].append(100.0 * (rank <= k))
    return {f"top{k}_accuracy": np.mean(of_k) for k, of_k in hits.items()}


@pytest.mark.parametrize("names", [list("abca"), list("abcd"), list("aabb"), list("abcaab"), list("bcaaa")])
def test_classes_of_one_name_are_one_class(names):
    generator = np.random.default_rng(len(names))
    scores = generator.integers(0, 4, (200, len(names))).astype(float)  # with ties
    labels = generator.integers(0, len(names), 200)
    distinct = list(dict.fromkeys(names))
    found = zero_shot_metrics(scores, labels, names, ks=(1, 2), num_resamples=0)
    expected = metrics_by_name(scores, labels, names)
    for name in expected.keys() & found.keys():
        assert found[name] == pytest.approx(expected[name])
    assert ("top2_accuracy" in found) == (len(distinct) > 2) and found["num_classes"] == len(distinct)
    assert {name for name in found if name.startswith("accuracy/")} == {f"accuracy/{name}" for name in distinct}


def test_a_perfect_model_is_perfect_with_a_name_twice(caplog):
    names = [*CLASSES, "cat  small"]
    results = evaluate_zero_shot(OneHot(), [0, 1, 2, 1], [0, 1, 2, 3], names)
    assert results["top1_accuracy"] == results["mean_per_class_accuracy"] == results["accuracy/cat small"] == 100
    assert results["num_classes"] == 3 and results["num_items"] == 4
    assert "more than once count as one class each: cat small." in caplog.text
    embeds = class_embeddings(OneHot(), names, "name")
    assert embeds.shape == (4, 3) and np.array_equal(embeds[3], embeds[1])


def test_classes_are_merged_by_their_best_column():
    scores, labels, names = merge_classes([[1.0, 3, 2], [5, 0, 6]], [2, 1], ["a_b", "c", "a b"])
    assert scores.tolist() == [[2, 3], [6, 0]] and labels.tolist() == [0, 1] and names == ["a b", "c"]
    with pytest.raises(ValueError, match="3 columns of scores need as many class names, not 2"):
        merge_classes(np.ones((1, 3)), [0], ["a", "b"])
    with pytest.raises(ValueError, match="all classes have the name 'a'"):
        merge_classes(np.ones((1, 2)), [0], ["a", "a "])


def test_class_names_come_from_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("tench\ngreat white shark\n", encoding="utf-8")
    assert read_class_names(tmp_path / "names.txt", 2) == ["tench", "great white shark"]
    with pytest.raises(ValueError, match="has 2 names, the data has 3 classes"):
        read_class_names(tmp_path / "names.txt", 3)
    (tmp_path / "names.txt").write_text("tench\n \n", encoding="utf-8")
    with pytest.raises(ValueError, match="one per line"):
        read_class_names(tmp_path / "names.txt", 2)


def test_bad_input_is_named():
    scores = np.ones((2, 2))
    with pytest.raises(ValueError, match="at least two"):
        zero_shot_metrics(np.ones((2, 1)), [0, 0], ["a"])
    with pytest.raises(ValueError, match=r"labels\[1\] is 2, outside 0..1"):
        zero_shot_metrics(scores, [0, 2], ["a", "b"])
    with pytest.raises(ValueError, match="2 items need as many labels, not 1"):
        zero_shot_metrics(scores, [0], ["a", "b"])
    with pytest.raises(ValueError, match="2 items need as many folds, not 3"):
        zero_shot_metrics(scores, [0, 1], ["a", "b"], folds=[1, 1, 1])
    with pytest.raises(ValueError, match="NaN"):
        zero_shot_metrics(scores * np.nan, [0, 1], ["a", "b"])
    with pytest.raises(ValueError, match="at least two classes with names of their own"):
        class_embeddings(OneHot(), ["sea_waves", "sea waves"], "name")
    with pytest.raises(ValueError, match="at least two classes with names of their own"):
        class_embeddings(OneHot(), ["red", "dog", " "], "name")
    with pytest.raises(ValueError, match="unknown prompt set 'imagnet'"):
        resolve_templates("imagnet")
    with pytest.raises(ValueError, match=r"strings with \{\}"):
        resolve_templates(["a photo"])

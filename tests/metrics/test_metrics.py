"""The `evaluate` modules: loaded by folder, whole, in batches, in several processes, alone in another folder."""

import ast
import inspect
import pickle
import re
import shutil
from pathlib import Path

import evaluate
import numpy as np
import pytest
import yaml

import xmodal_hf.metrics
from xmodal_hf.evaluation import evaluate_retrieval
from xmodal_hf.metrics import metric_path

NAMES = ["alignment_uniformity", "retrieval_map", "retrieval_recall", "sts_correlation", "zero_shot_accuracy"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))


def sample_inputs(name: str, num_rows: int = 12) -> dict:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(num_rows, 6))
    vectors = rng.normal(size=(num_rows, 4)).astype(np.float32)
    return {
        "alignment_uniformity": {"predictions": vectors, "references": vectors[::-1].copy()},
        "retrieval_map": {"predictions": scores, "references": [[i % 6, (i + 2) % 6] for i in range(num_rows)]},
        "retrieval_recall": {"predictions": scores, "references": np.arange(num_rows) % 6},
        "sts_correlation": {"predictions": scores[:, 0], "references": scores[:, 0] + scores[:, 1]},
        "zero_shot_accuracy": {"predictions": scores, "references": np.arange(num_rows) % 6},
    }[name]


def test_every_metric_is_covered():
    assert sorted(path.parent.name for path in Path(xmodal_hf.metrics.__file__).parent.glob("*/*.py")) == NAMES
    with pytest.raises(ValueError, match="no metric 'bleu': one of alignment_uniformity"):
        metric_path("bleu")


@pytest.mark.parametrize("name", NAMES)
def test_the_documented_example_gives_the_documented_result(name):
    metric = evaluate.load(metric_path(name))
    example = re.search(r">>> \w+\.compute\((.*?)\)(\[\"\w+\"\])?\n\s+(.+)\n", metric.inputs_description)
    arguments = eval(f"dict({example[1]})")
    result = metric.compute(**arguments)
    expected = ast.literal_eval(example[3])
    assert (result[ast.literal_eval(example[2])[0]] if example[2] else result) == expected


@pytest.mark.parametrize("name", NAMES)
def test_batches_and_single_rows_give_the_whole(name):
    inputs = sample_inputs(name)
    whole = evaluate.load(metric_path(name)).compute(**inputs)
    assert all(np.isfinite(value) for value in whole.values())
    batched = evaluate.load(metric_path(name))
    for rows in (slice(0, 5), slice(5, 6), slice(6, 12)):
        batched.add_batch(**{key: column[rows] for key, column in inputs.items()})
    assert batched.compute() == whole
    one_by_one = evaluate.load(metric_path(name))
    for prediction, reference in zip(inputs["predictions"], inputs["references"], strict=True):
        one_by_one.add(prediction=prediction, reference=reference)
    assert one_by_one.compute() == whole


def compute_shard(name: str, process: int, inputs: dict, cache: str) -> dict | None:
    """One of two processes: even rows or odd rows."""
    shard = {"num_process": 2, "process_id": process, "experiment_id": "shards", "cache_dir": cache}
    metric = evaluate.load(metric_path(name), **shard)
    metric.add_batch(**{key: column[process::2] for key, column in inputs.items()})
    return metric.compute()


# Its arguments: names of metrics, then a folder.
SECOND_PROCESS = f"""
import pickle, sys, evaluate, numpy
from xmodal_hf.metrics import metric_path
{inspect.getsource(compute_shard)}
*names, folder = sys.argv[1:]
for name in names:
    with open(folder + "/inputs_" + name, "rb") as file:
        assert compute_shard(name, 1, pickle.load(file), folder) is None
"""


def test_two_processes_give_the_whole(interpreters, tmp_path):
    """All metrics in one pair of processes."""
    for name in NAMES:
        (tmp_path / f"inputs_{name}").write_bytes(pickle.dumps(sample_inputs(name)))
    other = interpreters.start(["-c", SECOND_PROCESS, *NAMES, tmp_path])
    results = {name: compute_shard(name, 0, sample_inputs(name), str(tmp_path)) for name in NAMES}
    _, errors = other.communicate()
    assert other.returncode == 0, errors
    for name, result in results.items():
        assert result == pytest.approx(evaluate.load(metric_path(name)).compute(**sample_inputs(name))), name


@pytest.mark.parametrize("ids", [[3, 3, 1, 0, 1, 2], ["d", "d", "b", "a", "b", "c"]])
def test_embeddings_configuration_equals_evaluate_retrieval(ids):
    rng = np.random.default_rng(0)
    items = rng.normal(size=(4, 5)).astype(np.float32)
    text_to_item = np.array([3, 3, 1, 0, 1, 2])
    texts = (items[text_to_item] + rng.normal(size=(6, 5))).astype(np.float32)
    inputs = {"text_embeds": texts, "modality_embeds": items[text_to_item], "item_ids": ids}
    recall = evaluate.load(metric_path("retrieval_recall"), "embeddings").compute(**inputs, k=[1, 2], modality="audio")
    precision = evaluate.load(metric_path("retrieval_map"), "embeddings").compute(**inputs, modality="audio")
    expected = evaluate_retrieval(items, texts, text_to_item, modality="audio", ks=(1, 2), num_resamples=0)
    for key, value in (recall | precision).items():
        assert expected[key] == pytest.approx(value if key.endswith("rank") else 100 * value), key
    assert len(recall | precision) == 8


@pytest.mark.parametrize("name", ["retrieval_recall", "retrieval_map"])
def test_equal_texts_are_one_query_as_in_evaluate_retrieval(name):
    rng = np.random.default_rng(0)
    items = rng.normal(size=(4, 5)).astype(np.float32)
    text_to_item, texts = np.array([3, 3, 1, 0, 1, 2]), ["a dog", "rain", "a dog ", "wind", "rain", "a cat"]
    vectors = {text: rng.normal(size=5).astype(np.float32) for text in sorted({text.strip() for text in texts})}
    embeds = np.stack([vectors[text.strip()] for text in texts])
    inputs = {"text_embeds": embeds, "modality_embeds": items[text_to_item], "item_ids": text_to_item, "texts": texts}
    metric = evaluate.load(metric_path(name), "embeddings_with_texts")
    metric.add_batch(**{key: column[:4] for key, column in inputs.items()})
    metric.add_batch(**{key: column[4:] for key, column in inputs.items()})
    expected = evaluate_retrieval(items, embeds, text_to_item, texts=texts, num_resamples=0)
    plain = evaluate.load(metric_path(name), "embeddings")
    del inputs["texts"]
    result = metric.compute()
    assert plain.compute(**inputs) != result
    for key, value in result.items():
        assert expected[key] == pytest.approx(value if key.endswith("rank") else 100 * value), key


@pytest.mark.parametrize("name", NAMES)
def test_empty_input_is_an_error(name):
    with pytest.raises(ValueError, match=r"empty|at least|must be"):
        evaluate.load(metric_path(name)).compute(predictions=[], references=[])


@pytest.mark.parametrize("name", NAMES)
def test_nan_is_an_error(name):
    inputs = sample_inputs(name)
    inputs["predictions"][3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        evaluate.load(metric_path(name)).compute(**inputs)


@pytest.mark.parametrize("name", ["retrieval_map", "retrieval_recall", "zero_shot_accuracy"])
def test_a_gold_outside_the_gallery_is_an_error(name):
    inputs = sample_inputs(name)
    inputs["references"] = [[9]] * 12 if name == "retrieval_map" else [9] * 12
    with pytest.raises(ValueError, match=r"is 9, outside 0\.\.5"):
        evaluate.load(metric_path(name)).compute(**inputs)


def test_one_class_is_an_error():
    metric = evaluate.load(metric_path("zero_shot_accuracy"))
    with pytest.raises(ValueError, match="with one class every item is right"):
        metric.compute(predictions=[[0.5], [0.7]], references=[0, 0])


@pytest.mark.parametrize("name", ["retrieval_map", "retrieval_recall", "zero_shot_accuracy"])
def test_one_cut_off_or_several(name):
    metric = evaluate.load(metric_path(name))
    inputs = {"predictions": [[0.1, 0.9, 0.5], [0.8, 0.3, 0.7]], "references": [0, 2]}
    one, several = metric.compute(**inputs, k=np.int64(2)), metric.compute(**inputs, k=[1, 2])
    assert len(several) == len(one) + 1 and one.items() <= several.items()


@pytest.mark.parametrize("name", ["retrieval_map", "retrieval_recall"])
def test_k_beyond_the_gallery_takes_the_whole_of_it(name):
    metric, k = evaluate.load(metric_path(name)), 50 if name == "retrieval_map" else [50]
    result = metric.compute(predictions=[[0.1, 0.9], [0.8, 0.3]], references=[0, 0], k=k)
    assert result == ({"map@50": 0.75} if name == "retrieval_map" else {"recall@50": 1.0, "median_rank": 1.5})


@pytest.mark.parametrize("name", NAMES)
def test_a_copy_in_another_folder_works(name, tmp_path):
    shutil.copytree(metric_path(name), tmp_path / "elsewhere" / name)
    copied = evaluate.load(str(tmp_path / "elsewhere" / name))
    assert copied.compute(**sample_inputs(name)) == evaluate.load(metric_path(name)).compute(**sample_inputs(name))


def test_ties_count_against_the_gold():
    metric = evaluate.load(metric_path("retrieval_recall"))
    assert metric.compute(predictions=[[0.5, 0.5]], references=[0], k=[1])["recall@1"] == 0
    metric = evaluate.load(metric_path("zero_shot_accuracy"))
    assert metric.compute(predictions=[[0.5, 0.5]], references=[0], k=[1])["top1_accuracy"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_module_stands_alone_and_its_card_is_complete(name, tmp_path):
    """`evaluate` copies the one file away from its folder, and imports what it lists."""
    folder = Path(metric_path(name))
    lines = (folder / f"{name}.py").read_text().splitlines()
    assert not [line for line in lines if re.match(r"\s*(from \.|import \w+,)", line)]
    assert (folder / "requirements.txt").read_text().split() == ["xmodal_hf"]
    _, front, body = (folder / "README.md").read_text().split("---", 2)
    assert yaml.safe_load(front)["tags"] == ["evaluate", "metric"]
    metric = evaluate.load(str(folder))
    features = metric.features[0] if isinstance(metric.features, list) else metric.features
    for key in features:
        assert f"`{key}`" in body, key
    for heading in ("## Inputs", "## Outputs", "## Example", "## Limits", "## Citation"):
        assert heading in body, heading


@pytest.mark.parametrize("name", NAMES)
def test_the_cards_example_runs_as_printed(name):
    body = (Path(metric_path(name)) / "README.md").read_text()
    code, printed = re.search(r"```python\n(.*?)```\n+```\n(.*?)\n```", body, re.DOTALL).groups()
    lines = code.strip().splitlines()
    scope: dict = {}
    exec("\n".join(lines[:-1]), scope)
    assert eval(lines[-1].removeprefix("print(").removesuffix(")"), scope) == ast.literal_eval(printed)


def test_classes_of_the_same_name_are_one_class():
    """ImageNet's usual list has "sunglasses" twice: their prompts tie, and a tie counts against the model."""
    metric = evaluate.load(metric_path("zero_shot_accuracy"))
    scores, names = [[0.9, 0.9, 0.1], [0.2, 0.2, 0.8], [0.7, 0.7, 0.9]], ["sunglasses", "sunglasses ", "crane"]
    plain = metric.compute(predictions=scores, references=[0, 2, 1], k=1)
    merged = metric.compute(predictions=scores, references=[0, 2, 1], k=1, class_names=names)
    assert plain["top1_accuracy"] == pytest.approx(1 / 3) and merged["top1_accuracy"] == pytest.approx(2 / 3)
    assert merged["mean_per_class_accuracy"] == pytest.approx(0.75)
    with pytest.raises(ValueError, match="3 columns of scores need as many class names, not 2"):
        metric.compute(predictions=scores, references=[0, 2, 1], class_names=names[:2])

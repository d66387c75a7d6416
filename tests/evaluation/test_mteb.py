"""The mteb adapter on small tasks built offline from mteb's own classes: text, image, audio."""

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Sequence, Value
from PIL import Image as Picture
from torchaudio.functional import resample

mteb = pytest.importorskip("mteb")
from mteb.abstasks.retrieval import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.sts import AbsTaskSTS  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification  # noqa: E402

from xmodal_hf.evaluation import as_embedder, retrieval_ranks  # noqa: E402
from xmodal_hf.evaluation.mteb import MtebEncoder  # noqa: E402
from xmodal_hf.evaluation.retrieval import recall_at_k  # noqa: E402
from xmodal_hf.evaluation.sts import spearman  # noqa: E402
from xmodal_hf.evaluation.zero_shot import top_k_accuracy  # noqa: E402

CLASSES = ["a red apple", "the cat sleeps", "rain"]


def metadata(name, task_type, category, modalities, main_score):
    return TaskMetadata(
        name=name, description="Built for a test.", reference=None, type=task_type, category=category,
        modalities=modalities, eval_splits=["test"], eval_langs=["eng-Latn"], main_score=main_score,
        dataset={"path": "test/none", "revision": "none"}, date=None, domains=None, task_subtypes=None, license=None,
        annotations_creators=None, dialect=None, sample_creation=None, bibtex_citation=None,
    )  # fmt: skip


class TinySts(AbsTaskSTS):
    metadata = metadata("TinySts", "STS", "t2t", ["text"], "cosine_spearman")
    min_score, max_score = 0, 5

    def load_data(self, **kwargs):
        words = ["red", "apple", "dog", "cat", "rain", "bird", "car", "music", "piano", "note"]
        rows = [{"sentence1": f"a {a} {b}", "sentence2": f"the {b}", "score": float((3 * i) % 7)}
                for i, (a, b) in enumerate(zip(words, words[1:] + words[:1], strict=True))]  # fmt: skip
        self.dataset = DatasetDict({"test": Dataset.from_list(rows)})
        self.data_loaded = True


class ZeroShot(AbsTaskZeroShotClassification):
    def get_candidate_labels(self):
        return CLASSES


def noise_pictures(count):
    rng = np.random.default_rng(0)
    return [Picture.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)) for _ in range(count)]


class TinyRetrieval(AbsTaskRetrieval):
    metadata = metadata("TinyRetrieval", "Any2AnyRetrieval", "t2i", ["text", "image"], "hit_rate_at_1")

    def load_data(self, **kwargs):
        corpus = Dataset.from_dict({"id": ["d0", "d1", "d2"], "image": noise_pictures(3)}).cast_column("image", Image())
        queries = Dataset.from_dict({"id": ["q0", "q1", "q2"], "text": CLASSES})
        golds = {f"q{i}": {f"d{i}": 1} for i in range(3)}
        split = {"corpus": corpus, "queries": queries, "relevant_docs": golds, "top_ranked": None}
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class TinyPictures(ZeroShot):
    metadata = metadata("TinyPictures", "ZeroShotClassification", "i2t", ["image", "text"], "accuracy")
    input_column_name = "image"

    def load_data(self, **kwargs):
        rows = {"image": noise_pictures(9), "label": [i % 3 for i in range(9)]}
        rows = Dataset.from_dict(rows).cast_column("image", Image())
        self.dataset = DatasetDict({"test": rows})
        self.data_loaded = True


class TinySounds(ZeroShot):
    metadata = metadata("TinySounds", "ZeroShotClassification", "a2t", ["audio", "text"], "accuracy")
    input_column_name = "audio"

    def load_data(self, **kwargs):
        clips = [{"array": np.sin(np.arange(8000) * (i + 1) / 30).tolist(), "sampling_rate": 16000} for i in range(6)]
        audio = {"array": Sequence(Value("float32")), "sampling_rate": Value("int64")}
        rows = Dataset.from_dict(
            {"audio": clips, "label": [i % 3 for i in range(6)]},
            features=Features({"audio": audio, "label": Value("int64")}),
        )
        self.dataset = DatasetDict({"test": rows})
        self.data_loaded = True


def main_score(encoder, task):
    result = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    return result.task_results[0].get_score()


def rows_of(task):
    """The rows again: mteb lets go of them after the evaluation."""
    task.load_data()
    return task.dataset["test"]


def test_text_task_equals_our_own_protocol(sentence_encoder, tokenizer):
    embedder = as_embedder(sentence_encoder, tokenizer)
    task = TinySts()
    score = main_score(MtebEncoder("owner/tiny", embedder=embedder), task)
    rows = rows_of(task)
    cosines = (embedder.encode_text(rows["sentence1"][:]) * embedder.encode_text(rows["sentence2"][:])).sum(axis=1)
    assert score == pytest.approx(spearman(cosines, rows["score"][:]), abs=1e-6)


def test_image_task_equals_our_own_protocol(image_text_folder):
    encoder = MtebEncoder(str(image_text_folder), device="cpu")
    assert encoder.mteb_model_meta.name == f"xmodal_hf/{image_text_folder.name}"
    assert encoder.mteb_model_meta.modalities == ["text", "image"]
    task = TinyPictures()
    score = main_score(encoder, task)
    scores = encoder.embedder.encode_image(rows_of(task)["image"]) @ encoder.embedder.encode_text(CLASSES).T
    assert score == pytest.approx(top_k_accuracy(scores, [i % 3 for i in range(9)]))


def test_retrieval_task_equals_our_own_protocol(image_text_model, image_text_processor):
    embedder = as_embedder(image_text_model, image_text_processor)
    task = TinyRetrieval()
    score = main_score(MtebEncoder("owner/tiny", embedder=embedder), task)
    ranks = retrieval_ranks(embedder.encode_text(CLASSES), embedder.encode_image(noise_pictures(3)))
    assert score == pytest.approx(recall_at_k(ranks, 1), abs=1e-5)


def test_audio_is_resampled_to_the_models_rate(audio_text_model, audio_text_processor):
    embedder = as_embedder(audio_text_model, audio_text_processor)
    task = TinySounds()
    score = main_score(MtebEncoder("owner/tiny", embedder=embedder), task)
    clips = [resample(torch.tensor(clip["array"]), 16000, 8000).numpy() for clip in rows_of(task)["audio"]]
    scores = embedder.encode_audio(clips) @ embedder.encode_text(CLASSES).T
    assert embedder.sampling_rate == 8000
    assert score == pytest.approx(top_k_accuracy(scores, [i % 3 for i in range(6)]))


def test_the_declared_modalities_keep_foreign_tasks_out(image_text_model, image_text_processor):
    encoder = MtebEncoder("owner/tiny", embedder=as_embedder(image_text_model, image_text_processor))
    with pytest.raises(ValueError, match="none overlap with task TinySounds"):
        main_score(encoder, TinySounds())

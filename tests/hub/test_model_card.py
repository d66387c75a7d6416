"""Cards: their metadata, their numbers, and their code, which runs."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import PreTrainedTokenizerBase

from xmodal_hf import AudioTextProcessor, LogMelFeatureExtractor
from xmodal_hf.evaluation.tasks import TASKS
from xmodal_hf.hub.arguments import CardArguments
from xmodal_hf.hub.card_results import model_index, result_tables
from xmodal_hf.hub.model_card import CardSources, render_card
from xmodal_hf.hub.staging import stage_checkpoint, stage_text_encoder
from xmodal_hf.losses import LOSSES, Loss, Weight

CARDS = Path(__file__).parents[2] / "model_cards"
RESULTS = {
    "retrieval_before": {"text_to_image_recall@1": 1.0, "num_items": 300},
    "retrieval_after": {
        "text_to_image_recall@1": 12.0,
        "text_to_image_recall@1_ci95_low": 8.666666,
        "text_to_image_recall@1_ci95_high": 15.666666,
        "text_to_image_median_rank": 46.5,
        "num_items": 300,
        "num_texts": 1500,
    },
    "sts": {"average": 75.0, "average_ci95_low": 74.0, "average_ci95_high": 76.0, "STS12": 70.0},
    "search": {"a heart": {"red heart": 0.5}},
    "meta": {
        "dataset": "openmoji, test split",
        "tasks": {"sts": {"dataset": "mteb/sts", "revision": "abc", "protocol": "Spearman", "split": "test"}},
    },
}
PHASE1 = {"sentences": "openmoji", "text_model": "bert-base/uncased", "learning_rate": 3e-5, "temperature": 0.05}
PHASE2 = {
    "dataset": ["openmoji", "someone/pairs"],
    "split": "train",
    "modality": "image",
    "objective": "cyclip",
    "text_model": "outputs/phase1",
    "image_model": "google/vit-base",
    "learning_rate": 5e-4,
    "batch_size": 128,
}
RUN = {
    "steps": 1200,
    "items": 76800,
    "seconds": 5400.0,
    "device": "cuda",
    "processes": 8,
    "versions": {"torch": "2.11.0", "transformers": "5.23.0"},
}


def write_run(folder: Path, recipe: dict[str, Any], **run: Any) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "run.json").write_text(json.dumps(RUN | run))


@pytest.fixture
def checkpoint(image_text_folder: Path) -> Path:
    """An image-text model with both phases, results and a plot."""
    write_run(image_text_folder / "phase1", PHASE1, steps=100)
    write_run(image_text_folder, PHASE2)
    (image_text_folder / "results.json").write_text(json.dumps(RESULTS))
    (image_text_folder / "map.png").write_bytes(b"\x89PNG")
    return image_text_folder


def render(folder: Path, repo_id: str = "someone/model", **fields: Any) -> str:
    card = CardArguments(**fields)
    return render_card(CardSources.find(folder, card), repo_id, card)


def test_metadata(checkpoint: Path, loopback: Any) -> None:
    text = render(checkpoint, license="cc-by-sa-4.0", language=["en", "de"], tags=["emoji"])
    data = ModelCard(text).data
    assert (data.license, data.language, data.library_name) == ("cc-by-sa-4.0", ["en", "de"], "transformers")
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.tags == ["xmodal_hf", "custom_code", "sentence-transformers", "clip", "emoji"]
    assert data.datasets == ["someone/pairs"]
    assert data.base_model == ["bert-base/uncased", "google/vit-base"]
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert loopback.metadata_errors(metadata) == []
    assert loopback.metadata_errors(metadata | {"license": "my own", "language": "English"}) != []
    assert loopback.metadata_errors({"model-index": [{"name": "x", "results": [{"task": {"type": "t"}}]}]}) != []


def test_the_model_index_has_every_result_of_this_model() -> None:
    found = {(entry.task_type, entry.metric_name): entry for entry in model_index(RESULTS)}
    assert {key: entry.metric_value for key, entry in found.items()} == {
        ("retrieval", "text_to_image_recall@1"): 12.0,
        ("retrieval", "text_to_image_median_rank"): 46.5,
        ("sentence-similarity", "average"): 75.0,
        ("sentence-similarity", "STS12"): 70.0,
    }
    retrieval = found["retrieval", "text_to_image_recall@1"]
    assert retrieval.metric_type == "text_to_image_recall_at_1"
    assert (retrieval.dataset_type, retrieval.dataset_name) == ("openmoji", "openmoji, test split")
    sts = found["sentence-similarity", "average"]
    assert (sts.dataset_type, sts.dataset_revision, sts.dataset_split) == ("mteb/sts", "abc", "test")


def test_the_model_index_tells_the_text_tower_from_the_model() -> None:
    """The Hub joins both, since their type and their data are the same."""
    results = {"sts": {"average": 75.0}, "sts_text_tower": {"average": 80.0}, "meta": {"dataset": "sts"}}
    entries = model_index(results)
    assert {entry.task_type for entry in entries} == {"sentence-similarity"}
    assert {entry.metric_name: entry.metric_value for entry in entries} == {
        "average": 75.0,
        "sts_text_tower/average": 80.0,
    }
    assert [entry.metric_type for entry in entries] == ["average", "sts_text_tower_average"]


def test_the_model_index_of_the_card_is_read_back(checkpoint: Path) -> None:
    found = ModelCard(render(checkpoint)).data.eval_results
    expected = model_index(RESULTS)
    assert [(entry.metric_name, entry.metric_value) for entry in found] == [
        (entry.metric_name, entry.metric_value) for entry in expected
    ]


def test_tables_have_intervals_and_what_was_before() -> None:
    retrieval, sts = result_tables(RESULTS)
    assert retrieval.has_before and not sts.has_before
    assert retrieval.rows == [
        ("text_to_image_recall@1", "12.00", "8.67 to 15.67", "1.00"),
        ("text_to_image_median_rank", "46.50", "", ""),
    ]
    assert sts.rows == [("average", "75.00", "74.00 to 76.00", ""), ("STS12", "70.00", "", "")]
    assert retrieval.caption == "openmoji, test split; 300 items; 1,500 texts"
    assert sts.caption == f"mteb/sts; test split; Spearman; revision abc. {TASKS['sts'].note}"


def test_a_model_that_was_only_measured_before_shows_that() -> None:
    (table,) = result_tables({"retrieval_before": {"recall@1": 1.0}, "meta": {}})
    assert table.rows == [("recall@1", "1.00", "", "")]


def body(text: str) -> str:
    return text.split("---\n", 2)[2]


def test_what_the_phases_did(checkpoint: Path) -> None:
    text = body(render(checkpoint))
    assert "**Phase 1, sentences.** Unsupervised SimCSE (each sentence twice, two dropout masks) on `openmoji`" in text
    assert "The text tower started from [bert-base/uncased](https://huggingface.co/bert-base/uncased)." in text
    assert "**Phase 2, pairs.** CyCLIP's contrastive loss with in-modal and cross-modal consistency on" in text
    assert "[someone/pairs](https://huggingface.co/datasets/someone/pairs) (train split)" in text
    assert "The text tower started from phase 1, the image tower from [google/vit-base]" in text
    assert "1,200 steps over 76,800 items in 1.5 hours." in text
    assert "| learning rate | 3e-05 | 0.0005 |" in text and "| processes | 8 | 8 |" in text
    assert "| torch | 2.11.0 | 2.11.0 |" in text
    for entry in ("zhao2024language", "radford2021learning", "goel2022cyclip", "gao2021simcse"):
        assert entry in text
    assert "zhai2023sigmoid" not in text and "wu2023large" not in text


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (PHASE2 | {"objective": "siglip"}, "SigLIP's pairwise sigmoid loss"),
        (PHASE2 | {"objective": "clip", "image_model": None}, "the image tower from random weights"),
        (
            PHASE2 | {"triplets": "nli.csv", "sentence_weight": 0.5},
            "jointly with supervised SimCSE (anchor, positive, hard negative) on `nli.csv` at weight 0.5",
        ),
        (PHASE2 | {"dataset": "/home/me/pairs.jsonl"}, "on `pairs.jsonl` (train split)"),
    ],
)
def test_other_recipes(recipe: dict, said: str, checkpoint: Path) -> None:
    write_run(checkpoint, recipe)
    text = render(checkpoint)
    assert said in text
    assert "/home/me" not in text
    assert ("zhai2023sigmoid" in text) == (recipe["objective"] == "siglip")


def test_the_card_of_an_added_loss(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its entry says what the card says; a program that does not know it says its name."""
    write_run(checkpoint, PHASE2 | {"objective": "margin", "margin": 0.5})
    text = render(checkpoint)
    assert "**Phase 2, pairs.** The loss `margin` on" in text and "| distance |" not in text
    weights = {"margin": Weight(0.25, "Margin.", label="distance"), "unlisted": Weight(0.0, "Not on a card.")}
    loss = Loss("nowhere:margin", "", "A loss with a margin", weights, ("@misc{margin2026}",))
    monkeypatch.setitem(LOSSES, "margin", loss)
    text = render(checkpoint)
    assert "**Phase 2, pairs.** A loss with a margin on" in text and "| distance |  | 0.5 |" in text
    assert "@misc{margin2026}" in text and "unlisted" not in text


def test_a_checkpoint_without_anything_else(image_text_folder: Path) -> None:
    text = render(image_text_folder)
    for absent in ("## Results", "## Training", "None", "{{", "{%", "![", "model-index"):
        assert absent not in text, absent
    for present in ("## How to use", "## Limitations", "## Citation", "Texts are truncated after 24 tokens"):
        assert present in text, present


def test_a_card_says_nothing_of_sentence_training_where_there_was_none(
    image_text_folder: Path, sentence_encoder_folder: Path
) -> None:
    recipe = {**PHASE2, "text_model": None, "objective": "clip"}
    write_run(image_text_folder, recipe)
    for folder in (image_text_folder, sentence_encoder_folder):
        assert not re.search("sentence encoder too|made to be the language encoder", body(render(folder)))
    write_run(image_text_folder, recipe | {"sentences": "openmoji"})
    assert "Its\nlanguage encoder is trained as a sentence encoder too, after Zhao et al." in render(image_text_folder)
    write_run(sentence_encoder_folder, PHASE1)
    assert "It\nis made to be the language encoder of a contrastive" in render(sentence_encoder_folder)


@pytest.mark.parametrize(("alpha", "shown"), [(None, "32"), (8.0, "8"), (0.5, "0.5")])
def test_rank_and_alpha_of_an_adapter(alpha: float | None, shown: str, checkpoint: Path) -> None:
    assert "LoRA" not in render(checkpoint)
    write_run(checkpoint, PHASE2 | {"lora_rank": 16, "lora_alpha": alpha, "lora_merge": True})
    text = render(checkpoint)
    assert f"as a LoRA adapter of rank 16 and alpha {shown}, merged into the weights." in text
    assert "| LoRA rank |  | 16 |" in text and f"| LoRA alpha |  | {shown} |" in text


def test_sources_that_were_folders_are_no_ids(checkpoint: Path) -> None:
    """Though they are not there when the card is rendered."""
    recipe = PHASE2 | {"dataset": ["data/cc3m", "someone/pairs"], "image_model": "towers/vit", "sentences": "openmoji"}
    write_run(checkpoint, recipe)
    assert "https://huggingface.co/datasets/data/cc3m" in render(checkpoint)
    write_run(checkpoint, recipe, local_sources=["data/cc3m", "towers/vit", "openmoji"])
    text = render(checkpoint)
    data = ModelCard(text).data
    assert data.datasets == ["someone/pairs"] and data.base_model == ["bert-base/uncased"]
    assert "on `cc3m`, [someone/pairs]" in text and "from `vit`." in text and "`openmoji`: [OpenMoji]" in text
    # The card in each folder gives its title; the last parts of folders may be equal.
    recipe |= {"text_model": "/data/minilm/model", "image_model": "/data/vit/model"}
    write_run(checkpoint, recipe, titles={"text_model": "MiniLM", "image_model": "ViT of 1,000 pictures"})
    shutil.rmtree(checkpoint / "phase1")
    text = " ".join(render(checkpoint).split())
    assert "The text tower started from MiniLM, the image tower from ViT of 1,000 pictures." in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"best_metric": "retrieval.r@10"}, "by `retrieval.r@10` on the validation split of `openmoji`"),
        (
            {"best_metric": "retrieval.r@10", "eval_dataset": "someone/pairs", "eval_split": "dev"},
            "on the dev split of [someone/pairs](https://huggingface.co/datasets/someone/pairs)",
        ),
        (
            {"best_metric": "retrieval.r@10", "eval_dataset": "/home/me/val.jsonl"},
            "on `val.jsonl` (its validation split, or all of it where it has no splits) (step",
        ),
        (
            {"best_metric": "sts_dev.spearman", "eval_sts": "/home/me/stsb-dev.csv", "eval_split": "dev"},
            "on `stsb-dev.csv` (its validation split, or all of it where it has no splits) (step",
        ),
    ],
)
def test_how_the_weights_were_chosen(options: dict, said: str, checkpoint: Path) -> None:
    assert "did best" not in render(checkpoint)
    write_run(checkpoint, PHASE2 | options, best={"step": 1000, "value": 51.234})
    text = render(checkpoint)
    assert "The released weights are those that did best" in text and said in text
    assert "(step 1,000: 51.23)." in text


def test_one_number_says_how_long_texts_may_be(checkpoint: Path) -> None:
    write_run(checkpoint, PHASE2 | {"max_length": 32})
    text = body(render(checkpoint))
    assert text.count("tokens") == 1 and "Texts are truncated after 24 tokens." in text


@pytest.mark.parametrize(
    ("dataset", "type_", "name"),
    [
        ("someone/pairs", "someone/pairs", "someone/pairs"),
        ("openmoji, test split", "openmoji", "openmoji, test split"),
        ("/home/me/my pairs.jsonl", "my", "my pairs.jsonl"),
        ("data/captions.jsonl.gz", "captions", "captions.jsonl.gz"),
        ("../pairs/test.zip", "test", "test.zip"),
        ("outputs/pairs", "pairs", "pairs"),
        ("a/b/c", "c", "c"),
        ("C:\\data\\x", "C", "C:\\data\\x"),
        ("...", "unknown", "..."),
    ],
)
def test_data_sets_of_the_model_index(dataset: str, type_: str, name: str, loopback: Any) -> None:
    results = {"retrieval": {"r@1": 1.0}, "meta": {"dataset": dataset}}
    (entry,) = model_index(results)
    assert (entry.dataset_type, entry.dataset_name) == (type_, name)
    (table,) = result_tables(results)
    assert table.caption == name


def test_what_a_person_adds(checkpoint: Path) -> None:
    text = render(checkpoint, title="My model", description="It finds *emoji*.", limitations="Small pictures only.")
    assert "\n# My model\n\nIt finds *emoji*.\n" in text
    assert "## Limitations\n\nSmall pictures only.\n" in text


def test_emissions(checkpoint: Path) -> None:
    assert "Emissions were not measured." in render(checkpoint)
    rows = "emissions,country_name,cpu_model,gpu_model\n0.001,France,Xeon,\n0.0123456,France,Xeon,1 x H100\n"
    (checkpoint / "emissions.csv").write_text(rows)
    text = render(checkpoint)
    assert ModelCard(text).data.co2_eq_emissions["emissions"] == 12.3
    assert "12.3 g of CO2 equivalent (1 x H100,\nFrance)" in text
    assert ModelCard(text).data.co2_eq_emissions["training_type"] == "fine-tuning"
    for folder in (checkpoint, checkpoint / "phase1"):  # without the models that it started from
        write_run(folder, {"dataset": "openmoji", "modality": "image", "objective": "clip"})
    assert ModelCard(render(checkpoint)).data.co2_eq_emissions["training_type"] == "pre-training"


def test_emissions_of_both_phases_add_up(checkpoint: Path, tmp_path: Path) -> None:
    phase1 = tmp_path / "phase1"
    phase1.mkdir()
    (phase1 / "recipe.yaml").write_text("sentences: corpus.txt\n")
    for folder, kilograms in ((checkpoint, 0.002), (phase1, 0.0015)):
        (folder / "emissions.csv").write_text(f"emissions,country_name,cpu_model\n{kilograms},France,Xeon\n")
    assert ModelCard(render(checkpoint, phase1=str(phase1))).data.co2_eq_emissions["emissions"] == 3.5


def test_plots_are_shown_once(checkpoint: Path) -> None:
    assert body(render(checkpoint)).count("](map.png)") == 1


def test_missing_folders_are_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--phase1 \S+ has no recipe\.yaml"):
        render(checkpoint, phase1=str(tmp_path))
    with pytest.raises(ValueError, match=r"--results \S+ has no results\.json"):
        render(checkpoint, results=str(tmp_path))


def code_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> str:
    """Run the code of a card that names a folder, where a picture and a sound lie, and return what it prints."""
    work = folder.parent / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 4), dtype=np.uint8)).save("picture.png")
    soundfile.write("sound.wav", np.sin(np.arange(22050) / 10).astype(np.float32), 22050)
    capsys.readouterr()
    blocks = code_blocks((folder / "README.md").read_text())
    assert len(blocks) == 2
    for block in blocks:
        if "sentence_transformers" in block:
            pytest.importorskip("sentence_transformers")
        exec(block, {})
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["image", "sentence"])
def test_the_code_of_a_card_runs(
    kind: str,
    tmp_path: Path,
    image_text_folder: Path,
    sentence_encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    source = {"image": image_text_folder, "sentence": sentence_encoder_folder}[kind]
    staged = stage_checkpoint(source, tmp_path / "staged", str(tmp_path / "staged"), CardArguments())
    printed = run_blocks(staged, monkeypatch, capsys)
    if kind == "image":
        scores = eval(printed.splitlines()[0])
        assert scores.keys() == {"a red heart", "a sleeping cat", "the flag of a country"}
        assert sum(scores.values()) == pytest.approx(1)
    assert printed.count("tensor(") == 2


def test_the_code_of_an_audio_card_runs(
    tmp_path: Path,
    make_audio_text: Callable,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    make_audio_text().save_pretrained(tmp_path / "model")
    # As many frames and bands as the tiny HTSAT takes.
    extractor = LogMelFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=125, fft_window_size=256, max_length_s=1.0, frequency_max=4000.0
    )
    AudioTextProcessor(extractor, tokenizer).save_pretrained(tmp_path / "model")
    staged = stage_checkpoint(tmp_path / "model", tmp_path / "staged", str(tmp_path / "staged"), CardArguments())
    printed = run_blocks(staged, monkeypatch, capsys)
    assert sum(eval(printed.splitlines()[0]).values()) == pytest.approx(1)
    assert printed.count("tensor(") == 2


@pytest.mark.parametrize("kind", ["image", "sentence"])
def test_a_language_encoder_alone(
    kind: str,
    tmp_path: Path,
    checkpoint: Path,
    sentence_encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    loopback: Any,
) -> None:
    source = {"image": checkpoint, "sentence": sentence_encoder_folder}[kind]
    staged = stage_text_encoder(source, tmp_path / "staged", str(tmp_path / "staged"), CardArguments(license="mit"))
    assert not list(staged.glob("*.py"))
    text = (staged / "README.md").read_text()
    metadata = yaml.safe_load(text.split("---\n")[1])
    assert loopback.metadata_errors(metadata) == []
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("sentence-transformers", "sentence-similarity")
    assert "custom_code" not in metadata["tags"] and "trust_remote_code" not in text and "map.png" not in text
    # What was measured with both towers is not this model's.
    measured = {entry.metric_name for entry in ModelCard(text).data.eval_results or []}
    assert measured == ({"average", "STS12"} if kind == "image" else set())
    assert "torch.Size([1, " in run_blocks(staged, monkeypatch, capsys)


@pytest.mark.parametrize(
    "folder", sorted(path.parent for path in CARDS.glob("*/card.yaml")), ids=lambda path: path.name
)
def test_cards_of_this_repository_are_rendered_from_their_files(folder: Path, loopback: Any) -> None:
    """As `publish_model.py --recipe model_cards/<name>/card.yaml` does."""
    options = yaml.safe_load((folder / "card.yaml").read_text())
    fields = {key: value for key, value in options.items() if key in CardArguments.__dataclass_fields__}
    text = render(folder, options["repo_id"], **fields)
    assert (folder / "README.md").read_text() == text
    assert loopback.metadata_errors(yaml.safe_load(text.split("---\n")[1])) == []
    results = json.loads((folder / "results.json").read_text())
    assert len(ModelCard(text).data.eval_results) == len(model_index(results)) > 0
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text):
        assert (folder / link).is_file() or os.path.splitext(link)[1] == ".py", link

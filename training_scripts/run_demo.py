"""The main job on built-in data: both training phases, evaluation, save, load back, search.

    python training_scripts/run_demo.py                    # emoji and their names: outputs/demo
    python training_scripts/run_demo.py --from_scratch     # the same without pretrained towers: outputs/demo_scratch
    python training_scripts/run_demo.py --modality audio   # notes and drums with captions: outputs/demo_audio

Both phases start from towers that pip installs (`prepare_towers.py`): phase 1 goes on with the sentence encoder on the
captions, and phase 2 trains the projections of both frozen towers, which embed each picture or sound and each caption
once.

All numbers that the demo reports are in `results.json` in the output folder, beside the figures and the trained model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xmodal_hf.commands import command_parser, run_command
from xmodal_hf.messages import VERBOSITY

SCRIPTS = Path(__file__).parent
RECIPES = SCRIPTS / "recipes"
# Sampling rate at which the first item is decoded, whatever the model takes later.
CHECK_RATE_HZ = 16_000
# Files of the results that are copied into `--card_dir`.
SHOWN_FILES = ("results.json", "contact_sheet.png", "map.png", "loss_curves.png")


@dataclass(frozen=True)
class Demo:
    """Settings of the demo of a modality.

    Attributes:
        modality: Modality: `image` or `audio`.
        output_dir: Folder of all results, unless another one is given.
        dataset: Name of the built-in data set.
        recipes: Recipes of phase 1 and phase 2.
        split: Description of the held-out items.
        num_held_out: Number of items of the test split that are evaluated.
        top_k: Number of answers per query.
        queries: Free texts that are no captions of training items (checked at the start).
        towers: Dictionary of modality to the options of its pretrained tower, as `prepare_towers` takes them; empty for
            towers from scratch.
    """

    modality: Literal["image", "audio"]
    output_dir: Path
    dataset: str
    recipes: tuple[str, str]
    split: str
    num_held_out: int
    top_k: int
    queries: tuple[str, ...]
    towers: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


FROM_SCRATCH = {
    "image": Demo(
        modality="image",
        output_dir=Path("outputs/demo_scratch"),
        dataset="openmoji",
        recipes=("demo_scratch_sentences.yaml", "demo_scratch_pairs.yaml"),
        split="openmoji, test split (whole base emoji held out)",
        num_held_out=300,
        top_k=5,
        queries=("a heart", "an angry face", "a clock", "pink circle", "a person riding a bike", "woman worker"),
    ),
    "audio": Demo(
        modality="audio",
        output_dir=Path("outputs/demo_audio_scratch"),
        dataset="soundfont",
        recipes=("demo_audio_scratch_sentences.yaml", "demo_audio_scratch_pairs.yaml"),
        split="soundfont, test split (combinations of instrument, register and manner held out)",
        num_held_out=400,
        top_k=4,
        queries=(
            "three drum hits",
            "a long quiet note on a flute",
            "a rising phrase on a trumpet",
            "one hit of a cymbal, then an organ",
            "a falling phrase on a guitar",
            "a low note on a synthesizer",
        ),
    ),
}
# Images of 160 pixels take half the time of 224. The audio tower reads blocks of 2.3 s at a distance of half a block,
# so that 2.5 s fill one block and the whole clips, of 3 s, no second one.
PRETRAINED = {
    "image": dataclasses.replace(
        FROM_SCRATCH["image"],
        output_dir=Path("outputs/demo"),
        recipes=("demo_sentences.yaml", "demo_pairs.yaml"),
        towers={"image": {"image_size": 160}, "text": {}},
    ),
    "audio": dataclasses.replace(
        FROM_SCRATCH["audio"],
        output_dir=Path("outputs/demo_audio"),
        recipes=("demo_audio_sentences.yaml", "demo_audio_pairs.yaml"),
        towers={"audio": {"max_length_s": 2.5}, "text": {}},
    ),
}


def build_parser() -> ArgumentParser:
    """Return the parser of the command line."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--modality", choices=tuple(FROM_SCRATCH), default="image", help="Modality that is paired with text."
    )
    parser.add_argument("--from_scratch", action="store_true", help="Train without pretrained towers.")
    folders = ", ".join(str(demo.output_dir) for demos in (PRETRAINED, FROM_SCRATCH) for demo in demos.values())
    parser.add_argument(
        "--output_dir", type=Path, help=f"Folder of all results. Default: that of the demo, one of {folders}."
    )
    parser.add_argument("--seed", type=int, default=0, help="Seed of data order, weights and measurements.")
    parser.add_argument("--max_steps", type=int, help="Maximum number of steps of each phase (for a quick trial).")
    parser.add_argument(
        "--max_held_out", type=int, help="Maximum number of held-out items to measure (for a quick trial)."
    )
    parser.add_argument(
        "--card_dir", type=Path, help="Folder to which files for the README and the model card are copied."
    )
    parser.add_argument("--search", action="store_true", help="Only answer the queries with the saved model.")
    return parser


def main(args: Sequence[str] | None = None) -> None:
    """Run the stages one after the other, each as a user would."""
    options = build_parser().parse_args(args)
    demo = (FROM_SCRATCH if options.from_scratch else FROM_SCRATCH | PRETRAINED)[options.modality]
    if options.max_held_out is not None:
        demo = dataclasses.replace(demo, num_held_out=min(options.max_held_out, demo.num_held_out))
    folder: Path = options.output_dir or demo.output_dir
    if options.search:
        search(demo, folder)
        return

    started = time.perf_counter()
    check_queries(demo)
    check_items(demo)
    messages = [VERBOSITY, options.verbosity]
    train_phases(demo, folder, options.seed, options.max_steps, messages)
    results = evaluate_before_and_after(demo, folder, options.seed)
    # This runs in a process of its own, which only has the saved folder.
    same = ["--modality", demo.modality, "--output_dir", str(folder), "--max_held_out", str(demo.num_held_out)]
    run([sys.executable, __file__, "--search", *same, *messages])
    results["search"] = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    used = os.times()  # peak of this process and of those that it has started
    cpu_seconds = used.user + used.system + used.children_user + used.children_system
    results["meta"] |= {"seconds": round(time.perf_counter() - started, 1), "cpu_seconds": round(cpu_seconds, 1)}
    (folder / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.card_dir is not None:
        # Not at the top: --help and a wrong option answer without torch.
        from xmodal_hf.hub.staging import copy_card_sources

        shown = [folder / name for name in SHOWN_FILES]
        copy_card_sources(folder / "model", options.card_dir, shown, phase1=folder / "phase1")
    print_summary(demo, folder, results)


def check_queries(demo: Demo) -> None:
    """Raise a ValueError if a query is a training caption."""
    from xmodal_hf.data.sentences import load_sentences

    known = sorted({caption.lower() for caption in load_sentences(demo.dataset)["anchor"]} & set(demo.queries))
    if known:
        raise ValueError(f"these queries are training captions: {', '.join(known)}")


def check_items(demo: Demo) -> None:
    """Decode one held-out item, so that a package which is missing is named before any training.

    Raises:
        ImportError: If a package that draws or renders the items is not installed.
    """
    from xmodal_hf.data.modalities import MODALITIES, find_address

    spec = MODALITIES[demo.modality]
    cell = held_out(dataclasses.replace(demo, num_held_out=1))[demo.modality][0]
    find_address(spec.decoder)(cell, *([CHECK_RATE_HZ] if spec.is_sampled else []))


def train_phases(demo: Demo, folder: Path, seed: int, max_steps: int | None, messages: Sequence[str]) -> None:
    """Run both training scripts as they are launched by hand, on towers from packages where the demo has some."""
    towers = make_towers(demo, folder / "towers")
    limit = [] if max_steps is None else ["--max_steps", str(max_steps)]
    sentences, pairs = demo.recipes
    phases: tuple[tuple[str, str, Path, list[str]], ...] = (
        ("train_sentence_embedding.py", sentences, folder / "phase1", tower_options(towers, "text")),
        (
            *("train_contrastive.py", pairs, folder / "model"),
            ["--text_model", str(folder / "phase1"), *tower_options(towers, demo.modality)],
        ),
    )
    for script, recipe, output, extra in phases:
        options = ["--recipe", str(RECIPES / recipe), "--output_dir", str(output), "--seed", str(seed)]
        run([sys.executable, str(SCRIPTS / script), *options, *extra, *limit, *messages])


def make_towers(demo: Demo, folder: Path) -> dict[str, Path]:
    """Write the towers of a demo, as `prepare_towers.py` does, and return their folders by modality."""
    if not demo.towers:
        return {}
    from xmodal_hf.hub.packaged_towers import prepare_towers

    return prepare_towers(folder, demo.towers)


def tower_options(towers: Mapping[str, Path], modality: str) -> list[str]:
    """Return the option of a training script that names a tower; none from scratch."""
    return [f"--{modality}_model", str(towers[modality])] if modality in towers else []


def run(command: Sequence[str]) -> None:
    """Print and run a command; where it fails, it has said why, and its exit status is the demo's."""
    print("$ " + " ".join(command), flush=True)
    status = subprocess.run(command).returncode
    if status:
        sys.exit(status)


def evaluate_before_and_after(demo: Demo, folder: Path, seed: int) -> dict[str, Any]:
    """Measure the model as phase 2 found it and as it left it, on held-out items; draw the pictures."""
    from transformers import AutoModel, AutoProcessor

    from xmodal_hf.evaluation import as_embedder, embed_pairs
    from xmodal_hf.evaluation.frozen import with_memory
    from xmodal_hf.evaluation.plots import alignment_uniformity_scatter, cosine_histogram, joint_map, loss_curves
    from xmodal_hf.training.log import LOG_NAME

    processor = AutoProcessor.from_pretrained(folder / "model")
    trained = AutoModel.from_pretrained(folder / "model")
    rows = held_out(demo)
    results: dict[str, Any] = {}
    for name, model in (("before", untrained_copy(folder, processor, seed)), ("after", trained)):
        # Both measurements share one cache of the held-out items, which a frozen tower embeds once.
        embedder = with_memory(as_embedder(model, processor), folder / "embeddings", f"{name} phase 2")
        pairs = embed_pairs(embedder, rows, demo.modality)
        results |= {f"{task}_{name}": numbers for task, numbers in measure(embedder, pairs, rows, seed).items()}
    embeds = (pairs.modality_embeds, pairs.text_embeds, pairs.text_to_item)
    figures = {
        "map.png": joint_map(*embeds, modality=demo.modality, method="tsne"),
        "cosines.png": cosine_histogram(*embeds, modality=demo.modality),
        "alignment_uniformity.png": alignment_uniformity_scatter(
            {name: results[f"representation_{name}"] for name in ("before", "after")}
        ),
        "loss_curves.png": loss_curves(
            {"phase 1: sentences": folder / "phase1" / LOG_NAME, "phase 2: pairs": folder / "model" / LOG_NAME}
        ),
    }
    for file_name, figure in figures.items():
        figure.savefig(folder / file_name)
    results["meta"] = {
        "dataset": demo.split,
        "num_held_out": demo.num_held_out,
        "chance_recall@10": 100 * min(10, demo.num_held_out) / demo.num_held_out,
        "seed": seed,
    }
    return results


def untrained_copy(folder: Path, processor: Any, seed: int) -> Any:
    """Return the model as phase 2 started from: phase 1's text tower, a random other tower and projections."""
    from accelerate.utils import set_seed

    from xmodal_hf.options import read_recipe
    from xmodal_hf.training.arguments import ContrastiveArguments, TextModelArguments
    from xmodal_hf.training.building import build_dual_encoder
    from xmodal_hf.training.output import RECIPE_NAME

    text, contrastive = read_recipe(folder / "model" / RECIPE_NAME, (TextModelArguments, ContrastiveArguments))
    set_seed(seed)
    return build_dual_encoder(text, contrastive, processor)


def held_out(demo: Demo) -> Any:
    """Return the held-out items, each with its first caption."""
    from xmodal_hf.data.sources import load_pairs

    rows = load_pairs(demo.dataset, modality=demo.modality, split="test", max_samples=demo.num_held_out)
    return rows.remove_columns("text").add_column("text", [captions[0] for captions in rows["text"]])


def measure(embedder: Any, pairs: Any, rows: Any, seed: int) -> dict[str, dict[str, float]]:
    """Return retrieval, geometry and, where items have instrument families, zero-shot classification."""
    from xmodal_hf.evaluation import evaluate_representation, evaluate_retrieval

    embeds = (pairs.modality_embeds, pairs.text_embeds, pairs.text_to_item)
    scale = embedder.logit_scale
    results = {
        "retrieval": evaluate_retrieval(*embeds, texts=pairs.texts, modality=pairs.modality, seed=seed),
        "representation": evaluate_representation(*embeds, modality=pairs.modality, logit_scale=scale, seed=seed),
    }
    if "family" in rows.column_names:
        results["zero_shot"] = classify_families(embedder, pairs.modality_embeds, rows["family"][:], seed)
    return results


def classify_families(embedder: Any, audio_embeds: Any, families: Sequence[str | None], seed: int) -> dict[str, float]:
    """Return the zero-shot accuracy over the instrument families of clips with one instrument."""
    from xmodal_hf.data.builtin.soundfont import family_prompts
    from xmodal_hf.evaluation.zero_shot import prompt_embeddings, zero_shot_metrics

    prompts = family_prompts()
    names = list(prompts)
    clips = [index for index, family in enumerate(families) if family is not None]
    scores = audio_embeds[clips] @ prompt_embeddings(embedder, list(prompts.values())).T  # (clips, families)
    numbers = zero_shot_metrics(scores, [names.index(str(families[index])) for index in clips], names, seed=seed)
    return numbers | {"chance_top1_accuracy": 100 / len(names)}


def search(demo: Demo, folder: Path) -> None:
    """Answer the queries with the saved model: a contact sheet and `search.json`.

    The answers come from the held-out items and, where phase 2 kept the vectors of its items, from those too.
    """
    from datasets import concatenate_datasets

    from xmodal_hf.data.modalities import MODALITIES
    from xmodal_hf.evaluation.plots import contact_sheet

    embedder, processor = load_searched(folder)
    held = held_out(demo)
    seen, seen_embeds = trained_on(demo, folder, embedder)
    gallery = concatenate_datasets([held, seen]) if seen is not None else held
    items = np.concatenate([embedder.encode_items(demo.modality, held[demo.modality]), seen_embeds])
    cosines = embedder.encode_text(list(demo.queries)) @ items.T  # (queries, items)
    best = (-cosines).argsort(axis=1, kind="stable")[:, : demo.top_k].tolist()
    scores = [[round(float(cosines[row, item]), 4) for item in found] for row, found in enumerate(best)]
    captions = [gallery[found]["text"] for found in best]
    pictures = [_PICTURES_OF[demo.modality](gallery[found], processor) for found in best]
    new = [[item < len(held) for item in found] for found in best]
    shown = captions if MODALITIES[demo.modality].is_sampled else None  # spectrograms need captions to be understood
    sheet = contact_sheet(demo.queries, pictures, scores, shown, framed=None if seen is None else new)
    sheet.savefig(folder / "contact_sheet.png", dpi=90)
    answers = {
        query: [
            {"caption": caption, "cosine": score, "held_out": is_new}
            for caption, score, is_new in zip(*found, strict=True)
        ]
        for query, *found in zip(demo.queries, captions, scores, new, strict=True)
    }
    (folder / "search.json").write_text(json.dumps(answers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_searched(folder: Path) -> tuple[Any, Any]:
    """Return the saved model as an embedder with the demo's memory, and its processor."""
    from transformers import AutoModel, AutoProcessor

    import xmodal_hf  # noqa: F401  (the Auto classes learn our models from it)
    from xmodal_hf.evaluation import as_embedder
    from xmodal_hf.evaluation.frozen import with_memory

    processor = AutoProcessor.from_pretrained(folder / "model")
    model = as_embedder(AutoModel.from_pretrained(folder / "model"), processor)
    return with_memory(model, folder / "embeddings", "after phase 2"), processor


def trained_on(demo: Demo, folder: Path, embedder: Any) -> tuple[Any, Any]:
    """Return the training items and their embeddings (n, D), from the vectors that phase 2 kept; none without them."""
    from xmodal_hf.data.sources import load_pairs
    from xmodal_hf.features import FeatureStore
    from xmodal_hf.features.frozen import tower_fields
    from xmodal_hf.options import read_recipe
    from xmodal_hf.training.arguments import PairArguments
    from xmodal_hf.training.output import RECIPE_NAME

    nothing = None, np.empty((0, embedder.encode_text(list(demo.queries)).shape[1]), np.float32)
    stores = sorted((folder / "features").glob(f"{demo.modality}-*"))
    if not stores:
        return nothing
    (pairs,) = read_recipe(folder / "model" / RECIPE_NAME, (PairArguments,))
    rows = load_pairs(demo.dataset, modality=demo.modality, split="train", max_samples=pairs.max_samples)
    tower = tower_fields(embedder.model, demo.modality)
    of_tower = (store for store in map(FeatureStore.open, stores) if store.identity["tower"] == tower)
    store = next((store for store in of_tower if all(item_id in store for item_id in rows["id"])), None)
    if store is None:  # the stores are of earlier runs, with other towers or items
        return nothing
    vectors = store[rows["id"][:]].float().numpy()
    embeds = embedder.project(demo.modality, vectors)
    first_captions = [captions[0] for captions in rows["text"]]
    rows = rows.remove_columns("text").add_column("text", first_captions)
    return rows, embeds / np.linalg.norm(embeds, axis=1, keepdims=True)


def images_of(rows: dict[str, list[Any]], processor: Any) -> list[Any]:
    """Return the images of some rows."""
    return rows["image"]


def spectrograms_of(rows: dict[str, list[Any]], processor: Any) -> list[Any]:
    """Return pictures of the spectrograms that the model hears."""
    from xmodal_hf.data.audio import load_waveform
    from xmodal_hf.evaluation.plots import spectrogram_picture

    extractor = processor.feature_extractor
    clips = [load_waveform(cell, extractor.sampling_rate) for cell in rows["audio"]]
    features = extractor(clips, sampling_rate=extractor.sampling_rate)["input_features"]  # (clips, 1, frames, bands)
    return [spectrogram_picture(spectrogram[0]) for spectrogram in features]


_PICTURES_OF = {"image": images_of, "audio": spectrograms_of}


def print_summary(demo: Demo, folder: Path, results: dict[str, Any]) -> None:
    """Print the numbers that people look at first."""
    print(f"\n{f'held-out {demo.dataset} ({demo.num_held_out})':<28}{'before':>10}{'after':>10}")
    ways = (f"text_to_{demo.modality}", f"{demo.modality}_to_text")
    rows = [("retrieval", f"{way}_recall@{k}") for way in ways for k in (1, 5, 10)]
    if "zero_shot_after" in results:
        rows += [*(("retrieval", f"{way}_map@10") for way in ways), ("zero_shot", "top1_accuracy")]
    rows += [("representation", name) for name in ("alignment", "text_uniformity", f"{demo.modality}_uniformity")]
    for task, metric in rows:
        before, after = (results[f"{task}_{name}"][metric] for name in ("before", "after"))
        print(f"{metric:<28}{before:>10.2f}{after:>10.2f}")
    print(f"recall@10 by chance: {results['meta']['chance_recall@10']:.2f}")
    for query, answers in results["search"].items():
        print(f"{query!r}: {', '.join(answer['caption'] for answer in answers)}")
    meta = results["meta"]
    print(f"{meta['seconds']:.0f} s, {meta['cpu_seconds']:.0f} s of a core; all of it is in {folder}")


if __name__ == "__main__":
    run_command(main)

"""The main job on the built-in emoji pictures: both training phases, evaluation, save, load back, search.

    python training_scripts/run_demo.py

Everything that it reports is in `outputs/demo/results.json`; pictures and the trained model lie beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent
RECIPES = SCRIPTS / "recipes"
# Said in full, so that the launcher neither warns nor uses one core only, which is its default on a CPU.
LAUNCH_OPTIONS = (
    *("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--num_cpu_threads_per_process", str(os.cpu_count())),
)
CARD_FILES = ("results.json", "contact_sheet.png", "map.png", "loss_curves.png")
NUM_HELD_OUT = 300
TOP_K = 5
# Free text that no training picture is captioned with (checked at the start), answered from the held-out pictures.
QUERIES = (
    "a heart",
    "an angry face",
    "a clock",
    "pink circle",
    "a flag with a blue stripe",
    "woman worker",
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the stages one after the other, each as a user would."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"), help="Folder of all results.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of everything.")
    parser.add_argument("--max_steps", type=int, help="Stop each phase after that many steps (for a quick trial).")
    parser.add_argument("--card_dir", type=Path, help="Also copy results.json and the pictures of the README there.")
    parser.add_argument("--search", action="store_true", help="Only answer the queries with the saved model.")
    options = parser.parse_args(args)
    if options.search:
        search(options.output_dir)
        return

    started = time.perf_counter()
    folder: Path = options.output_dir
    check_queries()
    train_phases(folder, options.seed, options.max_steps)
    results = evaluate_before_and_after(folder, options.seed)
    # A process of its own, which knows nothing but the saved folder.
    run([sys.executable, __file__, "--search", "--output_dir", str(folder)])
    results["search"] = json.loads((folder / "search.json").read_text(encoding="utf-8"))
    results["meta"]["seconds"] = round(time.perf_counter() - started, 1)
    (folder / "results.json").write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.card_dir is not None:
        options.card_dir.mkdir(parents=True, exist_ok=True)
        for name in CARD_FILES:
            shutil.copy(folder / name, options.card_dir / name)
    print_summary(folder, results)


def check_queries() -> None:
    """Raise a ValueError if a query is a training caption."""
    from xmodal_hf.data.openmoji import openmoji_captions

    known = sorted({caption.lower() for caption in openmoji_captions("train")} & set(QUERIES))
    if known:
        raise ValueError(f"these queries are training captions: {', '.join(known)}")


def train_phases(folder: Path, seed: int, max_steps: int | None) -> None:
    """Run both training scripts as they are launched by hand."""
    limit = [] if max_steps is None else ["--max_steps", str(max_steps)]
    phases: tuple[tuple[str, str, Path, list[str]], ...] = (
        ("train_sentence_embedding.py", "demo_sentences.yaml", folder / "phase1", []),
        ("train_contrastive.py", "demo_pairs.yaml", folder / "model", ["--text_model", str(folder / "phase1")]),
    )
    for script, recipe, output, extra in phases:
        options = ["--recipe", str(RECIPES / recipe), "--output_dir", str(output), "--seed", str(seed)]
        run(["accelerate", "launch", *LAUNCH_OPTIONS, str(SCRIPTS / script), *options, *extra, *limit])


def run(command: Sequence[str]) -> None:
    """Print and run a command; stop the demo where it fails."""
    print("$ " + " ".join(command), flush=True)
    if command[0] == "accelerate":  # the one of this environment, whether or not that is activated
        command = [str(Path(sys.executable).parent / "accelerate"), *command[1:]]
    subprocess.run(command, check=True)


def evaluate_before_and_after(folder: Path, seed: int) -> dict[str, Any]:
    """Measure the model as phase 2 found it and as it left it, on held-out emoji; draw the pictures."""
    from transformers import AutoModel, AutoProcessor

    from xmodal_hf.evaluation.plots import alignment_uniformity_scatter, cosine_histogram, joint_map, loss_curves
    from xmodal_hf.training.loop import LOG_NAME

    processor = AutoProcessor.from_pretrained(folder / "model")
    trained = AutoModel.from_pretrained(folder / "model")
    results: dict[str, Any] = {}
    for name, model in (("before", untrained_copy(folder, processor, seed)), ("after", trained)):
        pairs = embed_held_out(model, processor)
        results |= measure(name, pairs, model.logit_scale.exp().item(), seed)
    figures = {
        "map.png": joint_map(pairs.modality_embeds, pairs.text_embeds, pairs.text_to_item, method="tsne"),
        "cosines.png": cosine_histogram(pairs.modality_embeds, pairs.text_embeds, pairs.text_to_item),
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
        "dataset": "openmoji, test split (whole base emoji held out)",
        "num_held_out": NUM_HELD_OUT,
        "chance_recall@10": 100 * 10 / NUM_HELD_OUT,
        "seed": seed,
    }
    return results


def untrained_copy(folder: Path, processor: Any, seed: int) -> Any:
    """Return the model as phase 2 started from: phase 1's text tower, a random image tower and projections."""
    from accelerate.utils import set_seed

    from xmodal_hf.training.arguments import ContrastiveArguments, TextModelArguments, read_recipe
    from xmodal_hf.training.building import build_dual_encoder
    from xmodal_hf.training.output import RECIPE_NAME

    text, contrastive = read_recipe(folder / "model" / RECIPE_NAME, (TextModelArguments, ContrastiveArguments))
    set_seed(seed)
    return build_dual_encoder(text, contrastive, processor)


def held_out() -> Any:
    """Return the held-out pictures with their first names."""
    from xmodal_hf.data.openmoji import load_openmoji

    rows = load_openmoji("test").select(range(NUM_HELD_OUT))
    names = [captions[0] for captions in rows["text"]]
    return rows.remove_columns("text").add_column("text", names)


def embed_held_out(model: Any, processor: Any) -> Any:
    """Embed the held-out pictures and their names."""
    from xmodal_hf.evaluation import as_embedder, embed_pairs

    return embed_pairs(as_embedder(model, processor), held_out(), "image")


def measure(name: str, pairs: Any, logit_scale: float, seed: int) -> dict[str, Any]:
    """Return retrieval and geometry of embedded pairs, as tasks of results.json."""
    from xmodal_hf.evaluation import evaluate_representation, evaluate_retrieval

    embeds = (pairs.modality_embeds, pairs.text_embeds, pairs.text_to_item)
    return {
        f"retrieval_{name}": evaluate_retrieval(*embeds, seed=seed),
        f"representation_{name}": evaluate_representation(*embeds, logit_scale=logit_scale, seed=seed),
    }


def search(folder: Path) -> None:
    """Answer the queries from the held-out pictures with the saved model: a contact sheet and `search.json`."""
    from transformers import AutoModel, AutoProcessor

    import xmodal_hf  # noqa: F401  (the Auto classes learn our models from it)
    from xmodal_hf.evaluation import as_embedder
    from xmodal_hf.evaluation.plots import contact_sheet

    model = AutoModel.from_pretrained(folder / "model")
    embedder = as_embedder(model, AutoProcessor.from_pretrained(folder / "model"))
    gallery = held_out()
    cosines = embedder.encode_text(list(QUERIES)) @ embedder.encode_image(gallery["image"]).T  # (queries, pictures)
    best = (-cosines).argsort(axis=1, kind="stable")[:, :TOP_K].tolist()
    scores = [[round(float(cosines[row, item]), 4) for item in items] for row, items in enumerate(best)]
    contact_sheet(QUERIES, [gallery[items]["image"] for items in best], scores).savefig(
        folder / "contact_sheet.png", dpi=90
    )
    answers = {
        query: dict(zip(gallery[items]["text"], row, strict=True))
        for query, items, row in zip(QUERIES, best, scores, strict=True)
    }
    (folder / "search.json").write_text(json.dumps(answers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def print_summary(folder: Path, results: dict[str, Any]) -> None:
    """Print the numbers that people look at first."""
    print(f"\n{'held-out emoji (' + str(NUM_HELD_OUT) + ')':<28}{'before':>10}{'after':>10}")
    rows = [
        *(("retrieval", f"{way}_recall@{k}") for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)),
        *(("representation", name) for name in ("alignment", "text_uniformity", "image_uniformity")),
    ]
    for task, metric in rows:
        before, after = (results[f"{task}_{name}"][metric] for name in ("before", "after"))
        print(f"{metric:<28}{before:>10.2f}{after:>10.2f}")
    for query, answers in results["search"].items():
        print(f"{query!r}: {', '.join(answers)}")
    print(f"{results['meta']['seconds']:.0f} s; results, pictures and the model are in {folder}")


if __name__ == "__main__":
    main()

"""Search a feature store with a text, a picture or a sound.

    python training_scripts/search.py --model outputs/clip --features outputs/features/image-0123456789ab \\
        "a red bicycle" "two dogs in the snow"
    python training_scripts/search.py --model outputs/clip --features FOLDER --image photo.jpg

Prints the best items of each query with their cosines, and writes a contact sheet: the pictures, or the spectrograms of
the sounds under their file names. The store is one that training with a frozen tower has left (`--features` of
train_contrastive.py), or one of extract_features.py; the model is any whose tower is that of the store.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xmodal_hf.commands import check_sources, command_parser, run_command

if TYPE_CHECKING:
    from xmodal_hf.evaluation.search import Gallery, Hit


def parse_options(args: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("queries", nargs="*", help="Query texts.")
    parser.add_argument("--model", required=True, help="Two-tower model or adapter: a folder or Hub id.")
    parser.add_argument("--features", required=True, help="Folder of the feature store.")
    parser.add_argument("--image", nargs="+", default=[], help="Query images.")
    parser.add_argument("--audio", nargs="+", default=[], help="Query audio files.")
    parser.add_argument("--top_k", type=int, default=10, help="Number of answers to each query.")
    parser.add_argument(
        "--dataset", nargs="+", help="Present location of the data. Default: the one in the feature store."
    )
    parser.add_argument(
        "--output", default="outputs/search.png", help="File of the contact sheet; an empty name writes none."
    )
    parser.add_argument("--device", help="Device, such as cpu or cuda:1. Default: a GPU if there is one.")
    options = parser.parse_args(args)
    if not (options.queries or options.image or options.audio):
        parser.error('say what to look for: "a red bicycle", --image photo.jpg or --audio sound.wav')
    for option in ("image", "audio"):
        if missing := [path for path in getattr(options, option) if not Path(path).is_file()]:
            parser.error(f"--{option}: there is no file {missing[0]}")
    if options.top_k < 1:
        parser.error(f"--top_k must be at least 1, got {options.top_k}")
    return options


def main(args: Sequence[str] | None = None) -> None:
    """Answer the queries."""
    options = parse_options(args)
    check_sources([("--model", "model", options.model), ("--dataset", "dataset", options.dataset)])

    # After parsing: --help and a wrong option answer without torch.
    from xmodal_hf.evaluation.search import Gallery, Search

    search = Search.load(options.model, options.features, device=options.device)
    answers = {f"“{text}”": search(text, k=options.top_k) for text in options.queries}
    answers |= {Path(path).name: search(image=path, k=options.top_k) for path in options.image}
    answers |= {Path(path).name: search(audio=path, k=options.top_k) for path in options.audio}
    gallery = Gallery(search.store, options.dataset)
    for query, hits in answers.items():
        print(query)
        for hit in hits:
            print(
                f"  {hit.score:6.3f}  {hit.id}  {gallery.caption(hit.id, caption_of(hit, search.store.side))}".rstrip()
            )
    if options.output:
        write_sheet(Path(options.output), answers, gallery, search.store.side)
        print(f"\n{options.output}")


def caption_of(hit: Hit, side: str) -> int:
    """Return which caption of an item is shown: the one that answers, or the first."""
    return hit.position if side == "text" else 0


def write_sheet(path: Path, answers: dict[str, list[Hit]], gallery: Gallery, side: str) -> None:
    """Write the answers as pictures, one row per query."""
    from xmodal_hf.data.modalities import MODALITIES
    from xmodal_hf.evaluation.plots import contact_sheet
    from xmodal_hf.evaluation.search import file_name

    pictures = [[gallery.picture(hit.id) for hit in hits] for hits in answers.values()]
    scores = [[hit.score for hit in hits] for hits in answers.values()]
    captions = None
    if side == "text":
        captions = [[gallery.caption(hit.id, hit.position) for hit in hits] for hits in answers.values()]
    elif MODALITIES[gallery.modality].is_sampled:  # spectrograms need the name of the file
        captions = [[file_name(hit.id) for hit in hits] for hits in answers.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(list(answers), pictures, scores, captions).savefig(path)


if __name__ == "__main__":
    run_command(main)

"""Search a folder of pictures in words: embed each picture once, keep the vectors, answer queries.

    python examples/search_folder.py outputs/clip my_pictures "a red bicycle" "two dogs in the snow"

The vectors are kept beside the folder, by the names of the pictures: the next search with this model embeds new
pictures only. The checksum of its files tells the model from another one in the same folder.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from xmodal_hf.commands import run_command
from xmodal_hf.data.formats import is_readable
from xmodal_hf.evaluation import Embedder, as_embedder
from xmodal_hf.evaluation.loading import model_identity
from xmodal_hf.models.conversion import load_dual_encoder, load_dual_processor


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures in a folder and below it."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and is_readable(path.name, "image"))


def embed_folder(embedder: Embedder, folder: Path, store: Path, identity: str) -> tuple[list[str], np.ndarray]:
    """Return names and (n, D) unit-norm embeddings of the pictures; those that `store` has are not computed again.

    Args:
        embedder: Model of the embeddings.
        folder: Folder of the pictures.
        store: File of the embeddings.
        identity: Text that identifies the model; embeddings of another one are replaced.
    """
    kept: dict[str, np.ndarray] = {}
    if store.is_file():
        with np.load(store) as arrays:
            if "model" in arrays and str(arrays["model"]) == identity:  # the first release did not write it
                kept = dict(zip(arrays["names"].tolist(), arrays["embeds"], strict=True))
    names = [path.relative_to(folder).as_posix() for path in picture_files(folder)]
    missing = [name for name in names if name not in kept]
    if missing:
        kept |= dict(zip(missing, embedder.encode_image(folder / name for name in missing), strict=True))
    embeds = np.stack([kept[name] for name in names])
    np.savez(store, names=np.array(names), embeds=embeds, model=np.array(identity))
    return names, embeds


def best(query: np.ndarray, names: Sequence[str], embeds: np.ndarray, k: int) -> Iterator[tuple[str, float]]:
    """Yield names and cosines of the k pictures that are nearest to a query (D,)."""
    cosines = embeds @ query
    yield from ((names[row], float(cosines[row])) for row in np.argsort(-cosines)[:k])


def main(args: Sequence[str] | None = None) -> None:
    """Embed what is new, then answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Two-tower model: a folder or Hub id.")
    parser.add_argument("folder", type=Path, help="Folder of pictures.")
    parser.add_argument("queries", nargs="+", help="Texts to look for.")
    parser.add_argument("--k", type=int, default=5, help="Number of answers to each query.")
    options = parser.parse_args(args)
    if not picture_files(options.folder):
        raise ValueError(f"there is no picture in {options.folder}")
    embedder = as_embedder(load_dual_encoder(options.model), load_dual_processor(options.model))
    store = options.folder.with_name(f"{options.folder.name}_{Path(options.model).name}.npz")
    names, embeds = embed_folder(embedder, options.folder, store, model_identity(options.model))
    for text, query in zip(options.queries, embedder.encode_text(options.queries), strict=True):
        print(text)
        for name, cosine in best(query, names, embeds, options.k):
            print(f"  {cosine:6.3f}  {name}")


if __name__ == "__main__":
    run_command(main)

"""JSON documents of captions -> rows: COCO, Karpathy's splits, WavCaps, and plain lists of objects."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec

Rows = list[dict[str, Any]]
_BYTES_LOOKED_AT = 1 << 16


def is_document(path: Path) -> bool:
    """Whether a .json file holds one object, as the published annotations do, and not a list or an object a line."""
    with fsspec.open(str(path), "rb", compression="infer") as file:
        beginning = file.read(_BYTES_LOOKED_AT).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not beginning.startswith(b"{"):
            return False
        first_line, line_break, rest = beginning.partition(b"\n")
        if not line_break or not rest.strip():
            return not _is_json(first_line) or not file.read(_BYTES_LOOKED_AT).strip()
        return not _is_json(first_line)


def load_document(path: Path) -> Rows | None:
    """The rows of one JSON object of a known layout; None when its layout is another.

    Layouts: COCO captions ({"images", "annotations"}; one row an image with the list of its captions), Karpathy's
    ({"images": [{"filename", "sentences", "split"}]}), WavCaps and others that hold their rows under "data", and
    SugarCrepe's and others' numbered rows ({"0": {...}, "1": {...}}).

    Raises:
        ValueError: If the document holds COCO annotations without captions.
    """
    with fsspec.open(str(path), "rb", compression="infer") as file:
        document = json.load(file)
    reader = next((read for keys, read in LAYOUTS.items() if keys <= document.keys()), _numbered)
    return reader(document, path)


def _coco(document: Mapping[str, Any], path: Path) -> Rows:
    captions: dict[Any, list[str]] = defaultdict(list)
    for annotation in document["annotations"]:
        if "caption" not in annotation:
            raise ValueError(
                f"{path} has COCO annotations without captions (fields {', '.join(annotation)}): pass captions_*.json"
            )
        captions[annotation["image_id"]].append(annotation["caption"])
    return [
        {"image_id": image["id"], "file_name": image["file_name"], "captions": captions[image["id"]]}
        for image in document["images"]
        if image["id"] in captions
    ]


def _karpathy(document: Mapping[str, Any], path: Path) -> Rows:
    return [
        {
            "file_name": "/".join(filter(None, (image.get("filepath"), image["filename"]))),
            "captions": [sentence["raw"] for sentence in image["sentences"]],
            "split": image.get("split"),
        }
        for image in document["images"]
    ]


def _images(document: Mapping[str, Any], path: Path) -> Rows | None:
    images = document["images"]
    if images and {"filename", "sentences"} <= images[0].keys():
        return _karpathy(document, path)
    return images if images and "captions" in images[0] else None


def _data(document: Mapping[str, Any], path: Path) -> Rows | None:
    rows = document["data"]
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else None


def _numbered(document: Mapping[str, Any], path: Path) -> Rows | None:
    """Rows by their numbers."""
    if not document or not all(key.isdigit() and isinstance(row, dict) for key, row in document.items()):
        return None
    return [document[key] for key in sorted(document, key=int)]


# Keys of the object -> reader. The first layout whose keys the object has is used.
LAYOUTS: dict[frozenset[str], Callable[[Mapping[str, Any], Path], Rows | None]] = {
    frozenset({"images", "annotations"}): _coco,
    frozenset({"images"}): _images,
    frozenset({"data"}): _data,
}


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True

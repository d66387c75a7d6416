"""Manifest of a feature store, and the differences between two of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

MANIFEST_NAME = "manifest.json"
# Name of the manifest while vectors are being written: a folder with this file is not complete.
UNFINISHED_NAME = "unfinished.json"
INDEX_NAME = "ids.npy"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_FORMAT = 1
_SHOWN_CHARACTERS = 80
# Entries of an identity that are recorded and do not change the vectors.
_TOLD_ONLY = ("data.source",)


class FeatureError(ValueError):
    """A feature store cannot be used: it is not complete, or its vectors are of something else."""


@dataclass(frozen=True)
class Manifest:
    """The contents of `manifest.json`.

    Attributes:
        identity: Facts on which the vectors depend: `side` (image, audio, text), `tower` (checksum of its weights,
            config, pooling), `input` (processor or tokenizer with their options), `views`, `compute` (precision),
            `data` (checksums of ids and contents, source). Two stores with equal identities hold the same vectors.
        dtype: Data type of the vectors: float16, bfloat16 or float32.
        width: Number of dimensions of a vector.
        items: Number of rows of the data set, including those that could not be used.
        items_per_shard: Number of rows of the data set whose vectors lie in one file.
        shards: Number of vectors in each file.
    """

    identity: dict[str, Any]
    dtype: str
    items: int
    items_per_shard: int
    width: int = 0
    shards: list[int] = field(default_factory=list)
    format: int = _FORMAT

    @property
    def num_shards(self) -> int:
        """Files that the rows of the data set fill."""
        return max(1, -(-self.items // self.items_per_shard))

    @property
    def num_views(self) -> int:
        """Augmented views of each item; 1 where nothing is augmented."""
        return self.identity.get("views", {}).get("number", 1)

    def rows_of(self, shard: int) -> range:
        """The rows of the data set that belong to a shard."""
        first = shard * self.items_per_shard
        return range(first, min(first + self.items_per_shard, self.items))

    def shard_path(self, folder: Path, shard: int) -> Path:
        """The file of a shard."""
        return folder / f"vectors-{shard:05}.arrow"

    def write(self, path: Path) -> None:
        """Write the file atomically, so that no process reads an incomplete one."""
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            FeatureError: If another program wrote the file, or a newer version of this package.
        """
        try:
            manifest = cls(**json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise FeatureError(f"{path} is no manifest of a feature store: {error}") from error
        if manifest.format != _FORMAT:
            raise FeatureError(f"{path} has the format {manifest.format}, and this version reads {_FORMAT}")
        return manifest


def differences(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Differences between two identities, one sentence per field."""
    left, right = dict(_leaves(found)), dict(_leaves(expected))
    return [
        f"{name} is {_shown(left.get(name))} in the store, {_shown(right.get(name))} here"
        for name in sorted(left.keys() | right.keys())
        if left.get(name) != right.get(name) and not name.startswith(_TOLD_ONLY)
    ]


def check_identity(folder: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise a FeatureError, with what differs, unless a store in `folder` has the expected identity."""
    different = differences(json.loads(json.dumps(found)), json.loads(json.dumps(expected)))
    if different:
        raise FeatureError(
            f"the feature store {folder} is of something else: {'; '.join(different)}. "
            "Choose another folder, or remove this one"
        )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested dictionaries."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."

"""Facts on which the vectors of a store depend: checksums of weights and data, and the settings between them."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow.compute
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..data.errors import BadItemError
from ..data.files import read_media
from ..data.mixing import ConcatenatedPairs, PairTable, without_media
from ..data.parquet import ParquetPairs
from ..models.text_format import text_prefix

# Fields of configs that do not change the vectors of a tower in evaluation mode.
_NO_EFFECT = frozenset(
    (
        *("transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id", "use_cache"),
        *("output_attentions", "output_hidden_states", "return_dict", "problem_type", "processor_class"),
        *("image_processor_type", "feature_extractor_type", "initializer_range", "initializer_factor"),
    )
)
# Maximum size in bytes of media whose whole contents are read for the checksum, which takes seconds. For larger data,
# the checksum covers the contents of some items and the sizes of all.
_READ_WHOLE_BYTES = 2**30
_SAMPLED_MEDIA = 64
_ROWS_AT_ONCE = 256
_ZIP_SCHEME, _TAR_SCHEME = "zip://", "tar://"


def weights_checksum(module: nn.Module) -> str:
    """SHA-256 of the names, shapes, precisions and numbers of a module's parameters and saved buffers.

    Matrices in bfloat16 beside other weights in float32, as `--frozen_dtype` keeps them, count as float32: the model is
    released so, with the same numbers.
    """
    digest = hashlib.sha256()
    tensors = module.state_dict()
    is_mixed = {torch.bfloat16, torch.float32} <= {tensor.dtype for tensor in tensors.values()}
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.float() if is_mixed and tensor.dtype == torch.bfloat16 else tensor
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()


def config_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a tower's config that can change its vectors; dropout does not in evaluation mode."""
    return _plain(config.to_dict())


def processor_fields(part: Any) -> dict[str, Any]:
    """Class and settings of an image processor or feature extractor."""
    fields = _plain(part.to_dict())
    # Names of filters that a feature extractor computes from its other settings.
    fields = {name: value for name, value in fields.items() if not name.startswith("mel_filters")}
    return {"class": type(part).__name__, **fields}


def tokenizer_fields(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Class and checksum of a tokenizer, whatever the length and padding of its last call were."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        contents = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    else:
        contents = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
    contents = contents | {"sides": [tokenizer.padding_side, tokenizer.truncation_side]}
    if text_prefix(tokenizer):
        contents |= {"text_prefix": text_prefix(tokenizer)}
    text = json.dumps(contents, sort_keys=True, default=str)
    return {"class": type(tokenizer).__name__, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def data_fields(table: PairTable, side: str) -> dict[str, Any]:
    """Number of rows, and checksums of the ids and of the contents of one side, in order.

    All captions count. Of pictures and sounds all bytes count where they are 1 GiB or less. Of more, the size of each
    counts (of a member of a zip archive also its check number), and the bytes of 64 of them, spread evenly. Of parquet
    files that are read in place and are larger or remote, what `ParquetPairs.media_marks` says.
    """
    if isinstance(table, ConcatenatedPairs):
        parts = {name: data_fields(part, side) for name, part in zip(table.names, table.tables, strict=True)}
        return {"rows": len(table), "parts": parts}
    if isinstance(table, ParquetPairs):  # the table is read in place, and its rows may be on a server
        marks = _text_marks(table) if side == "text" else _parquet_media_marks(table, side)
        return {"rows": len(table), f"{side}_sha256": _checksum(marks)}
    ids, texts = hashlib.sha256(), hashlib.sha256()
    for batch in without_media(table).iter(batch_size=_ROWS_AT_ONCE):
        ids.update(json.dumps(batch["id"]).encode())
        texts.update(json.dumps(batch["text"], ensure_ascii=False, default=repr).encode())
    contents = texts.hexdigest() if side == "text" else _checksum(_media_marks(table, side))
    return {"rows": len(table), "ids_sha256": ids.hexdigest(), f"{side}_sha256": contents}


def _text_marks(table: ParquetPairs) -> Iterator[str]:
    """A line for each row: its id and captions."""
    rows = table.without_media()
    for row_id, text in zip(rows["id"], rows["text"], strict=True):
        yield json.dumps([row_id, text], ensure_ascii=False, default=repr)


def _parquet_media_marks(table: ParquetPairs, side: str) -> Iterator[str]:
    size = table.num_bytes()
    if size is not None:
        yield from table["id"]
    if size is not None and size <= _READ_WHOLE_BYTES:
        yield from map(_content_mark, table[side])
    else:
        yield from table.media_marks(_SAMPLED_MEDIA)


def short_name(identity: dict[str, Any], dtype: str) -> str:
    """A folder name for a store: the side, and 12 digits of the checksum of its identity."""
    identity = {**identity, "data": {name: value for name, value in identity["data"].items() if name != "source"}}
    return f"{identity['side']}-{_checksum([json.dumps(identity, sort_keys=True), dtype])[:12]}"


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """JSON values only, without names that have no effect."""
    kept = {
        name: value
        for name, value in fields.items()
        if name not in _NO_EFFECT and not name.startswith("_") and "drop" not in name
    }
    return json.loads(json.dumps(kept, sort_keys=True, default=_as_list))


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic | torch.Tensor) else str(value)


def _checksum(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


def _media_marks(table: Dataset, side: str) -> Iterator[str]:
    """A line for each picture or sound: its size; then the checksums of all of them, or of a sample."""
    media = table.select_columns([side]).with_format("arrow")
    total = 0
    for batch in media.iter(batch_size=_ROWS_AT_ONCE):
        cells = batch.column(side).combine_chunks()
        names = [field.name for field in cells.type]
        lengths = [None] * len(cells)
        if "bytes" in names:
            lengths = pyarrow.compute.binary_length(cells.field("bytes")).to_pylist()
        for length, path in zip(lengths, cells.field("path").to_pylist(), strict=True):
            mark = _size_mark(path) if length is None else str(length)
            size = mark.split(" ")[0]
            total += int(size) if size.isdigit() else 0
            yield mark
    rows = np.arange(len(table))
    if total > _READ_WHOLE_BYTES:
        rows = np.unique(np.linspace(0, len(table) - 1, _SAMPLED_MEDIA).astype(int))
    for row in rows.tolist():
        yield _content_mark(table[row][side])


def _size_mark(path: str | None) -> str:
    """Facts about a file that are known without reading it; its place does not count."""
    if path is None:
        return "none"
    if path.startswith(_ZIP_SCHEME):
        member, archive = path.removeprefix(_ZIP_SCHEME).split("::")
        return _zip_marks(archive).get(member, "missing")
    if path.startswith(_TAR_SCHEME):
        return path.removeprefix(_TAR_SCHEME).split("::")[0]
    if "://" in path:
        return path
    try:
        return str(os.stat(path).st_size)
    except OSError:
        return "missing"


@lru_cache(maxsize=8)
def _zip_marks(archive: str) -> dict[str, str]:
    """Size and check number of each member of a zip archive."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return {info.filename: f"{info.file_size} {info.CRC}" for info in opened.infolist()}
    except (OSError, zipfile.BadZipFile):
        return {}


def _content_mark(cell: dict[str, Any] | None) -> str:
    if cell is not None and cell.get("bytes") is None and "://" in (cell.get("path") or ""):
        path = cell["path"]
        if not path.startswith((_ZIP_SCHEME, _TAR_SCHEME)):
            return path  # the sound is made from its address, or is on a server
    try:
        return hashlib.sha256(read_media(cell)).hexdigest()
    except BadItemError as error:
        return error.reason

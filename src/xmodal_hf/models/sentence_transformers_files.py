"""The files by which sentence-transformers (5.4 and later) loads a checkpoint of ours where it lies."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Class names by which every version of sentence-transformers finds its modules.
_MODULES = "sentence_transformers.models"
_GENERAL = "config_sentence_transformers.json"


def write_json(path: Path, content: Any) -> None:
    """Write JSON as the files of the Hub have it, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_modules(folder: Path, modules: Mapping[str, str], prefix: str = "") -> None:
    """Write `modules.json` (subfolder -> class name, in order; "" is the folder itself) and the similarity, cosine.

    A prefix is the default prompt: sentence-transformers puts it before each text.
    """
    rows = [
        {"idx": index, "name": str(index), "path": path, "type": f"{_MODULES}.{name}"}
        for index, (path, name) in enumerate(modules.items())
    ]
    write_json(folder / "modules.json", rows)
    write_json(
        folder / _GENERAL, {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"} | _prompts(prefix)
    )


def write_prefix(folder: Path, prefix: str) -> None:
    """Make a prefix the default prompt of a folder that sentence-transformers loads; other folders stay as they are."""
    path = folder / _GENERAL
    if path.is_file():
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | _prompts(prefix))


def _prompts(prefix: str) -> dict[str, Any]:
    if not prefix:
        return {"prompts": {}}
    return {"prompts": {"text": prefix}, "default_prompt_name": "text"}


def vector_settings(method_of: Mapping[str, str]) -> dict[str, Any]:
    """Have the Transformer module take the `pooler_output` of a method as the vector.

    Args:
        method_of: Dictionary from modality (`text`, `image`, `audio`) to the name of the model's method.
    """
    return {
        "transformer_task": "feature-extraction",
        "modality_config": {
            modality: {"method": method, "method_output_name": "pooler_output"}
            for modality, method in method_of.items()
        },
        "module_output_name": "sentence_embedding",
    }


def padding_settings(pads_to_max_length: bool, with_mask: bool = True) -> dict[str, Any]:
    """Have the Transformer module pad every text to the tokenizer's `model_max_length`; by default it pads a batch.

    Args:
        pads_to_max_length: Whether texts are padded to a fixed length, as SigLIP's are.
        with_mask: Whether the tower gets the tokenizer's mask, if there is one; SigLIP's towers never do.
    """
    text: dict[str, Any] = {"padding": "max_length"} if pads_to_max_length else {}
    if not with_mask:
        text["return_attention_mask"] = False
    return {"processing_kwargs": {"text": text}} if text else {}


def write_sentence_transformers_files(
    folder: Path,
    method_of: Mapping[str, str],
    pads_to_max_length: bool = False,
    with_mask: bool = True,
    prefix: str = "",
) -> None:
    """Make `SentenceTransformer(folder)` return the unit-norm vectors of a checkpoint of ours.

    Args:
        folder: Folder of the checkpoint.
        method_of: Dictionary from modality (`text`, `image`, `audio`) to the model's method whose `pooler_output` is
            the vector.
        pads_to_max_length: Whether texts are padded to a fixed length, as SigLIP's are.
        with_mask: Whether the tower gets the tokenizer's mask, if there is one; SigLIP's towers never do.
        prefix: Instruction before each text; empty for most.
    """
    settings = vector_settings(method_of) | padding_settings(pads_to_max_length, with_mask)
    write_json(folder / "sentence_bert_config.json", settings)
    write_json(folder / "1_Normalize" / "config.json", {})
    write_modules(folder, {"": "Transformer", "1_Normalize": "Normalize"}, prefix)

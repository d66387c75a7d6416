"""Docstrings: the examples give what they say, and descriptions of arguments begin with a noun phrase."""

import ast
import doctest
import importlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import xmodal_hf

SOURCES = Path(xmodal_hf.__file__).parent
REPOSITORY = Path(__file__).parents[1]
# copied into repositories, where other packages are
NOT_IMPORTED = {"hub/templates", "training_scripts"}
# What the description of an argument cannot begin with, if it says first what the argument is.
NOT_NOUNS = {
    *("of", "as", "in", "on", "by", "for", "from", "to", "with", "without", "at", "what", "whose", "where", "when"),
    *("which", "that", "likewise", "also", "keep", "give", "get", "take", "draw", "make"),
}
ARGUMENT = re.compile(r"(?P<indent> +)(?P<names>[*\w]+(, [*\w]+)*): (?P<text>\S.*)")


def _modules_with_examples():
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES)
        if ">>> " in path.read_text() and not any(name.as_posix().startswith(folder) for folder in NOT_IMPORTED):
            yield ".".join(("xmodal_hf", *name.with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("name", _modules_with_examples())
def test_examples(name, image_text_model, image_text_processor, tokenizer, tmp_path, monkeypatch):
    """Examples may write into the current folder, and use np, torch, and a tiny `model` with its `processor`."""
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    names = {"np": np, "torch": torch, "tokenizer": tokenizer}
    names |= {"model": image_text_model, "processor": image_text_processor}
    failures, _ = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert failures == 0


def _docstrings():
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node):
                yield f"{path.relative_to(SOURCES)}:{node.lineno} {node.name}", ast.get_docstring(node)


def _argument_descriptions(docstring):
    """Yield the names and the first line of the description of each entry below `Args:`."""
    _, found, rest = docstring.partition("\nArgs:\n")
    if found:
        for line in re.split(r"\n\s*\n|\n(?=\S)", rest)[0].splitlines():
            match = ARGUMENT.fullmatch(line)
            if match and len(match["indent"]) == 4:
                yield match["names"], match["text"]


def test_descriptions_of_arguments_begin_with_what_they_are():
    described = [
        (f"{place}, {names}", text)
        for place, docstring in _docstrings()
        for names, text in _argument_descriptions(docstring)
    ]
    wrong = {place: text for place, text in described if text[0] == "(" or text.split()[0].lower() in NOT_NOUNS}
    assert len(described) > 500 and not wrong


# Names that programs outside the package import.
PUBLIC = {
    "xmodal_hf": "ImageTextConfig ImageTextDualEncoder ImageTextProcessor AudioTextConfig AudioTextDualEncoder "
    "AudioTextProcessor SentenceEncoderConfig SentenceEncoder LogMelFeatureExtractor",
    "xmodal_hf.losses": "Loss SentenceLoss Weight clip_loss clip_loss_with_accuracy cyclic_losses info_nce "
    "info_nce_with_accuracy sigmoid_loss sigmoid_loss_with_accuracy simcse_loss simcse_loss_with_accuracy",
    "xmodal_hf.evaluation": "Task alignment as_embedder class_embeddings effective_rank embed_pairs "
    "evaluate_compositionality evaluate_representation evaluate_retrieval evaluate_sts evaluate_transfer "
    "evaluate_winoground evaluate_zero_shot k_occurrence_skewness modality_gap retrieval_ranks uniformity",
    "xmodal_hf.features": "FeatureStore",
    "xmodal_hf.data.sources": "load_pairs",
    "xmodal_hf.data.audio": "decode_audio",
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in PUBLIC for name in PUBLIC[module].split()])
def test_public_names_have_an_example(module, name):
    assert ">>> " in getattr(importlib.import_module(module), name).__doc__

"""Docstrings: the examples give what they say, and descriptions begin with a noun phrase or a condition."""

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
ENTRY = re.compile(r"(?P<indent> +)(?P<names>[*\w.]+(, [*\w]+)*): (?P<text>\S.*)")
CONDITION = re.compile("If |In |With |After |For the same reasons as |Whatever |Always[.]")


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


def _descriptions(section):
    """Return the first line of each description in a section of all docstrings, by its place."""
    return {
        f"{place}, {match['names']}": match["text"]
        for place, docstring in _docstrings()
        for line in re.split(r"\n\s*\n|\n(?=\S)", docstring.partition(f"\n{section}:\n")[2])[0].splitlines()
        if (match := ENTRY.fullmatch(line)) and len(match["indent"]) == 4
    }


@pytest.mark.parametrize(("section", "least"), [("Args", 500), ("Attributes", 100)])
def test_descriptions_begin_with_what_they_are(section, least):
    described = _descriptions(section)
    assert len(described) > least
    assert not {
        place: text
        for place, text in described.items()
        if text[0] == "(" or text[0].islower() or text.split()[0].lower() in NOT_NOUNS
    }


def test_descriptions_of_errors_begin_with_their_condition():
    described = _descriptions("Raises")
    assert len(described) > 250 and not {place: text for place, text in described.items() if not CONDITION.match(text)}


# Names that programs outside the package import.
PUBLIC = {
    "xmodal_hf": "ImageTextConfig ImageTextDualEncoder ImageTextProcessor AudioTextConfig AudioTextDualEncoder "
    "AudioTextProcessor SentenceEncoderConfig SentenceEncoder LogMelFeatureExtractor",
    "xmodal_hf.losses": "Loss SentenceLoss Weight clip_loss clip_loss_with_accuracy cyclic_losses info_nce "
    "info_nce_with_accuracy sigmoid_loss sigmoid_loss_with_accuracy simcse_loss simcse_loss_with_accuracy",
    "xmodal_hf.evaluation": "Task alignment as_embedder class_embeddings effective_rank embed_pairs "
    "evaluate_compositionality evaluate_representation evaluate_retrieval evaluate_sts evaluate_transfer "
    "evaluate_winoground evaluate_zero_shot Embedder "
    "load_sts load_transfer k_occurrence_skewness modality_gap retrieval_ranks uniformity",
    "xmodal_hf.evaluation.loading": "load_embedder",
    "xmodal_hf.evaluation.search": "Gallery Search",
    "xmodal_hf.features": "FeatureStore extract",
    "xmodal_hf.data.sources": "load_pairs",
    "xmodal_hf.data.audio": "decode_audio",
    "xmodal_hf.data.sampling": "PairDataset",
    "xmodal_hf.data.sentences": "load_paraphrases load_sentences load_triplets",
    "xmodal_hf.data.collators": "PairCollator",
    "xmodal_hf.data.composition": "load_composition",
    "xmodal_hf.objectives": "CrossModalObjective JointObjective SentenceObjective",
    "xmodal_hf.training.grad_cache": "cached_backward",
    "xmodal_hf.models.conversion": "from_transformers load_dual_encoder load_dual_processor to_clap to_clip",
    "xmodal_hf.hub.publish": "push_folder",
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in PUBLIC for name in PUBLIC[module].split()])
def test_public_names_have_an_example(module, name):
    documentation = getattr(importlib.import_module(module), name).__doc__
    assert ">>> " in documentation and "+SKIP" not in documentation

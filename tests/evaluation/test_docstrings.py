"""The examples in the docstrings give what they say."""

import doctest
import importlib

import numpy as np
import pytest

EVALUATION = ["prompts", "representation", "retrieval", "sts", "zero_shot"]


@pytest.mark.parametrize("name", [*(f"evaluation.{name}" for name in EVALUATION), "models.text_tower"])
def test_examples(name):
    module = importlib.import_module(f"xmodal_hf.{name}")
    failures, tried = doctest.testmod(module, extraglobs={"np": np})
    assert failures == 0 and tried > 0

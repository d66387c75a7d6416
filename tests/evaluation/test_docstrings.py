"""The examples in the docstrings give what they say."""

import doctest
import importlib

import numpy as np
import pytest


@pytest.mark.parametrize("name", ["embed", "prompts", "representation", "retrieval", "sts", "zero_shot"])
def test_examples(name):
    module = importlib.import_module(f"xmodal_hf.evaluation.{name}")
    failures, tried = doctest.testmod(module, extraglobs={"np": np})
    assert failures == 0 and tried > 0

"""The tables of docs/methods.md are those of the results file, and attributes are replaced by others of their kind."""

import importlib.util
import json
import random
from pathlib import Path

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("methods", ROOT / "benchmarks" / "methods.py")
methods = importlib.util.module_from_spec(spec)
spec.loader.exec_module(methods)


def test_the_document_has_the_tables_of_the_results():
    results = json.loads((ROOT / "benchmarks" / "results" / "methods.json").read_text(encoding="utf-8"))
    assert results["mean_and_deviation"] == methods.summary(results["runs"])
    assert methods.tables(results["mean_and_deviation"]) in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_one_attribute_is_replaced():
    found = methods.with_other_attribute("A man in a red shirt .", random.Random(0))
    assert found in {"A woman in a red shirt .", *(f"A man in a {c} shirt ." for c in methods.REPLACED["red"])}
    assert methods.with_other_attribute("rain", random.Random(0)) is None

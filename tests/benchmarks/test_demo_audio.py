"""The comparison of the demo on sounds is of the same clips, and its table is that of the results file."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("demo_audio", ROOT / "benchmarks" / "demo_audio.py")
demo_audio = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo_audio)
PUBLISHED = json.loads((ROOT / "model_cards" / "soundfont-demo" / "results.json").read_text(encoding="utf-8"))
COMPARED = json.loads((ROOT / "benchmarks" / "results" / "demo_audio.json").read_text(encoding="utf-8"))


def write(folder: Path, results: dict) -> str:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    return str(folder)


def test_table_of_the_tutorial():
    page = (ROOT / "docs" / "tutorials" / "audio.md").read_text(encoding="utf-8")
    assert demo_audio.table(COMPARED) in page
    assert f"On the same {COMPARED['num_held_out']} held-out sounds" in page


def test_the_card_has_the_compared_model():
    assert demo_audio.compare({"pretrained": PUBLISHED})["pretrained"] == COMPARED["pretrained"]


def test_numbers_come_from_the_results_of_both(tmp_path):
    other = copy.deepcopy(PUBLISHED)
    other["retrieval_after"]["audio_to_text_recall@10"] = 12.5
    folders = ["--pretrained", write(tmp_path / "a", PUBLISHED), "--from_scratch", write(tmp_path / "b", other)]
    demo_audio.main([*folders, "--output", str(tmp_path / "both.json")])
    results = json.loads((tmp_path / "both.json").read_text())
    assert results["pretrained"] == COMPARED["pretrained"]
    assert results["from_scratch"]["retrieval"]["audio_to_text_recall@10"] == 12.5
    assert demo_audio.table(results).splitlines()[3].split(" | ")[4] == "12.50"


@pytest.mark.parametrize(("key", "value"), [("num_held_out", 40), ("seed", 1)])
def test_other_clips_or_seeds_are_not_compared(tmp_path, key, value):
    other = PUBLISHED | {"meta": PUBLISHED["meta"] | {key: value}}
    folders = ["--pretrained", write(tmp_path / "a", PUBLISHED), "--from_scratch", write(tmp_path / "b", other)]
    with pytest.raises(ValueError, match="were not measured alike"):
        demo_audio.main([*folders, "--output", str(tmp_path / "both.json")])
    assert not (tmp_path / "both.json").exists()

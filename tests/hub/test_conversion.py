"""The conversion script on models that are on the Hub, those of transformers and those of open_clip."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor
from xmodal_hf.hub.publish import push_folder

SCRIPT = Path(__file__).parents[2] / "training_scripts" / "convert_checkpoint.py"


@pytest.fixture
def clip(text_config: Callable, image_config: Callable) -> CLIPModel:
    """A CLIPModel with heads 64 wide, as open_clip's are."""
    sizes = {"hidden_size": 64, "num_attention_heads": 1}
    parts = {"text_config": text_config("clip_text", **sizes), "vision_config": image_config("clip_vision", **sizes)}
    return CLIPModel(CLIPConfig(**{name: part.to_dict() for name, part in parts.items()}, projection_dim=16)).eval()


def test_a_clip_by_its_id(
    client: Any, run_script: Callable, clip: CLIPModel, tokenizer: Any, images: list, tmp_path: Path
) -> None:
    size = {"height": 16, "width": 16}
    clip.save_pretrained(tmp_path / "clip")
    processor = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size), tokenizer)
    processor.save_pretrained(tmp_path / "clip")
    push_folder(tmp_path / "clip", "someone/clip")
    done = run_script(SCRIPT, "--model", "someone/clip", "--output_dir", tmp_path / "ours")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "someone/clip -> ImageTextDualEncoder" in done.stdout
    ours, its_processor = AutoModel.from_pretrained(tmp_path / "ours"), AutoProcessor.from_pretrained(tmp_path / "ours")
    assert (type(ours), type(its_processor)) == (ImageTextDualEncoder, ImageTextProcessor)
    inputs = its_processor(text=["rain", "the dog barks"], images=images, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits_per_image, clip(**inputs).logits_per_image, atol=1e-5, rtol=0)


def test_an_open_clip_by_its_id(client: Any, run_script: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "open_clip"
    folder.mkdir()
    save_file({"unlike": torch.zeros(1)}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": {}, "text_cfg": {}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    push_folder(folder, "someone/open_clip")
    done = run_script(SCRIPT, "--model", "someone/open_clip", "--output_dir", tmp_path / "ours")
    # Found and read; the weights are none of its layout.
    assert done.returncode == 2 and "do not have the layout of open_clip or OpenAI's CLIP" in done.stderr
    done = run_script(SCRIPT, "--model", "someone/nothing", "--output_dir", tmp_path / "ours")
    assert (
        done.returncode == 2
        and "neither a file or folder someone/nothing nor a model" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert not (tmp_path / "ours").exists()

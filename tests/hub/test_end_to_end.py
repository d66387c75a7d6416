"""From a checkpoint over the Hub to somebody who has nothing but transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor

REPO = "someone/model"
TEXTS = ["rain", "the dog barks at night"]
SCRIPT = Path(__file__).parents[2] / "training_scripts" / "publish_model.py"
PULL = """
import numpy as np
from transformers import AutoModel, AutoProcessor
options = {{"trust_remote_code": True, "revision": "v1.0"}}
model = AutoModel.from_pretrained({repo!r}, **options)
processor = AutoProcessor.from_pretrained({repo!r}, **options)
with torch.no_grad():
    embeds = model(**processor(text={texts!r}, return_tensors="pt")).text_embeds
np.save({path!r}, embeds.numpy())
"""


@pytest.mark.slow
def test_pushed_by_the_script_and_pulled_by_a_stranger(
    hub: Any,
    run_script: Callable,
    tmp_path: Path,
    image_text_folder: Path,
    image_text_model: ImageTextDualEncoder,
    image_text_processor: ImageTextProcessor,
    run_with_only: Callable,
) -> None:
    """In a fresh process with an empty cache, and then in another one with that cache and no Hub."""
    done = run_script(SCRIPT, "--checkpoint", image_text_folder, "--repo_id", REPO, "--private", "--tag", "v1.0")
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = image_text_model(**image_text_processor(text=TEXTS, return_tensors="pt")).text_embeds.numpy()

    packages = ["transformers", "torch", "torchvision", "pillow"]
    path = tmp_path / "embeds.npy"
    code = PULL.format(repo=REPO, texts=TEXTS, path=str(path))
    home = {"HF_HOME": str(tmp_path / "stranger"), "HF_HUB_DISABLE_XET": "1", "HF_ENDPOINT": hub.url}
    run_with_only(packages, code, **home, HF_HUB_OFFLINE="0", HF_TOKEN=hub.read_token)
    np.testing.assert_array_equal(np.load(path), expected)  # to the bit
    assert any("/resolve/" in route for _, route, _ in hub.requests)

    hub.requests.clear()
    path.unlink()
    run_with_only(packages, code, **home, HF_HUB_OFFLINE="1")
    np.testing.assert_array_equal(np.load(path), expected)
    assert hub.requests == []

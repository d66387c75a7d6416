"""Towers from packages give what their own packages give, and are folders as any other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from xmodal_hf import AudioTextProcessor, ImageTextDualEncoder, ImageTextProcessor
from xmodal_hf.evaluation import as_embedder
from xmodal_hf.hub.packaged_towers import PACKAGED_TOWERS, prepare_towers
from xmodal_hf.training.arguments import ContrastiveArguments
from xmodal_hf.training.building import build_processor

CHOSEN = {"image": {"image_size": 64}, "text": {}, "audio": {"max_length_s": 3.0}}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    for tower in PACKAGED_TOWERS.values():
        pytest.importorskip(tower.module, reason=f"{tower.package} is not installed")
    pytest.importorskip("timm", reason="EfficientNet-Lite0 runs in timm")
    return prepare_towers(tmp_path_factory.mktemp("towers"), CHOSEN)


@torch.no_grad()
def test_the_image_tower_is_that_of_its_package(towers: dict[str, Path]) -> None:
    library = pytest.importorskip("efficientnet_lite_pytorch", reason="compares with its own architecture")
    theirs = library.EfficientNet.from_name("efficientnet-lite0").eval()
    theirs.load_state_dict(torch.load(PACKAGED_TOWERS["image"].path, weights_only=True))
    pixels = torch.randn(2, 3, 96, 64)
    expected = theirs.extract_features(pixels).mean(dim=(2, 3))
    found = AutoModel.from_pretrained(towers["image"])(pixels).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.shape == (2, 1280) and found.std() > 0.05


@torch.no_grad()
def test_the_audio_tower_is_that_of_its_package(towers: dict[str, Path], tokenizer) -> None:
    from aisfx.inference import get_path_modelWeights, model_get_embedding
    from aisfx.models.cnn2d import EmbeddingNet

    theirs = EmbeddingNet("max", 3, 1, 64).eval()
    theirs.get_embedding = theirs.forward
    assert get_path_modelWeights() == str(PACKAGED_TOWERS["audio"].path)
    own = AutoModel.from_pretrained(towers["audio"])
    weights = own.state_dict()
    renamed = {name: f"blocks.{int(name[10]) - 1}{name[11:]}" for name in theirs.state_dict()}  # conv_block1.conv1...
    theirs.load_state_dict({name: weights[ours] for name, ours in renamed.items()})
    processor = build_processor(ContrastiveArguments(audio_model=str(towers["audio"])), "audio", lambda: tokenizer)
    assert isinstance(processor, AudioTextProcessor) and processor.feature_extractor.max_length_s == 3.0
    clip = np.random.default_rng(0).normal(size=3 * 44_100).astype(np.float32)
    features = processor.feature_extractor(clip, sampling_rate=44_100, return_tensors="pt")["input_features"]
    expected = model_get_embedding(features[0, 0].numpy(), 0.5, True, theirs, "cpu")  # (blocks, 512)
    torch.testing.assert_close(own(features).last_hidden_state[0], expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.05


@torch.no_grad()
def test_the_text_tower_is_that_of_its_package(towers: dict[str, Path]) -> None:
    texts = ["a dog barks", "the man who plays a guitar is asleep"]
    vectors = []
    for folder in (towers["text"], PACKAGED_TOWERS["text"].path):
        inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        vectors.append(AutoModel.from_pretrained(folder)(**inputs).last_hidden_state)
    assert torch.equal(*vectors)


def test_they_make_a_model_that_is_saved_and_loaded(towers: dict[str, Path], tmp_path: Path) -> None:
    model = ImageTextDualEncoder.from_text_image_pretrained(str(towers["text"]), str(towers["image"]))
    assert (model.config.text_pooling, model.config.image_pooling) == ("mean", "pooler")
    tokenizer = AutoTokenizer.from_pretrained(towers["text"])
    arguments = ContrastiveArguments(image_model=str(towers["image"]))
    processor = build_processor(arguments, "image", lambda: tokenizer)
    assert isinstance(processor, ImageTextProcessor)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8))
    expected = as_embedder(model.eval(), processor).encode_image([picture])
    found = as_embedder(AutoModel.from_pretrained(tmp_path)).encode_image([picture])
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cards_name_package_checksum_and_licence(towers: dict[str, Path]) -> None:
    for modality, licence in {"image": "apache-2.0", "text": "apache-2.0", "audio": "cc-by-4.0"}.items():
        card = (towers[modality] / "README.md").read_text(encoding="utf-8")
        assert f"license: {licence}\n" in card and f"`--{modality}_model <this folder>`" in card
        assert f"`{PACKAGED_TOWERS[modality].package}`" in card and "SHA-256 " in card


def test_what_is_there_is_kept_or_refused(towers: dict[str, Path]) -> None:
    folder = towers["image"].parent
    before = (folder / "image" / "model.safetensors").stat().st_mtime_ns
    assert prepare_towers(folder, {"image": CHOSEN["image"]}) == {"image": towers["image"]}
    assert (folder / "image" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="with other options: remove it"):
        prepare_towers(folder, {"image": {"image_size": 96}})


def test_a_folder_of_something_else_is_left_alone(towers: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    with pytest.raises(ValueError, match=r"audio is no tower of this command, which writes README\.md"):
        prepare_towers(tmp_path, {"audio": {}})
    assert not [*(tmp_path / "audio").iterdir()]


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("xmodal_hf.hub.packaged_towers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="that is not installed: pip install --no-deps aisfx"):
        prepare_towers(tmp_path, {"audio": {}})
    assert not list(tmp_path.iterdir())

"""What transformers' own `save_pretrained` and `push_to_hub` write loads where this package is not installed."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, PreTrainedTokenizerBase

from xmodal_hf import (
    AudioTextDualEncoder,
    AudioTextProcessor,
    ImageTextDualEncoder,
    ImageTextProcessor,
    LogMelFeatureExtractor,
    SentenceEncoder,
)
from xmodal_hf.hub.remote_code import AUTO_MAPS, required_modules

TEXTS = ["rain", "the dog barks at night"]
KINDS = ("image", "audio", "sentence", "extractor")


@pytest.fixture
def extractor() -> LogMelFeatureExtractor:
    """Our own extractor, in the shape that the tiny spectrogram transformer takes."""
    return LogMelFeatureExtractor.from_preset(
        "ast",
        sampling_rate=8000,
        feature_size=16,
        num_frames=32,
        hop_length=80,
        fft_window_size=200,
        frequency_max=4000.0,
    )


@pytest.fixture
def parts(
    image_text_model: ImageTextDualEncoder,
    image_text_processor: ImageTextProcessor,
    make_audio_text: Callable,
    sentence_encoder: SentenceEncoder,
    tokenizer: PreTrainedTokenizerBase,
    extractor: LogMelFeatureExtractor,
) -> dict[str, list[Any]]:
    """What a user saves or pushes, by kind: a model with its processor, or an extractor alone."""
    return {
        "image": [image_text_model, image_text_processor],
        "audio": [make_audio_text("bert", "ast"), AudioTextProcessor(extractor, tokenizer)],
        "sentence": [sentence_encoder, tokenizer],
        "extractor": [copy.deepcopy(extractor)],
    }


@pytest.fixture
def folders(parts: dict[str, list[Any]], tmp_path: Path) -> dict[str, Path]:
    """Each kind saved with `save_pretrained`."""
    for kind, objects in parts.items():
        for item in objects:
            item.save_pretrained(tmp_path / kind)
    return {kind: tmp_path / kind for kind in parts}


def metadata(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_a_saved_folder_names_its_classes_and_has_their_code(folders: dict[str, Path]) -> None:
    for kind in ("image", "audio", "sentence"):
        config = json.loads((folders[kind] / "config.json").read_text())
        expected = {name: target for name, target in AUTO_MAPS[config["model_type"]].items() if name != "AutoProcessor"}
        assert config["auto_map"] == expected
    for kind, name in (("image", "processor_config.json"), ("audio", "processor_config.json")):
        found = json.loads((folders[kind] / name).read_text())["auto_map"]
        assert found == {"AutoProcessor": f"processing_dual_encoder.{kind.capitalize()}TextProcessor"}
    found = json.loads((folders["extractor"] / "preprocessor_config.json").read_text())["auto_map"]
    assert found == {"AutoFeatureExtractor": "feature_extraction_log_mel.LogMelFeatureExtractor"}
    modules = required_modules({"modeling_dual_encoder", "processing_dual_encoder", "feature_extraction_log_mel"})
    assert {path.stem for path in folders["audio"].glob("*.py")} == modules
    assert {path.stem for path in folders["extractor"].glob("*.py")} == {"feature_extraction_log_mel"}


def test_with_the_package_its_classes_load_what_was_saved(folders: dict[str, Path]) -> None:
    classes = {"image": ImageTextDualEncoder, "audio": AudioTextDualEncoder, "sentence": SentenceEncoder}
    for trust in ({}, {"trust_remote_code": True}):
        for kind, model_class in classes.items():
            assert type(AutoModel.from_pretrained(folders[kind], **trust)) is model_class
        assert type(AutoProcessor.from_pretrained(folders["image"], **trust)) is ImageTextProcessor
        assert type(AutoFeatureExtractor.from_pretrained(folders["extractor"], **trust)) is LogMelFeatureExtractor


def test_saved_again_the_same_comes_out(folders: dict[str, Path], tmp_path: Path) -> None:
    AutoModel.from_pretrained(folders["image"]).save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(folders["image"]).save_pretrained(tmp_path / "again")
    for path in folders["image"].iterdir():
        if path.name == "tokenizer_config.json":  # transformers notes there whether the tokenizer came from a folder
            continue
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_card_with_valid_metadata_comes_along(folders: dict[str, Path], parts: dict, loopback: Any) -> None:
    for kind, tag in (("image", "clip"), ("audio", "clap"), ("sentence", "sentence-transformers")):
        path = folders[kind] / "README.md"
        found = metadata(path.read_text())
        assert loopback.metadata_errors(found) == []
        assert found["library_name"] == "transformers" and {"xmodal_hf", "custom_code", tag} <= set(found["tags"])
        path.write_text("my own card\n")
        parts[kind][0].save_pretrained(folders[kind])
        assert path.read_text() == "my own card\n"


@pytest.mark.parametrize("processor_first", [False, True])
def test_a_pushed_card_fits(processor_first: bool, client: Any, loopback: Any, parts: dict) -> None:
    for item in sorted(parts["audio"], key=lambda item: isinstance(item, AudioTextProcessor) != processor_first):
        item.push_to_hub("someone/sounds", tags=["drums"])
    files = client.repos["model", "someone/sounds"].files
    text = files["README.md"].content.decode()
    assert loopback.metadata_errors(metadata(text)) == []
    assert metadata(text)["tags"] == ["xmodal_hf", "custom_code", "clap", "audio", "drums"]
    assert '"someone/sounds"' in text and "automatically generated" not in text
    assert {"model.safetensors", "modeling_dual_encoder.py", "feature_extraction_log_mel.py"} <= files.keys()


def test_a_card_that_somebody_wrote_stays(client: Any, loopback: Any, parts: dict) -> None:
    model, processor = parts["image"]
    model.push_to_hub("someone/mine")
    repo = client.repos["model", "someone/mine"]
    card = loopback.File(b"---\nlicense: mit\ntags: []\n---\n\n# Mine\n", False)
    repo.add("main", "card", repo.files | {"README.md": card})
    processor.push_to_hub("someone/mine")
    model.push_to_hub("someone/mine")
    assert "# Mine" in repo.files["README.md"].content.decode()
    assert metadata(repo.files["README.md"].content.decode())["license"] == "mit"


def test_saving_and_pushing_in_one_call(client: Any, parts: dict, tmp_path: Path) -> None:
    parts["sentence"][0].save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="someone/sentences")
    names = client.repos["model", "someone/sentences"].files.keys()
    assert {"modules.json", "1_Normalize/config.json", "README.md", "modeling_sentence_encoder.py"} <= names


# Loads everything, from folders and from the Hub, and keeps what it computes.
STRANGER = """
import numpy as np
from PIL import Image
from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, AutoTokenizer, pipeline
data, trust = np.load({path!r} + "/inputs.npz"), {{"trust_remote_code": True}}
texts, clips = {texts!r}, list(data["clips"])
images = [Image.fromarray(image) for image in data["images"]]
found = {{}}
for way, place in {places!r}.items():
    image, audio = (AutoModel.from_pretrained(place + kind, **trust) for kind in ("image", "audio"))
    assert type(image).__module__.startswith("transformers_modules."), type(image)
    inputs = AutoProcessor.from_pretrained(place + "image", **trust)(text=texts, images=images, return_tensors="pt")
    processor = AutoProcessor.from_pretrained(place + "audio", **trust)
    sounds = processor(text=texts, audio=clips, sampling_rate=8000, return_tensors="pt")
    extractor = AutoFeatureExtractor.from_pretrained(place + "extractor", **trust)
    assert type(extractor).__name__ == "LogMelFeatureExtractor"
    with torch.no_grad():
        found[way + "image"] = image(**inputs).logits_per_image.numpy()
        found[way + "audio"] = audio(**sounds).logits_per_audio.numpy()
    found[way + "extractor"] = extractor(clips, sampling_rate=8000, return_tensors="np")["input_features"]
    found[way + "sentence"] = AutoModel.from_pretrained(place + "sentence", **trust).encode(texts).numpy()
    assert AutoTokenizer.from_pretrained(place + "image").model_max_length == 24
classify = pipeline("zero-shot-image-classification", model={places!r}["folder/"] + "image", **trust)
found["pipeline"] = classify(images[:1], candidate_labels=texts)[0][0]["score"]
np.savez({path!r} + "/found.npz", **found)
"""


@pytest.mark.slow
def test_without_the_package(
    client: Any,
    folders: dict[str, Path],
    parts: dict[str, list[Any]],
    images: list[Image.Image],
    clips: list[np.ndarray],
    tmp_path: Path,
    run_with_only: Callable,
) -> None:
    """Of models, processors and the extractor, saved and pushed: the same numbers to the bit."""
    for kind, objects in parts.items():
        for item in objects:
            item.push_to_hub(f"someone/{kind}")
    np.savez(tmp_path / "inputs.npz", images=np.stack([np.asarray(image) for image in images]), clips=np.stack(clips))
    places = {"folder/": f"{tmp_path}/", "hub/": "someone/"}
    code = STRANGER.format(path=str(tmp_path), texts=TEXTS, places=places)
    hub = {"HF_ENDPOINT": client.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": client.read_token}
    run_with_only(["transformers", "torch", "torchvision", "torchaudio", "pillow"], code, **hub)

    (image, images_of), (audio, audio_of), (sentence, _), (extractor,) = parts.values()
    with torch.no_grad():
        logits = image(**images_of(text=TEXTS, images=images, return_tensors="pt")).logits_per_image
        sounds = audio(**audio_of(text=TEXTS, audio=clips, sampling_rate=8000, return_tensors="pt")).logits_per_audio
    sentence._tokenizer = parts["sentence"][1]
    features = extractor(clips, sampling_rate=8000, return_tensors="np")["input_features"]
    expected = dict(zip(KINDS, (logits.numpy(), sounds.numpy(), sentence.encode(TEXTS).numpy(), features), strict=True))
    found = np.load(tmp_path / "found.npz")
    for way in places:
        for kind, value in expected.items():
            np.testing.assert_array_equal(found[way + kind], value, err_msg=way + kind)
            assert np.isfinite(value).all() and np.ptp(value) > 1e-3
    assert 0 < found["pipeline"] < 1

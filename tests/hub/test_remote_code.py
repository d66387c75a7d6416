"""A published folder runs without this package; with the package none of its code does."""

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    PreTrainedTokenizerBase,
    pipeline,
)

from xmodal_hf import (
    AudioTextConfig,
    AudioTextDualEncoder,
    AudioTextProcessor,
    ImageTextDualEncoder,
    ImageTextProcessor,
    LogMelFeatureExtractor,
    SentenceEncoder,
)
from xmodal_hf.hub.arguments import CardArguments
from xmodal_hf.hub.remote_code import AUTO_MAPS, MODELS_FOLDER, foreign_towers, required_modules, write_remote_code
from xmodal_hf.hub.staging import stage_checkpoint
from xmodal_hf.models.configuration_aisfx import AisfxConfig

TEXTS = ["rain", "the dog barks at night"]
# What a user of transformers has, and torchaudio for the audio models.
ALLOWED_IMPORTS = {"torch", "transformers", "huggingface_hub", "numpy", "torchaudio", "tqdm"}


@pytest.fixture
def log_mel_processor(tokenizer: PreTrainedTokenizerBase) -> AudioTextProcessor:
    """Our own extractor, in the shape that the tiny spectrogram transformer takes."""
    extractor = LogMelFeatureExtractor.from_preset(
        "ast",
        sampling_rate=8000,
        feature_size=16,
        num_frames=32,
        hop_length=80,
        fft_window_size=200,
        frequency_max=4000.0,
    )
    return AudioTextProcessor(extractor, tokenizer)


@pytest.fixture
def log_mel_folder(tmp_path: Path, make_audio_text: Callable, log_mel_processor: AudioTextProcessor) -> Path:
    make_audio_text("bert", "ast").save_pretrained(tmp_path)
    log_mel_processor.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("model_type", AUTO_MAPS)
def test_the_code_needs_only_what_transformers_has(model_type: str) -> None:
    modules = required_modules({target.partition(".")[0] for target in AUTO_MAPS[model_type].values()})
    for name in modules:
        source = (MODELS_FOLDER / f"{name}.py").read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level:
                # transformers copies a module's neighbours by their base names.
                assert node.level == 1 and node.module in modules
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [item.name for item in node.names]
                for top in (str(name).partition(".")[0] for name in names):
                    assert top in ALLOWED_IMPORTS or top in sys.stdlib_module_names, (name, top)
        assert "from __future__ import annotations" not in source


def test_towers_that_others_cannot_load(
    image_text_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every family of the documentation is known; a class of somebody's own is said to be unknown."""
    page = (Path(__file__).parents[2] / "docs" / "towers.md").read_text(encoding="utf-8")
    families = re.findall(r"^\| [\w. -]+ \| `([\w-]+)` \| ", page, re.MULTILINE)
    config = {f"{number}_config": {"model_type": family} for number, family in enumerate(families)}
    others = {"image_config": {"model_type": "timm_wrapper"}, "audio_config": {"model_type": "aisfx"}}
    assert len(families) == 18 and foreign_towers(config | others) == {}
    stage_checkpoint(image_text_folder, tmp_path / "known", "someone/model", CardArguments())
    assert caplog.text == ""
    path = image_text_folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["text_config"]["model_type"] = "words"
    path.write_text(json.dumps(content), encoding="utf-8")
    stage_checkpoint(image_text_folder, tmp_path / "staged", "someone/model", CardArguments())
    assert "The text tower is a 'words', a class that transformers does not have" in caplog.text


def test_only_an_audio_model_asks_for_torchaudio(image_text_folder: Path, log_mel_folder: Path) -> None:
    def imports_torchaudio(folder: Path) -> bool:
        return any("torchaudio" in path.read_text(encoding="utf-8") for path in write_remote_code(folder))

    assert not imports_torchaudio(image_text_folder)
    assert imports_torchaudio(log_mel_folder)


def test_an_audio_model_with_another_extractor_asks_for_no_torchaudio(audio_text_folder: Path) -> None:
    names = {path.name for path in write_remote_code(audio_text_folder)}
    assert "processing_dual_encoder.py" in names and "feature_extraction_log_mel.py" not in names


def test_writing_twice_changes_nothing(log_mel_folder: Path) -> None:
    write_remote_code(log_mel_folder)
    first = {path.name: path.read_bytes() for path in log_mel_folder.iterdir()}
    write_remote_code(log_mel_folder)
    assert {path.name: path.read_bytes() for path in log_mel_folder.iterdir()} == first


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no config.json: pass a folder that save_pretrained wrote"),
        ("{", "config.json is not JSON"),
        ('{"model_type": "clip"}', "is of model type 'clip': pass a checkpoint of xmodal_image_text"),
    ],
)
def test_a_folder_of_something_else(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        write_remote_code(tmp_path)


def spoil(folder: Path) -> None:
    """Make every module of a folder one that cannot be run."""
    for path in write_remote_code(folder):
        path.write_text("raise RuntimeError('remote code ran')\n", encoding="utf-8")


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": True}])
def test_with_the_package_no_code_of_a_folder_runs(
    trust: dict, image_text_folder: Path, log_mel_folder: Path, sentence_encoder_folder: Path
) -> None:
    classes = {
        image_text_folder: (ImageTextDualEncoder, ImageTextProcessor),
        log_mel_folder: (AudioTextDualEncoder, AudioTextProcessor),
        sentence_encoder_folder: (SentenceEncoder, None),
    }
    for folder, (model_class, processor_class) in classes.items():
        spoil(folder)
        assert type(AutoModel.from_pretrained(folder, **trust)) is model_class
        assert AutoConfig.from_pretrained(folder, **trust).auto_map["AutoModel"].endswith(model_class.__name__)
        if processor_class is not None:
            assert type(AutoProcessor.from_pretrained(folder, **trust)) is processor_class
    processor = AutoProcessor.from_pretrained(log_mel_folder, **trust)
    assert type(processor.feature_extractor) is LogMelFeatureExtractor
    zero_shot = AutoModelForZeroShotImageClassification.from_pretrained(image_text_folder, **trust)
    assert type(zero_shot) is ImageTextDualEncoder
    assert type(pipeline("feature-extraction", model=image_text_folder, **trust).model) is ImageTextDualEncoder


IMAGE_CODE = """
import json, numpy as np
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline
folder, texts, trust = {folder!r}, {texts!r}, {{"trust_remote_code": True}}
data = np.load(folder + "/inputs.npz")
images = [Image.fromarray(image) for image in data["images"]]
model = AutoModel.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
assert type(model).__module__.startswith("transformers_modules."), type(model)
with torch.no_grad():
    outputs = model(**processor(text=texts, images=images, return_tensors="pt"))
found = {{name: outputs[name].numpy() for name in ("text_embeds", "image_embeds", "logits_per_image")}}
classify = pipeline("zero-shot-image-classification", model=folder, **trust)
results = classify(images, candidate_labels=texts, hypothesis_template="{{}}")
found["scores"] = np.array([[{{r["label"]: r["score"] for r in row}}[text] for text in texts] for row in results])
found["features"] = np.array(pipeline("feature-extraction", model=folder, **trust)(texts[0]))
assert "torchaudio" not in sys.modules
np.savez(folder + "/found.npz", **found)
"""

AUDIO_CODE = """
import numpy as np
from transformers import AutoModel, AutoProcessor, AutoTokenizer, pipeline
folder, texts, trust = {folder!r}, {texts!r}, {{"trust_remote_code": True}}
clips = list(np.load(folder + "/inputs.npz")["clips"])
model = AutoModel.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
assert type(processor.feature_extractor).__module__.startswith("transformers_modules.")
with torch.no_grad():
    outputs = model(**processor(text=texts, audio=clips, sampling_rate=8000, return_tensors="pt"))
found = {{name: outputs[name].numpy() for name in ("text_embeds", "audio_embeds", "logits_per_audio")}}
classify = pipeline("zero-shot-audio-classification", model=folder, **trust)
results = classify(clips, candidate_labels=texts, hypothesis_template="{{}}")
found["scores"] = np.array([[{{r["label"]: r["score"] for r in row}}[text] for text in texts] for row in results])
found["features"] = np.array(pipeline("feature-extraction", model=folder, **trust)(texts[0]))
np.savez(folder + "/found.npz", **found)

folder = {sentence_folder!r}
encoder = AutoModel.from_pretrained(folder, **trust)
vectors = encoder.encode(texts).numpy()
features = np.array(pipeline("feature-extraction", model=folder, **trust)(texts[0]))
np.savez(folder + "/found.npz", vectors=vectors, features=features)

folder = {sound_effects_folder!r}  # whose tower is ours too
model = AutoModel.from_pretrained(folder, **trust)
assert type(model.audio_model).__module__.startswith("transformers_modules.")
with torch.no_grad():
    np.savez(folder + "/found.npz", model(input_features=torch.ones(1, 12, 8)).audio_embeds)
"""


def assert_found(folder: Path, expected: dict[str, np.ndarray], scores: torch.Tensor, features: torch.Tensor) -> None:
    found = np.load(folder / "found.npz")
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)  # to the bit
        assert np.isfinite(value).all() and np.ptp(value) > 1e-3
    np.testing.assert_allclose(found["scores"], scores.numpy(), atol=1e-5)
    np.testing.assert_allclose(found["features"], features.numpy(), atol=1e-6)


@pytest.mark.slow
def test_an_image_model_without_the_package(
    image_text_folder: Path,
    image_text_model: ImageTextDualEncoder,
    image_text_processor: ImageTextProcessor,
    images: list[Image.Image],
    run_with_only: Callable,
) -> None:
    write_remote_code(image_text_folder)
    np.savez(image_text_folder / "inputs.npz", images=np.stack([np.asarray(image) for image in images]))
    code = IMAGE_CODE.format(folder=str(image_text_folder), texts=TEXTS)
    run_with_only(["transformers", "torch", "torchvision", "pillow"], code)
    with torch.no_grad():
        outputs = image_text_model(**image_text_processor(text=TEXTS, images=images, return_tensors="pt"))
    names = ("text_embeds", "image_embeds", "logits_per_image")
    expected = {name: outputs[name].numpy() for name in names}
    scores = outputs.logits_per_image.softmax(dim=1)
    assert_found(image_text_folder, expected, scores, outputs.text_embeds[:1])


@pytest.mark.slow
def test_an_audio_model_and_a_sentence_encoder_without_the_package(
    log_mel_folder: Path,
    log_mel_processor: AudioTextProcessor,
    sentence_encoder_folder: Path,
    clips: list[np.ndarray],
    text_config: Callable,
    tmp_path: Path,
    run_with_only: Callable,
) -> None:
    tower = AisfxConfig(hidden_size=8, num_mel_bins=8, block_frames=10, block_hop=5)
    sound_effects = AudioTextDualEncoder(AudioTextConfig(text_config=text_config(), audio_config=tower)).eval()
    sound_effects.save_pretrained(tmp_path / "sound_effects")
    write_remote_code(tmp_path / "sound_effects")
    write_remote_code(log_mel_folder)
    write_remote_code(sentence_encoder_folder)
    np.savez(log_mel_folder / "inputs.npz", clips=np.stack(clips))
    folders = {"sentence_folder": sentence_encoder_folder, "sound_effects_folder": tmp_path / "sound_effects"}
    code = AUDIO_CODE.format(
        folder=str(log_mel_folder), texts=TEXTS, **{name: str(folder) for name, folder in folders.items()}
    )
    run_with_only(["transformers", "torch", "torchaudio"], code)
    model = AudioTextDualEncoder.from_pretrained(log_mel_folder)
    encoder = SentenceEncoder.from_pretrained(sentence_encoder_folder)
    with torch.no_grad():
        batch = log_mel_processor(text=TEXTS, audio=clips, sampling_rate=8000, return_tensors="pt")
        outputs = model(**batch)
        tokens = encoder(**log_mel_processor.tokenizer(TEXTS[0], return_tensors="pt")).last_hidden_state
    names = ("text_embeds", "audio_embeds", "logits_per_audio")
    expected = {name: outputs[name].numpy() for name in names}
    assert_found(log_mel_folder, expected, outputs.logits_per_audio.softmax(dim=1), outputs.text_embeds[:1])
    found = np.load(sentence_encoder_folder / "found.npz")
    np.testing.assert_array_equal(found["vectors"], encoder.encode(TEXTS).numpy())
    np.testing.assert_allclose(found["features"], tokens.numpy(), atol=1e-6)
    found = np.load(tmp_path / "sound_effects" / "found.npz")["arr_0"]
    with torch.no_grad():
        expected = sound_effects(input_features=torch.ones(1, 12, 8)).audio_embeds.numpy()
    np.testing.assert_array_equal(found, expected)
    assert np.ptp(expected) > 1e-3

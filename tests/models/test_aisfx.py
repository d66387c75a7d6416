"""The tower of sound effects: blocks of a clip that count, and the spectrograms that it takes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoModel, BertModel

from xmodal_hf import AudioTextConfig, AudioTextDualEncoder, LogMelFeatureExtractor
from xmodal_hf.models.configuration_aisfx import AisfxConfig
from xmodal_hf.models.modeling_aisfx import AisfxModel

SMALL = {"hidden_size": 16, "num_mel_bins": 8, "block_frames": 10, "block_hop": 5}


@pytest.fixture
def tower(randomize: Callable[[nn.Module], nn.Module]) -> AisfxModel:
    return randomize(AisfxModel(AisfxConfig(**SMALL)))


def padded(spectrogram: torch.Tensor, frames: int) -> torch.Tensor:
    return nn.functional.pad(spectrogram, (0, 0, 0, frames - len(spectrogram)))


@pytest.mark.parametrize(("frames", "starts"), [(4, [0]), (10, [0]), (14, [0]), (15, [0, 5]), (30, [0, 5, 10, 15, 20])])
@torch.no_grad()
def test_the_mean_is_over_blocks_that_a_clip_fills(frames: int, starts: list[int], tower: AisfxModel) -> None:
    clip = torch.rand(frames, 8) + 0.1
    longer = padded(clip, 30)
    blocks = torch.stack([longer[start : start + 10] for start in starts])
    expected = tower(blocks).pooler_output.mean(dim=0)  # one block each
    other = torch.rand(30, 8)
    outputs = tower(torch.stack([other, longer])[:, None])
    torch.testing.assert_close(outputs.pooler_output[1], expected)
    assert outputs.last_hidden_state.shape == (2, 5, 16)
    assert (outputs.last_hidden_state[1, len(starts) :] == 0).all()
    assert (outputs.pooler_output[0] - expected).abs().max() > 1e-3
    if frames < 10:  # as the package, which lengthens a short clip by zeros
        torch.testing.assert_close(tower(padded(clip, 10)[None]).pooler_output[0], expected)
        torch.testing.assert_close(tower(clip[None]).pooler_output[0], expected)


def test_it_is_a_tower_as_any_other(tower: AisfxModel, text_config: Callable, reload: Callable) -> None:
    model = AudioTextDualEncoder.from_text_audio_pretrained(BertModel(text_config()), tower, projection_dim=8)
    assert model.config.audio_pooling == "pooler"
    batch = torch.rand(3, 1, 20, 8)
    model(input_ids=torch.randint(1, 30, (3, 5)), input_features=batch, return_loss=True).loss.backward()
    assert all(parameter.grad is not None for parameter in model.audio_model.parameters())
    loaded = reload(model.eval())
    assert isinstance(loaded.audio_model, AisfxModel)
    with torch.no_grad():
        assert torch.equal(loaded(input_features=batch).audio_embeds, model(input_features=batch).audio_embeds)
    config = AudioTextConfig(text_config=text_config().to_dict(), audio_config=tower.config.to_dict())
    assert isinstance(config.audio_config, AisfxConfig) and config.audio_config.block_hop == 5


def test_alone_it_is_saved_and_loaded(tower: AisfxModel, tmp_path) -> None:
    tower.save_pretrained(tmp_path)
    LogMelFeatureExtractor.from_preset("aisfx").save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    clips = torch.rand(2, 12, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded(clips).pooler_output, tower(clips).pooler_output)
        assert torch.equal(tower(clips, return_dict=False)[1], tower(clips).pooler_output)


@pytest.mark.parametrize("wrong", [{"hidden_size": 12}, {"block_frames": 4}, {"block_hop": 11}, {"num_mel_bins": 4}])
def test_sizes_that_do_not_fit(wrong: dict) -> None:
    with pytest.raises((ValueError, StrictDataclassError), match=next(iter(wrong))):
        AisfxConfig(**SMALL | wrong)


@pytest.mark.parametrize("features", [None, torch.zeros(1, 20, 9)])
def test_spectrograms_of_another_kind(features: torch.Tensor | None, tower: AisfxModel) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, frames, 8\)"):
        tower(features)


def slow_spectrogram(clip: np.ndarray) -> np.ndarray:
    """log10(1 + 10,000 power) of a peak-normalised clip: triangles of the HTK scale with the sum 1, frame by frame."""
    samples = np.pad(clip.astype(np.float64) / np.abs(clip).max(), 1024)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2048) / 2048)
    mels = np.linspace(0, 2595 * np.log10(1 + 22050 / 700), 98)
    edges, bins = 700 * (10 ** (mels / 2595) - 1), np.linspace(0, 22050, 1025)
    rows = []
    for start in range(0, len(samples) - 2047, 1024):
        power = np.abs(np.fft.rfft(samples[start : start + 2048] * window)) ** 2
        bands = []
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
            triangle = np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
            bands.append(power @ triangle / triangle.sum())
        rows.append(bands)
    return np.log10(1 + 10_000 * np.array(rows)) / 9.457798957824707


def test_spectrograms_are_those_that_it_was_trained_on() -> None:
    generator = np.random.default_rng(0)
    clip = (0.1 * generator.normal(size=22_050) * np.linspace(0, 1, 22_050)).astype(np.float32)
    extractor = LogMelFeatureExtractor.from_preset("aisfx", max_length_s=0.5)
    features = extractor(clip, sampling_rate=44_100)["input_features"]
    assert features.shape == (1, 1, 22, 96)
    np.testing.assert_allclose(features[0, 0], slow_spectrogram(clip), atol=1e-5)
    louder = extractor(3 * clip, sampling_rate=44_100)["input_features"]
    np.testing.assert_allclose(louder, features, atol=1e-5)
    assert (extractor(np.zeros(22_050, np.float32))["input_features"] == 0).all()
    short = extractor(clip[:11_025], sampling_rate=44_100)["input_features"]
    assert (short[0, 0, 12:] == 0).all() and short[0, 0, 5].max() > 0

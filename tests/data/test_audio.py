import io
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from torchaudio.functional import resample
from transformers import (
    ASTFeatureExtractor,
    ClapFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from xmodal_hf.data.audio import SpecAugment, decode_audio, load_waveform
from xmodal_hf.data.clips import clip_seconds, set_clip_seconds, split_windows
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.data.seeding import EpochIndex
from xmodal_hf.evaluation import as_embedder
from xmodal_hf.evaluation.embed import EmbedOptions
from xmodal_hf.models.feature_extraction_log_mel import LogMelFeatureExtractor
from xmodal_hf.models.processing_dual_encoder import AudioTextProcessor


def encoded(samples, rate=8000, kind="WAV", **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind, tolerance", [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.05), ("MP3", 0.2)])
def test_formats(samples, kind, tolerance):
    tone = samples.tone(1.0)
    decoded = decode_audio(encoded(tone, kind=kind), 8000)
    assert decoded.dtype == np.float32
    assert abs(len(decoded) - 8000) < 2500  # mp3 has padding frames
    assert abs(np.sqrt((decoded**2).mean()) - np.sqrt((tone**2).mean())) < tolerance


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100])
def test_resampling_keeps_a_tone(samples, rate):
    decoded = decode_audio(encoded(samples.tone(1.0, rate), rate), 16_000)
    expected = samples.tone(1.0, 16_000)
    assert len(decoded) == 16_000
    assert np.abs(decoded - expected)[500:-500].max() < 5e-3


def test_channels_are_averaged(samples):
    tone = samples.tone()
    stereo = np.stack([tone, np.zeros_like(tone)], axis=1)
    assert np.abs(decode_audio(encoded(stereo), 8000) - tone / 2).max() < 1e-4
    eight = np.tile(tone[:, None], (1, 8))
    assert np.abs(decode_audio(encoded(eight), 8000) - tone).max() < 1e-4


@pytest.mark.parametrize("offset, first", [(0.0, 0), (0.5, 350), (1.0, 700)])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_only_the_window_is_decoded(offset, first, kind):
    ramp = (np.arange(1, 1001) / 2000).astype(np.float32)
    decoded = decode_audio(encoded(ramp, 100, kind), 100, max_seconds=3.0, offset=offset)
    assert np.abs(decoded - ramp[first : first + 300]).max() < 1e-4


def test_a_short_clip_is_not_changed_by_the_window(samples):
    content = encoded(samples.tone())
    assert np.array_equal(decode_audio(content, 8000), decode_audio(content, 8000, max_seconds=5.0, offset=0.7))


@pytest.mark.parametrize("offset, first", [(0.0, 250), (0.5, 350), (0.6, 250), (0.9, 700), (1.0, 700)])
@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_window_of_zeros_moves_to_the_nearest_sound(offset, first, kind):
    clip = np.zeros(1000, dtype=np.float32)
    clip[400], clip[990:] = 0.5, 0.5  # the windows begin at 0, 350, 420, 630 and 700; two of them hold sound
    decoded = decode_audio(encoded(clip, 100, kind), 100, max_seconds=3.0, offset=offset)
    assert np.abs(decoded - clip[first : first + 300]).max() < 1e-4 and decoded.any()


def damaged_rate(content):
    return content[:24] + b"\0\0\0\0" + content[28:]


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "empty file"),
        (b"not a sound" * 50, "corrupt audio"),
        (encoded(np.zeros(0, dtype=np.float32)), "empty audio"),
        (encoded(np.zeros(100, dtype=np.float32)), "silent audio"),
        (encoded(np.array([0.1, np.nan, 0.1], dtype=np.float32), subtype="FLOAT"), "corrupt audio"),
        (encoded(np.array([0.1, np.inf, 0.1], dtype=np.float32), subtype="FLOAT"), "corrupt audio"),
        (damaged_rate(encoded(np.ones(100, dtype=np.float32) / 2)), "corrupt audio"),
        (encoded(np.ones(100, dtype=np.float32) / 2)[:20], "corrupt audio"),
        (encoded(np.random.default_rng(0).normal(size=9000) / 9, kind="FLAC")[:60], "corrupt audio"),
        (encoded(np.random.default_rng(0).normal(size=9000) / 9, kind="OGG")[:60], "corrupt audio"),
    ],
    # Names of their own: the bytes hold the time at which they were written, which parallel workers differ in.
    ids=["zero bytes", "text", "no samples", "silence", "NaN", "infinite", "0 Hz", "cut header", "cut flac", "cut ogg"],
)
def test_unusable_sounds_say_why(content, reason):
    with pytest.raises(BadItemError) as caught:
        decode_audio(content, 8000)
    assert caught.value.reason == reason


def test_cells(tmp_path, samples):
    tone_file = tmp_path / "tone.wav"
    soundfile.write(tone_file, samples.tone(), 8000)
    for cell in ({"bytes": None, "path": str(tone_file)}, {"bytes": tone_file.read_bytes(), "path": None}):
        assert np.abs(load_waveform(cell, 8000) - samples.tone()).max() < 1e-4
    for cell in (None, {"bytes": None, "path": None}):
        with pytest.raises(BadItemError, match="no media"):
            load_waveform(cell, 8000)


@pytest.mark.parametrize("length, starts", [(5, [0]), (10, [0]), (11, [0, 1]), (20, [0, 10]), (25, [0, 8, 15])])
def test_windows_cover_a_clip_evenly(length, starts):
    waveform = np.arange(length)
    windows = split_windows(waveform, 10)
    assert [int(window[0]) for window in windows] == starts
    assert {len(window) for window in windows} == {min(length, 10)}
    assert set(np.concatenate(windows)) == set(range(length))


@pytest.mark.parametrize(
    "extractor, seconds",
    [
        (LogMelFeatureExtractor.from_preset("clap", max_length_s=7.5), 7.5),
        (LogMelFeatureExtractor.from_preset("ast", num_frames=100), 1.015),  # the last frame is longer than a hop
        (ClapFeatureExtractor(truncation="rand_trunc"), 10),
        (ClapFeatureExtractor(truncation="fusion"), None),
        (ASTFeatureExtractor(max_length=512), 5.12),
        (Wav2Vec2FeatureExtractor(), None),
    ],
)
def test_how_much_of_a_clip_is_used(extractor, seconds):
    assert clip_seconds(extractor) == (seconds and pytest.approx(seconds))


class TestSetClipSeconds:
    def test_is_the_length_of_clips(self):
        extractor = Wav2Vec2FeatureExtractor()
        set_clip_seconds(extractor, 2.5)
        assert clip_seconds(extractor) == 2.5

    @pytest.mark.parametrize(
        "extractor",
        [LogMelFeatureExtractor(), ClapFeatureExtractor(), ASTFeatureExtractor(), WhisperFeatureExtractor()],
    )
    def test_is_refused_where_an_extractor_has_its_own(self, extractor):
        with pytest.raises(ValueError, match=f"{type(extractor).__name__} has a length of its own"):
            set_clip_seconds(extractor, 2.5)

    @pytest.mark.parametrize("seconds", [30, 5])
    def test_of_whisper_is_its_own(self, seconds):
        assert clip_seconds(WhisperFeatureExtractor(chunk_length=seconds)) == seconds

    def test_needs_a_frame(self):
        with pytest.raises(ValueError, match=r"--clip_seconds must be at least 0.025, got 0.01"):
            set_clip_seconds(Wav2Vec2FeatureExtractor(), 0.01)


def log_mel_extractor():
    return LogMelFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=125, fft_window_size=256, max_length_s=1.0, frequency_max=4000.0
    )


def clap_extractor():
    return ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=125, fft_window_size=256, max_length_s=1, frequency_max=4000,
        truncation="rand_trunc",
    )  # fmt: skip


def waveform_extractor(seconds=None):
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=8000)
    if seconds is not None:
        set_clip_seconds(extractor, seconds)
    return extractor


@pytest.mark.parametrize("long_clips", ["first", "mean"])
@pytest.mark.parametrize(
    "make_extractor, tower",
    [
        (log_mel_extractor, "clap_audio"),
        (clap_extractor, "clap_audio"),
        (waveform_extractor, "wav2vec2"),  # clips as long as they are
        (partial(waveform_extractor, 1.0), "wav2vec2"),
    ],
)
def test_a_file_has_one_embedding_in_any_batch(make_extractor, tower, long_clips, make_audio_text, tokenizer, tmp_path):
    generator = np.random.default_rng(0)
    cells = []
    for number, seconds in enumerate((0.3, 2.6, 1.0, 1.7)):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, generator.normal(0, 0.1, round(seconds * 16_000)), 16_000)
        cells.append({"bytes": None, "path": str(path)})
    options = EmbedOptions(long_clips=long_clips, batch_size=3)
    embedder = as_embedder(
        make_audio_text(audio=tower), AudioTextProcessor(make_extractor(), tokenizer), options=options
    )
    together = embedder.encode_audio(cells)
    np.random.seed(7)  # ClapFeatureExtractor would crop at random
    alone = np.concatenate([embedder.encode_audio([cell]) for cell in reversed(cells)])[::-1]
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together[1] - together[3]).max() > 1e-3


class TestSpecAugment:
    def test_depends_on_seed_and_position_only(self):
        features = torch.randn(1, 200, 64, generator=torch.Generator().manual_seed(0))
        first = SpecAugment(seed=1)(features, EpochIndex(2, 3))
        torch.manual_seed(9)
        assert torch.equal(first, SpecAugment(seed=1)(features, EpochIndex(2, 3)))
        assert not torch.equal(first, SpecAugment(seed=1)(features, EpochIndex(3, 3)))
        assert not torch.equal(first, SpecAugment(seed=2)(features, EpochIndex(2, 3)))

    def test_masks_whole_stripes_of_at_most_the_width(self):
        features = torch.randn(1, 200, 64, generator=torch.Generator().manual_seed(0))
        original = features.clone()
        widths = []
        for index in range(50):
            masked = SpecAugment(time_width=20, time_stripes=1, mel_stripes=0)(features, EpochIndex(0, index))
            changed = (masked != features)[0]
            assert torch.equal(changed.any(dim=1), changed.all(dim=1))
            assert torch.allclose(masked[0][changed], features.mean())
            widths.append(int(changed.any(dim=1).sum()))
        assert 15 < max(widths) <= 20 and min(widths) <= 5
        assert torch.equal(features, original)


def test_rates_that_share_nothing_take_no_memory(samples, monkeypatch):
    """From 44,101 to 48,000 Hz the exact filter would have two thousand million entries."""
    rates = []
    monkeypatch.setattr(
        "xmodal_hf.data.waveforms.resample", lambda waveform, *pair: rates.append(pair) or resample(waveform, *pair)
    )
    decoded = decode_audio(encoded(samples.tone(1.0, 44_101), 44_101), 48_000)
    assert len(decoded) == 48_000
    assert np.abs(decoded - samples.tone(1.0, 48_000))[500:-500].max() < 5e-3
    decode_audio(encoded(samples.tone(1.0, 44_100), 44_100), 48_000)
    assert rates[0][0] * rates[0][1] < 8_000_000 and rates[0] != (44_101, 48_000)
    assert rates[1] == (147, 160)


def test_clips_shorter_than_a_frame_are_bad_items():
    with pytest.raises(BadItemError, match="audio too short: 199 samples at 8000 Hz"):
        decode_audio(encoded(np.full(199, 0.1)), 16_000)
    assert len(decode_audio(encoded(np.full(200, 0.1)), 16_000)) == 400


def test_noise_in_place_of_bytes_is_a_bad_item_or_a_sound(samples):
    generator = np.random.default_rng(0)
    contents = [encoded(samples.tone(0.2), kind=kind) for kind in ("WAV", "FLAC", "OGG", "MP3")]
    refused = 0
    for content in contents * 40:
        damaged = bytearray(content)
        for place in generator.integers(min(len(damaged), 400), size=6):
            damaged[place] = generator.integers(256)
        try:
            decode_audio(bytes(damaged), 16_000)
        except BadItemError:
            refused += 1
    assert 20 < refused < 160

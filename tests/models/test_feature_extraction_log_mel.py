import json
import pickle

import numpy as np
import pytest
import torch
from transformers import ASTFeatureExtractor, ClapFeatureExtractor

from xmodal_hf.models.feature_extraction_log_mel import PRESETS, LogMelFeatureExtractor

RATE = 48_000
SECONDS = np.arange(3 * RATE) / RATE
RANDOM = np.random.default_rng(0)
# Tones leave most bands 100 dB below the loudest one: there a transform in single precision is decibels off.
CLIPS = {
    "noise": 0.1 * RANDOM.normal(size=3 * RATE),
    "tone": np.sin(2 * np.pi * 440 * SECONDS),
    "decaying tones": np.sin(2 * np.pi * 440 * SECONDS) * np.exp(-SECONDS) + 0.01 * np.sin(2 * np.pi * 5000 * SECONDS),
    # A tone that crosses all bands, quietly and loudly, over noise 100 dB below it: bands that hear only the edge of
    # their filter.
    "sweep": np.sin(2 * np.pi * 3000 * SECONDS**2) * (1e-3 + SECONDS / 3) + 1e-5 * RANDOM.normal(size=3 * RATE),
    "half noise, half tone": np.where(SECONDS < 1.5, 0.1 * RANDOM.normal(size=3 * RATE), np.sin(2764 * SECONDS)),
    "quiet": 1e-5 * RANDOM.normal(size=3 * RATE),
    "silence": np.zeros(3 * RATE),
    "loud and low, quiet and high": np.cumsum(0.1 * RANDOM.normal(size=3 * RATE)) / 50,
    "short": 0.3 * RANDOM.normal(size=20_001),
}
CLIPS = {name: clip.astype(np.float32) for name, clip in CLIPS.items()}


def features_of(extractor, clips, **options):
    rate = extractor.sampling_rate
    return extractor(clips, sampling_rate=rate, return_tensors="pt", **options)[extractor.model_input_names[0]]


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("preset, truncation", [("clap", "rand_trunc"), ("clap_fused", "fusion")])
def test_equals_clap_in_decibels(name, preset, truncation):
    clap = ClapFeatureExtractor(frequency_min=50, max_length_s=3, truncation=truncation)
    theirs = features_of(clap, CLIPS[name])[:, :1]  # fusion repeats a short clip four times
    double, single = (
        features_of(LogMelFeatureExtractor.from_preset(preset, max_length_s=3, precision=precision), CLIPS[name])
        for precision in ("double", "single")
    )
    assert double.shape == theirs.shape == (1, 1, 301, 64)
    assert (double - theirs).abs().max() < 1e-3
    assert (single - theirs).square().mean().sqrt() < 0.5  # the root mean square
    if name != "silence":
        assert double.std() > 1


def test_single_precision_equals_it_on_noise_but_not_on_a_tone():
    """The reason for double precision, and a check that the comparison above can fail."""
    double, single = (
        LogMelFeatureExtractor.from_preset("clap_fused", max_length_s=3, precision=precision)
        for precision in ("double", "single")
    )
    differences = [
        (features_of(double, CLIPS[n]) - features_of(single, CLIPS[n])).abs().max() for n in ("noise", "tone")
    ]
    assert differences[0] < 1e-3
    assert differences[1] > 0.01


@pytest.mark.parametrize("preset", PRESETS)
def test_double_precision_of_every_front_end(preset):
    double, single = (
        features_of(LogMelFeatureExtractor.from_preset(preset, precision=precision), CLIPS["noise"])
        for precision in ("double", "single")
    )
    assert double.dtype == single.dtype == torch.float32 and not torch.equal(double, single)
    torch.testing.assert_close(single, double, atol=1e-3, rtol=0)


@pytest.mark.parametrize("in_double, precision", [(True, "double"), (False, "single")])
def test_files_of_earlier_versions(tmp_path, in_double, precision):
    """They named the precision by `double_precision`; the features stay what they were."""
    LogMelFeatureExtractor.from_preset("clap", max_length_s=3, precision=precision).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    saved = json.loads(path.read_text())
    assert saved.pop("precision") == precision
    path.write_text(json.dumps(saved | {"double_precision": in_double}))
    loaded = LogMelFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.precision == precision and "double_precision" not in loaded.to_dict()


def test_a_clip_shorter_than_a_frame_of_kaldis():
    features = features_of(LogMelFeatureExtractor.from_preset("ast"), CLIPS["noise"][:100])
    assert features.shape == (1, 1024, 128) and features.isfinite().all()


@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("length", [3_000, 71_999, 72_000, 72_001, 143_999])
def test_short_clips_are_padded_like_claps(padding, length):
    clap = ClapFeatureExtractor(frequency_min=50, max_length_s=3, truncation="rand_trunc", padding=padding)
    extractor = LogMelFeatureExtractor.from_preset("clap", max_length_s=3, padding=padding)
    ours = features_of(extractor, CLIPS["noise"][:length])
    assert (ours - features_of(clap, CLIPS["noise"][:length])).abs().max() < 1e-3


@pytest.mark.parametrize("length", [4_000, 160_000, 163_840, 164_080, 200_000])
def test_equals_ast(length):
    clip = np.tile(CLIPS["noise"], 2)[:length]
    theirs = features_of(ASTFeatureExtractor(), [clip])
    ours = features_of(LogMelFeatureExtractor.from_preset("ast"), clip)
    assert ours.shape == theirs.shape == (1, 1024, 128)
    assert (ours - theirs).abs().max() < 1e-5


def test_wavcaps_shape():
    extractor = LogMelFeatureExtractor.from_preset("wavcaps")
    assert features_of(extractor, CLIPS["noise"]).shape == (1, 1, 1001, 64)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_clip_has_the_same_features_in_any_batch_and_call(preset):
    extractor = LogMelFeatureExtractor.from_preset(preset)  # whole length: 10 s
    clips = [CLIPS[name] for name in ("noise", "short", "tone", "quiet")]
    together = features_of(extractor, clips)
    np.random.seed(5)  # ClapFeatureExtractor's crop would follow it
    for clip, expected in zip(clips, together, strict=True):
        assert torch.equal(features_of(extractor, clip)[0], expected)
    long_clip = np.tile(CLIPS["noise"], 5)[: 13 * RATE]
    assert torch.equal(features_of(extractor, [long_clip, clips[1]]), features_of(extractor, [long_clip, clips[1]]))


def test_long_clips_are_cut_to_the_first_or_middle_window():
    extractor = LogMelFeatureExtractor.from_preset("clap", max_length_s=1.0)
    clip = CLIPS["noise"][: 3 * RATE]
    assert torch.equal(features_of(extractor, clip), features_of(extractor, clip[:RATE]))
    middle = features_of(extractor, clip[RATE : 2 * RATE])
    assert torch.equal(features_of(extractor, clip, truncation="center"), middle)
    centred = LogMelFeatureExtractor.from_preset("clap", max_length_s=1.0, truncation="center")
    assert torch.equal(features_of(centred, clip), middle)


def test_all_kinds_of_input_are_the_same():
    extractor = LogMelFeatureExtractor(max_length_s=0.5)
    clip = CLIPS["noise"][: RATE // 2]
    expected = features_of(extractor, [clip])
    kinds = [clip, torch.from_numpy(clip), clip.tolist(), clip[None], [torch.from_numpy(clip)], [clip.tolist()]]
    assert all(torch.equal(features_of(extractor, kind), expected) for kind in kinds)
    arrays = extractor(clip, sampling_rate=RATE)["input_features"]
    assert isinstance(arrays, np.ndarray) and np.array_equal(arrays, expected.numpy())


def test_options_meant_for_texts_do_no_harm():
    """`processor(text=..., audio=..., padding=True, truncation=True, max_length=77)` sends them to both."""
    extractor = LogMelFeatureExtractor(max_length_s=0.5)
    clip = CLIPS["noise"][:RATE]
    options = {"padding": True, "truncation": True, "max_length": 77}
    assert torch.equal(features_of(extractor, clip, **options), features_of(extractor, clip))


@pytest.mark.parametrize("preset", PRESETS)
def test_saved_and_loaded_it_is_the_same(tmp_path, preset):
    extractor = LogMelFeatureExtractor.from_preset(preset, truncation="center", padding="repeat")
    extractor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["feature_extractor_type"] == "LogMelFeatureExtractor" and "mel_filters" not in saved
    loaded = LogMelFeatureExtractor.from_pretrained(tmp_path)
    copied = pickle.loads(pickle.dumps(extractor))
    assert loaded.to_dict() == extractor.to_dict()
    expected = features_of(extractor, CLIPS["short"])
    assert torch.equal(features_of(loaded, CLIPS["short"]), expected)
    assert torch.equal(features_of(copied, CLIPS["short"]), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"padding": "longest"}, "padding must be one of repeatpad, repeat, pad, got 'longest'"),
        ({"truncation": "fusion"}, "truncation must be one of first, center, got 'fusion'"),
        ({"front_end": "wavelet"}, "front_end must be one of stft, kaldi, sound_effects, got 'wavelet'"),
        ({"precision": "half"}, "precision must be one of single, double, got 'half'"),
        ({"num_frames": 100}, "num_frames goes with front_end='kaldi'"),
    ],
)
def test_unknown_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LogMelFeatureExtractor(**options)


def test_unusable_input_says_what_is_wanted():
    extractor = LogMelFeatureExtractor(max_length_s=0.1)
    with pytest.raises(ValueError, match="44100 Hz, the model wants 48000 Hz: resample"):
        extractor(CLIPS["noise"], sampling_rate=44_100)
    with pytest.raises(ValueError, match=r"Waveform 1 has the shape \(2, 50\); wanted is mono"):
        extractor([np.ones(50), np.ones((2, 50))], sampling_rate=RATE)
    with pytest.raises(ValueError, match=r"Waveform 0 has the shape \(0,\)"):
        extractor([np.ones(0)], sampling_rate=RATE)
    with pytest.raises(ValueError, match="padding must be one of"):
        extractor(np.ones(50), sampling_rate=RATE, padding="longest")
    with pytest.raises(ValueError, match="preset must be one of clap, clap_fused, wavcaps, ast"):
        LogMelFeatureExtractor.from_preset("mfcc")

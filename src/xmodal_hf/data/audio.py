"""Any sound -> a mono waveform at the wanted rate, and SpecAugment. Deterministic given (seed, epoch, index)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample
from transformers import ASTFeatureExtractor, BatchFeature, ClapFeatureExtractor, SequenceFeatureExtractor

from ..models.feature_extraction_log_mel import LogMelFeatureExtractor
from .errors import BadItemError
from .files import read_media
from .seeding import EpochIndex, row_generator
from .soundfont import ADDRESS_SCHEME, render_address

_AUGMENTATION_STREAM = 1
_AST_HOP_SECONDS = 0.01  # fixed in its feature extractor
# Extractors whose features have one length, whatever the clip's.
_FIXED_LENGTH = (LogMelFeatureExtractor, ClapFeatureExtractor, ASTFeatureExtractor)
# Attribute of other extractors that holds the length of a clip; their files keep it.
_CLIP_SECONDS = "clip_seconds"
# Shorter clips have not one frame of 25 ms, which front ends need.
MIN_SECONDS = 0.025
# Of a filter of `resample`: 32 MB.
_MAX_FILTER_ENTRIES = 8_000_000


def load_waveform(
    cell: dict[str, Any] | None, sampling_rate: int, *, max_seconds: float | None = None, offset: float = 0.0
) -> np.ndarray:
    """The waveform of an audio cell: encoded bytes, a path, a member of a zip archive, or a soundfont address.

    Args and errors: those of `decode_audio` and `read_media`.
    """
    if cell is not None and cell["bytes"] is None and (cell["path"] or "").startswith(ADDRESS_SCHEME):
        return render_address(cell["path"], sampling_rate)
    return decode_audio(read_media(cell), sampling_rate, max_seconds=max_seconds, offset=offset)


def decode_audio(
    content: bytes, sampling_rate: int, *, max_seconds: float | None = None, offset: float = 0.0
) -> np.ndarray:
    """Decode wav, flac, ogg or mp3, mix the channels down and resample.

    Args:
        content: the encoded file.
        sampling_rate: wanted, in Hz.
        max_seconds: only a window of this length is decoded of a longer clip.
        offset: where that window lies, from 0 (the start) over 0.5 (the middle) to 1 (the end). One that holds zeros
            only moves to the nearest sound: clips of ESC-50 are padded with zeros, whose caption fits the rest.

    Returns:
        float32 waveform (samples,), mean of the channels.

    Raises:
        BadItemError: empty, corrupt or not a sound file; no samples; samples that are not finite or all zero.
    """
    if not content:
        raise BadItemError("empty file", "0 bytes")
    try:
        channels, file_rate = _read_window(content, max_seconds, offset)
    except BadItemError:
        raise
    except Exception as error:  # damaged headers make soundfile raise more than its own errors
        raise BadItemError("corrupt audio", f"{type(error).__name__}: {error}") from error
    if not len(channels):
        raise BadItemError("empty audio", "0 samples")
    waveform = channels.mean(axis=1)  # (samples, channels) -> (samples,)
    if not np.isfinite(waveform).all():
        raise BadItemError("corrupt audio", "samples that are not finite")
    if not waveform.any():
        raise BadItemError("silent audio", "all samples are 0")
    if len(waveform) < MIN_SECONDS * file_rate:
        raise BadItemError("audio too short", f"{len(waveform)} samples at {file_rate} Hz")
    if file_rate != sampling_rate:
        waveform = resample(torch.from_numpy(waveform), *_simple_rates(file_rate, sampling_rate)).numpy()
    return waveform


def _simple_rates(file_rate: int, sampling_rate: int) -> tuple[int, int]:
    """Two rates in Hz of nearly that ratio whose greatest common divisor leaves small numbers.

    The filter of `resample` has about as many entries as the product of the two: gigabytes from 44,101 to 48,000 Hz.
    The nearest ratio of small numbers is off by a third of a cent of pitch at most, and common rates stay as they are.
    """
    ratio = Fraction(file_rate, sampling_rate)
    if ratio.numerator * ratio.denominator > _MAX_FILTER_ENTRIES:
        ratio = ratio.limit_denominator(max(1, int((_MAX_FILTER_ENTRIES / ratio) ** 0.5)))
    return ratio.numerator, ratio.denominator


def _read_window(content: bytes, max_seconds: float | None, offset: float) -> tuple[np.ndarray, int]:
    """Samples (samples, channels) of the window, and their rate in Hz."""
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        if file.samplerate <= 0:
            raise BadItemError("corrupt audio", f"a sampling rate of {file.samplerate} Hz")
        wanted = file.frames if max_seconds is None else min(file.frames, round(max_seconds * file.samplerate))
        start = round(offset * (file.frames - wanted))
        if start:
            file.seek(start)
        window = file.read(wanted, dtype="float32", always_2d=True)
        if wanted < file.frames and not window.any():
            file.seek(0)
            window = _around_sound(file.read(dtype="float32", always_2d=True), wanted, start)
        return window, file.samplerate


def _around_sound(samples: np.ndarray, wanted: int, start: int) -> np.ndarray:
    """Of (samples, channels), the `wanted` around the sound nearest to the middle of the window at `start`."""
    sounding = np.flatnonzero(samples.any(axis=1))
    if not len(sounding):
        return samples
    nearest = sounding[np.abs(sounding - start - wanted // 2).argmin()]
    start = int(np.clip(nearest - wanted // 2, 0, len(samples) - wanted))
    return samples[start : start + wanted]


def clip_seconds(extractor: SequenceFeatureExtractor) -> float | None:
    """How much of a clip a feature extractor uses, in seconds; None: all of it, whatever the length.

    Longer clips are cut to that when they are decoded, at a place that the training run knows, because
    `ClapFeatureExtractor` would cut them at one that nobody can repeat. Fused CLAP models take clips whole.
    """
    if isinstance(extractor, LogMelFeatureExtractor):
        return extractor.num_samples / extractor.sampling_rate
    if isinstance(extractor, ClapFeatureExtractor):
        return None if extractor.truncation == "fusion" else extractor.max_length_s
    if isinstance(extractor, ASTFeatureExtractor):
        return extractor.max_length * _AST_HOP_SECONDS
    return getattr(extractor, _CLIP_SECONDS, None)


def set_clip_seconds(extractor: SequenceFeatureExtractor, seconds: float) -> None:
    """Give an extractor of waveforms, such as wav2vec2's, a length for every clip, here and after it is saved.

    `to_clip_length` brings clips to it.

    Raises:
        ValueError: not a length, or the extractor has one of its own.
    """
    if seconds < MIN_SECONDS:
        raise ValueError(f"--clip_seconds must be at least {MIN_SECONDS:g}, got {seconds:g}")
    second = np.zeros(extractor.sampling_rate, np.float32)
    if _is_fixed_length(extractor, second, np.tile(second, 2)):
        raise ValueError(f"--clip_seconds: {type(extractor).__name__} has a length of its own, leave it out")
    setattr(extractor, _CLIP_SECONDS, seconds)


def to_clip_length(extractor: SequenceFeatureExtractor, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Cut or repeat clips to the length that `set_clip_seconds` has set; without one they stay as they are."""
    seconds = getattr(extractor, _CLIP_SECONDS, None)
    if seconds is None:
        return list(waveforms)
    # np.resize repeats, the last time in part.
    length = round(seconds * extractor.sampling_rate)
    return [waveform[:length] if len(waveform) >= length else np.resize(waveform, length) for waveform in waveforms]


def check_equal_lengths(extractor: SequenceFeatureExtractor, waveforms: Sequence[np.ndarray]) -> None:
    """Refuse clips of several lengths for an extractor of waveforms, such as wav2vec2's, which leaves them as long.

    Padding them to the longest would let a clip's embedding depend on its batch: audio towers take no mask. Extractors
    that bring clips to one length, which is found out by trying, get clips of any lengths.

    Raises:
        ValueError: the lengths differ, and those of the features too.
    """
    groups = group_by_length(extractor, waveforms)
    if len(groups) > 1:
        lengths = [len(waveforms[group[0]]) for group in groups]
        raise ValueError(
            f"{type(extractor).__name__} leaves clips as long as they are, here {min(lengths)} to {max(lengths)} "
            "samples, and a batch needs one length: pass --clip_seconds, or use LogMelFeatureExtractor, "
            "ClapFeatureExtractor or ASTFeatureExtractor, which have a length of their own"
        )


def group_by_length(extractor: SequenceFeatureExtractor, waveforms: Sequence[np.ndarray]) -> list[list[int]]:
    """Which clips, by number, can be stacked to one batch: all, for an extractor that brings them to one length."""
    groups: dict[int, list[int]] = {}
    for number, waveform in enumerate(waveforms):
        groups.setdefault(len(waveform), []).append(number)
    if len(groups) > 1:
        shortest, longest = (waveforms[groups[length][0]] for length in (min(groups), max(groups)))
        if _is_fixed_length(extractor, shortest, longest):
            return [list(range(len(waveforms)))]
    return list(groups.values())


def _is_fixed_length(extractor: SequenceFeatureExtractor, shorter: np.ndarray, longer: np.ndarray) -> bool:
    """Whether the features of two clips are equally long."""
    if isinstance(extractor, _FIXED_LENGTH):
        return True
    options: dict[str, Any] = {"sampling_rate": extractor.sampling_rate, "return_tensors": "np"}
    name = extractor.model_input_names[0]
    return extractor(shorter, **options)[name].shape == extractor(longer, **options)[name].shape


def set_padding(extractor: SequenceFeatureExtractor, padding: str) -> None:
    """Let a feature extractor lengthen short clips in another way, here and after it is saved.

    Raises:
        ValueError: it knows one way only.
    """
    if not isinstance(extractor, LogMelFeatureExtractor | ClapFeatureExtractor):
        raise ValueError(f"--audio_padding: {type(extractor).__name__} has no choice of padding")
    extractor.padding = padding


def clap_features(
    extractor: ClapFeatureExtractor,
    waveforms: Sequence[np.ndarray],
    *,
    seeds: Sequence[int],
    any_longer: bool = False,
) -> BatchFeature:
    """What CLAP's own extractor makes of clips, without its dependence on neighbours and global random state.

    Too long clips are cut to their beginning; a fused model gets three crops of them instead.

    Args:
        extractor: of the model.
        waveforms: B of them, (samples,).
        seeds: of each clip's crops.
        any_longer: in a batch for a fused model without a long clip, mark the first one as long. Training in several
            processes needs that: each must use all weights. (The extractor itself marks one at random.)

    Returns:
        `input_features` (B, 1 or 4, frames, F) and `is_longer` (B, 1).
    """
    limit = int(extractor.nb_max_samples)
    if extractor.truncation != "fusion":
        waveforms = [waveform[:limit] for waveform in waveforms]
    state = np.random.get_state()  # the extractor draws from NumPy's global generator
    features = []
    for waveform, seed in zip(waveforms, seeds, strict=True):
        np.random.seed(seed)
        one = extractor(waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        features.append(one["input_features"])
    np.random.set_state(state)
    is_longer = torch.tensor([[len(waveform) > limit] for waveform in waveforms])
    if any_longer and extractor.truncation == "fusion" and not is_longer.any():
        is_longer[0] = True
    return BatchFeature({"input_features": torch.cat(features), "is_longer": is_longer})


def split_windows(waveform: np.ndarray, num_samples: int) -> list[np.ndarray]:
    """As few windows of `num_samples` as cover a waveform (samples,), evenly spread from its start to its end.

    A waveform that is no longer than a window comes back as it is.
    """
    count = -(-len(waveform) // num_samples)
    if count <= 1:
        return [waveform]
    starts = np.linspace(0, len(waveform) - num_samples, count).round().astype(int)
    return [waveform[start : start + num_samples] for start in starts]


@dataclass(frozen=True)
class SpecAugment:
    """Mask stripes of time and of mel bands with the mean of the spectrogram (Park et al., 2019).

    The stripes depend on (`seed`, epoch, index) of the row only. The defaults are those of LAION-CLAP and PANNs:
    twice up to 64 frames and twice up to 8 bands.

    Attributes:
        seed: of the training run.
        time_width, time_stripes: widest time stripe in frames, and their number.
        mel_width, mel_stripes: widest mel stripe in bands, and their number.
    """

    seed: int = 0
    time_width: int = 64
    time_stripes: int = 2
    mel_width: int = 8
    mel_stripes: int = 2

    def __call__(self, features: torch.Tensor, position: EpochIndex) -> torch.Tensor:
        """(..., frames, F) -> a masked copy."""
        generator = row_generator(self.seed, position, stream=_AUGMENTATION_STREAM)
        masked, fill = features.clone(), features.mean()
        frames, bands = features.shape[-2:]
        for _ in range(self.time_stripes):
            start, end = _stripe(frames, self.time_width, generator)
            masked[..., start:end, :] = fill
        for _ in range(self.mel_stripes):
            start, end = _stripe(bands, self.mel_width, generator)
            masked[..., start:end] = fill
        return masked


def _stripe(length: int, max_width: int, generator: np.random.Generator) -> tuple[int, int]:
    width = int(generator.integers(min(max_width, length) + 1))
    start = int(generator.integers(length - width + 1))
    return start, start + width

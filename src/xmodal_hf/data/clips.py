"""Clip lengths of feature extractors, and features of batches of clips.

Needs nothing of this package, so that a demo Space carries it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import (
    ASTFeatureExtractor,
    BatchFeature,
    ClapFeatureExtractor,
    SequenceFeatureExtractor,
    WhisperFeatureExtractor,
)

# Shorter clips have not one frame of 25 ms, which front ends need.
MIN_SECONDS = 0.025
_AST_HOP_SECONDS = 0.01  # fixed in the feature extractor of AST
# Name of the class in `models`: a checkpoint that carries its code has a class of its own with this name.
_LOG_MEL = "LogMelFeatureExtractor"
# Attribute that holds the length of a clip in other extractors; it is saved in their files.
_CLIP_SECONDS = "clip_seconds"


def is_log_mel(extractor: Any) -> bool:
    """Whether an extractor is a `LogMelFeatureExtractor`, of this package or of a checkpoint's own code."""
    return any(base.__name__ == _LOG_MEL for base in type(extractor).__mro__)


def clip_seconds(extractor: SequenceFeatureExtractor) -> float | None:
    """Return the length in seconds that a feature extractor uses of a clip; None if it uses all, whatever the length.

    Longer clips are cut to that when they are decoded, at a place that the training run knows, because
    `ClapFeatureExtractor` would cut them at one that nobody can repeat. Fused CLAP models take clips whole.
    """
    if is_log_mel(extractor):
        return extractor.num_samples / extractor.sampling_rate
    if isinstance(extractor, ClapFeatureExtractor):
        return None if extractor.truncation == "fusion" else extractor.max_length_s
    if isinstance(extractor, ASTFeatureExtractor):
        return extractor.max_length * _AST_HOP_SECONDS
    if isinstance(extractor, WhisperFeatureExtractor):
        return extractor.n_samples / extractor.sampling_rate
    return getattr(extractor, _CLIP_SECONDS, None)


def set_clip_seconds(extractor: SequenceFeatureExtractor, seconds: float) -> None:
    """Give an extractor of waveforms, such as wav2vec2's, a length for every clip, here and after it is saved.

    `to_clip_length` brings clips to it.

    Raises:
        ValueError: If `seconds` is no valid length, or the extractor has a fixed length of its own.
    """
    if seconds < MIN_SECONDS:
        raise ValueError(f"--clip_seconds must be at least {MIN_SECONDS:g}, got {seconds:g}")
    second = np.zeros(extractor.sampling_rate, np.float32)
    if _is_fixed_length(extractor, second, np.tile(second, 2)):
        raise ValueError(f"--clip_seconds: {type(extractor).__name__} has a length of its own: drop the option")
    setattr(extractor, _CLIP_SECONDS, seconds)


def to_clip_length(extractor: SequenceFeatureExtractor, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Cut or repeat clips to the length that `set_clip_seconds` has set; without one they stay as they are."""
    seconds = getattr(extractor, _CLIP_SECONDS, None)
    if seconds is None:
        return list(waveforms)
    # np.resize repeats the clip and cuts the last repetition.
    length = round(seconds * extractor.sampling_rate)
    return [waveform[:length] if len(waveform) >= length else np.resize(waveform, length) for waveform in waveforms]


def check_equal_lengths(extractor: SequenceFeatureExtractor, waveforms: Sequence[np.ndarray]) -> None:
    """Refuse clips of several lengths for an extractor of waveforms, such as wav2vec2's, which leaves them as long.

    Padding them to the longest would let a clip's embedding depend on its batch: audio towers take no mask. Extractors
    that bring clips to one length, which is found out by trying, get clips of any lengths.

    Raises:
        ValueError: If the clips differ in length, and their features do too.
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
    """Group the numbers of clips that can be stacked to one batch: all, if the extractor brings them to one length."""
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
    if is_log_mel(extractor) or isinstance(
        extractor, ClapFeatureExtractor | ASTFeatureExtractor | WhisperFeatureExtractor
    ):
        return True
    options: dict[str, Any] = {"sampling_rate": extractor.sampling_rate, "return_tensors": "np"}
    name = extractor.model_input_names[0]
    return extractor(shorter, **options)[name].shape == extractor(longer, **options)[name].shape


def set_padding(extractor: SequenceFeatureExtractor, padding: str) -> None:
    """Change how a feature extractor lengthens short clips, also after it is saved.

    Raises:
        ValueError: If the extractor has no choice of padding.
    """
    if not (is_log_mel(extractor) or isinstance(extractor, ClapFeatureExtractor)):
        raise ValueError(f"--audio_padding: {type(extractor).__name__} has no choice of padding")
    extractor.padding = padding


def clap_features(
    extractor: ClapFeatureExtractor,
    waveforms: Sequence[np.ndarray],
    *,
    seeds: Sequence[int],
    any_longer: bool = False,
) -> BatchFeature:
    """Compute the features of CLAP's own extractor without its dependence on neighbours and global random state.

    Too long clips are cut to their beginning; a fused model gets three crops of them instead.

    Args:
        extractor: CLAP feature extractor of the model.
        waveforms: List of B waveforms, each of shape (samples,).
        seeds: Seeds of the random crops, one for each clip.
        any_longer: Whether the first clip of a batch without a long clip is marked as long, for a fused model. Training
            in several processes needs that, because each process must use all weights. (The extractor itself marks a
            random clip.)

    Returns:
        Dictionary with `input_features` of shape (B, 1 or 4, frames, F) and `is_longer` of shape (B, 1).
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
    """Return the fewest windows of `num_samples` that cover a waveform (samples,), evenly spread from start to end.

    A waveform that is no longer than a window comes back as it is.
    """
    count = -(-len(waveform) // num_samples)
    if count <= 1:
        return [waveform]
    starts = np.linspace(0, len(waveform) - num_samples, count).round().astype(int)
    return [waveform[start : start + num_samples] for start in starts]

"""The lengths of clips that an audio tower takes, checked before the first step.

Rule: `--max_seconds` is the length of the clips that a tower from scratch sees, and what a tower has no places for is
an error that names the option and the tower's limit. A pretrained tower has the length of its feature extractor; a
longer `--max_seconds` is an error, since it would be cut, and a shorter one is said to have no effect. In the end a
clip of the full length goes through the tower, so that whatever else does not fit is found too.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
from peft import PeftModel
from torch import nn
from transformers import ASTFeatureExtractor, ClapFeatureExtractor, PreTrainedConfig, ProcessorMixin

from ..data.clips import clip_seconds, is_log_mel, set_clip_seconds
from ..evaluation.embed import as_embedder
from .arguments import ContrastiveArguments, PairArguments

logger = logging.getLogger(__name__)

_AST, _HTSAT = "audio-spectrogram-transformer", "clap_audio_model"
_AST_HOP_SECONDS = 0.01  # fixed in the feature extractor of AST
# Errors that models raise for inputs whose shapes they do not take.
_DOES_NOT_FIT = (ValueError, RuntimeError, IndexError, TypeError)


def check_new_audio_tower(config: PreTrainedConfig, extractor: Any, seconds: float) -> None:
    """Check that an audio tower from scratch, by its config, takes the clips of `--max_seconds`.

    Args:
        config: Config of the tower.
        extractor: `LogMelFeatureExtractor` for clips of that length.
        seconds: Length of the clips in seconds.

    Raises:
        ValueError: If the clips are too long for HTSAT's picture (`spec_size`), too short for one patch of AST, or of
            another length than the `max_length` of AST in `--audio_config`.
    """
    frames, given = _num_frames(extractor), f"--max_seconds {seconds:g}"
    if config.model_type == _HTSAT and frames > _htsat_frames(config):
        raise ValueError(
            f"{given}: the audio tower takes clips of at most {_longest(config, extractor):g} s (spec_size "
            f"{config.spec_size} and num_mel_bins {config.num_mel_bins} of its config): pass less"
        )
    if config.model_type != _AST:
        return
    if frames < config.patch_size:
        least = config.patch_size * _hop_seconds(extractor)
        raise ValueError(f"{given}: the audio tower takes clips of at least {least:g} s, one patch: pass more")
    if frames != config.max_length:
        raise ValueError(
            f"{given}: the audio tower has positions for clips of {_longest(config, extractor):g} s (max_length "
            f"{config.max_length} in --audio_config): pass that, or leave max_length out"
        )


def check_clip_length(
    model: nn.Module, processor: ProcessorMixin, contrastive: ContrastiveArguments, pairs: PairArguments
) -> None:
    """Check that an audio tower takes clips of the length that the options and its feature extractor say.

    Args:
        model: Dual encoder of text and audio, or an adapter on one. One clip of noise is run through it.
        processor: Processor of the model, which gets `--clip_seconds`.
        contrastive, pairs: Options of contrastive training and of the pairs.

    Raises:
        ValueError: If `--max_seconds` is more than the feature extractor of a pretrained tower takes, or the tower
            fails with a clip of the full length. The message names the option and, if the tower's config has one, the
            limit.
    """
    extractor = processor.feature_extractor
    if pairs.clip_seconds is not None:
        set_clip_seconds(extractor, pairs.clip_seconds)
    if contrastive.audio_model is not None and contrastive.max_seconds is not None:
        _check_pretrained(extractor, contrastive)
    seconds = clip_seconds(extractor)
    if seconds is None:  # clips keep their lengths, so that there is no maximum
        return
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * extractor.sampling_rate)).astype(np.float32)
    try:
        as_embedder(whole, processor).encode_audio([noise])
    except _DOES_NOT_FIT as error:
        longest = _longest(whole.audio_model.config, extractor)
        limit = "" if longest is None else f" (its config has places for {longest:g} s)"
        raise ValueError(
            f"--{_option(contrastive, pairs)}: the audio tower does not take clips of {seconds:g} s from "
            f"{type(extractor).__name__}{limit}: {error}"
        ) from error


def _check_pretrained(extractor: Any, contrastive: ContrastiveArguments) -> None:
    given, taken, name = contrastive.max_seconds, clip_seconds(extractor), type(extractor).__name__
    assert given is not None
    if taken is None and not isinstance(extractor, ClapFeatureExtractor):
        raise ValueError(
            f"--max_seconds {given:g}: {name} of --audio_model leaves clips as long as they are: pass --clip_seconds "
            "instead"
        )
    if taken is not None and given > taken:
        raise ValueError(
            f"--max_seconds {given:g}: --audio_model {contrastive.audio_model} takes clips of at most {taken:g} s "
            f"({name}): leave the option out"
        )
    if taken is None or given < taken:
        length = "whole clips" if taken is None else f"clips of {taken:g} s"
        logger.warning("--max_seconds %g has no effect: %s of --audio_model takes %s", given, name, length)


def _option(contrastive: ContrastiveArguments, pairs: PairArguments) -> Literal["clip_seconds", "max_seconds", "model"]:
    if pairs.clip_seconds is not None:
        return "clip_seconds"
    return "max_seconds" if contrastive.model is None else "model"


def _htsat_frames(config: PreTrainedConfig) -> int:
    """The frames of which HTSAT makes its square picture: `freq_ratio` stripes of `spec_size`."""
    return config.spec_size * (config.spec_size // config.num_mel_bins)


def _num_frames(extractor: Any) -> int:
    """The frames of the spectrogram of a `LogMelFeatureExtractor`."""
    return extractor.num_frames or 1 + extractor.num_samples // extractor.hop_length


def _hop_seconds(extractor: Any) -> float | None:
    if isinstance(extractor, ASTFeatureExtractor):
        return _AST_HOP_SECONDS
    if is_log_mel(extractor) or isinstance(extractor, ClapFeatureExtractor):
        return extractor.hop_length / extractor.sampling_rate
    return None


def _longest(config: PreTrainedConfig, extractor: Any) -> float | None:
    """Seconds of a clip that a tower has places for, by its config; None where that says nothing."""
    hop = _hop_seconds(extractor)
    if hop is None:
        return None
    if config.model_type == _AST:
        return round(config.max_length * hop, 3)
    # The first frame is centred on the first sample, so that there is one frame more than hops.
    return round((_htsat_frames(config) - 1) * hop, 3) if config.model_type == _HTSAT else None

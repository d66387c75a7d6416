"""Any sound file -> a mono waveform at the wanted rate, deterministic."""

from __future__ import annotations

import io

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from .errors import BadItemError


def decode_audio(content: bytes, sampling_rate: int) -> np.ndarray:
    """Decode wav, flac, ogg or mp3, mix the channels down and resample.

    Args:
        content: the encoded file.
        sampling_rate: wanted, in Hz.

    Returns:
        float32 waveform (samples,), mean of the channels.

    Raises:
        BadItemError: empty, corrupt or not a sound file; no samples; NaN or infinite samples.
    """
    if not content:
        raise BadItemError("empty file", "0 bytes")
    try:
        channels, file_rate = soundfile.read(io.BytesIO(content), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise BadItemError("corrupt audio", str(error)) from error
    if not len(channels):
        raise BadItemError("empty audio", "0 samples")
    waveform = channels.mean(axis=1)  # (samples, channels) -> (samples,)
    if not np.isfinite(waveform).all():
        raise BadItemError("corrupt audio", "samples that are not finite")
    if file_rate != sampling_rate:
        waveform = resample(torch.from_numpy(waveform), file_rate, sampling_rate).numpy()
    return waveform

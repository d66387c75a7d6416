"""Decoding of audio to mono waveforms, and SpecAugment; deterministic given (seed, epoch, index)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from .builtin.soundfont import ADDRESS_SCHEME, render_address
from .errors import BadItemError, naming
from .files import local_path, read_media
from .seeding import EpochIndex, row_generator
from .waveforms import as_channels, check_sounding, decode_audio, window_of_samples

__all__ = ["SpecAugment", "decode_audio", "load_waveform"]

_AUGMENTATION_STREAM = 1


@runtime_checkable
class _Decoder(Protocol):
    """torchcodec's `AudioDecoder`, which `datasets` gives for a decoded audio column."""

    def get_all_samples(self) -> Any:
        """Samples with `data` (channels, n) and `sample_rate`."""


def load_waveform(
    item: Any, sampling_rate: int, *, max_seconds: float | None = None, offset: float = 0.0
) -> np.ndarray:
    """Load an item of an audio column as a mono waveform (n,). All code that turns a cell into samples calls this.

    Training, validation, evaluation and the galleries of demo Spaces call it. A file of its own is read no further than
    the window needs.

    Args:
        item: Cell {"bytes", "path"} as in an undecoded `datasets.Audio` column, or one of the two alone; a path, which
            may also name a member of an archive, an address that fsspec opens, or a built-in sound; encoded bytes; what
            `datasets` decodes a cell to, {"array", "sampling_rate"} or an `AudioDecoder`; or a mono waveform (n,), an
            array or tensor, at `sampling_rate`, in which silence is allowed.
        sampling_rate: Sampling rate of the returned waveform, in Hz.
        max_seconds, offset: Length and position of the window that is decoded, as in `decode_audio`.

    Raises:
        BadItemError: If `decode_audio`, `as_channels` or `read_media` raises it; the detail then names the path.
    """
    window: dict[str, Any] = {"max_seconds": max_seconds, "offset": offset}
    if isinstance(item, bytes | bytearray | memoryview):
        return decode_audio(bytes(item), sampling_rate, **window)
    if isinstance(item, str | os.PathLike):
        item = {"bytes": None, "path": os.fspath(item)}
    if item is None or isinstance(item, Mapping):
        with naming(None if item is None else item.get("path")):
            return _waveform_of_cell(item, sampling_rate, window)
    if isinstance(item, _Decoder):
        return _waveform_of_decoder(item, sampling_rate, window)
    if not isinstance(item, np.ndarray | torch.Tensor | list | tuple):
        raise BadItemError("unknown cell", f"{type(item).__name__} is no sound: pass bytes, a path or samples")
    if np.ndim(item) != 1:
        raise BadItemError(
            "unknown cell",
            f"a clip is a mono waveform (samples,), this one has the shape {tuple(np.shape(item))}: mix its channels "
            'down, or pass {"array": ..., "sampling_rate": ...}',
        )
    return window_of_samples(as_channels(item), sampling_rate, sampling_rate, **window)


def _waveform_of_cell(cell: Mapping[str, Any] | None, sampling_rate: int, window: dict[str, Any]) -> np.ndarray:
    if cell is None or cell.get("bytes") is not None:
        return decode_audio(read_media(None if cell is None else dict(cell)), sampling_rate, **window)
    if cell.get("array") is not None:
        rate = cell.get("sampling_rate")
        if not isinstance(rate, int | float | np.number) or not 0 < rate < float("inf"):
            raise BadItemError("unknown cell", f"an array needs its sampling_rate in Hz, got {rate!r}")
        return _sounding_window(as_channels(cell["array"]), round(float(rate)), sampling_rate, window)
    if not {"bytes", "path", "array"} & cell.keys():
        names = ", ".join(map(str, cell))
        raise BadItemError("unknown cell", f"a sound has bytes, a path or array and sampling_rate, this cell: {names}")
    path = cell.get("path")
    if path and path.startswith(ADDRESS_SCHEME):
        rendered = render_address(path, sampling_rate)
        return window_of_samples(rendered[:, None], sampling_rate, sampling_rate, **window)
    local = local_path(path) if path else None
    return decode_audio(read_media(dict(cell)) if local is None else local, sampling_rate, **window)


def _waveform_of_decoder(decoder: Any, sampling_rate: int, window: dict[str, Any]) -> np.ndarray:
    encoded = getattr(decoder, "_hf_encoded", None)  # `datasets` keeps the cell here, which is decoded like any other
    if isinstance(encoded, Mapping) and (encoded.get("bytes") is not None or encoded.get("path")):
        return load_waveform(encoded, sampling_rate, **window)
    samples = decoder.get_all_samples()
    return _sounding_window(as_channels(samples.data), int(samples.sample_rate), sampling_rate, window)


def _sounding_window(channels: np.ndarray, rate: int, sampling_rate: int, window: dict[str, Any]) -> np.ndarray:
    check_sounding(channels, rate)
    return window_of_samples(channels, rate, sampling_rate, **window)


@dataclass(frozen=True)
class SpecAugment:
    """Mask stripes of time and of mel bands with the mean of the spectrogram (Park et al., 2019).

    The stripes depend on (`seed`, epoch, index) of the row only. The defaults are those of LAION-CLAP and PANNs:
    twice up to 64 frames and twice up to 8 bands.

    Attributes:
        seed: Seed of the training run.
        time_width, time_stripes: Maximum width of a time stripe in frames, and number of time stripes.
        mel_width, mel_stripes: Maximum width of a mel stripe in bands, and number of mel stripes.
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

"""Log-mel spectrograms on torchaudio: batched, deterministic, on any device."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torchaudio.compliance.kaldi
import torchaudio.functional
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import TensorType

TRUNCATIONS = ("first", "center")
PADDINGS = ("repeatpad", "repeat", "pad")

PRESETS: dict[str, dict[str, Any]] = {
    # LAION-CLAP without fusion, as in the preprocessor of laion/clap-htsat-unfused.
    "clap": {"sampling_rate": 48_000, "hop_length": 480, "frequency_min": 50.0, "frequency_max": 14_000.0},
    # The same with the filters of the fused checkpoints.
    "clap_fused": {
        "sampling_rate": 48_000,
        "hop_length": 480,
        "frequency_min": 50.0,
        "frequency_max": 14_000.0,
        "mel_scale": "htk",
        "mel_norm": None,
    },
    # WavCaps' HTSAT; its clips may be longer (pass max_length_s), HTSAT itself takes 10 s.
    "wavcaps": {
        "sampling_rate": 32_000,
        "hop_length": 320,
        "frequency_min": 50.0,
        "frequency_max": 14_000.0,
        "padding": "pad",
    },
    # Audio Spectrogram Transformer: 1024 frames of Kaldi filter banks, AudioSet's mean and twice its deviation.
    "ast": {
        "front_end": "kaldi",
        "sampling_rate": 16_000,
        "feature_size": 128,
        "hop_length": 160,
        "fft_window_size": 400,
        "num_frames": 1024,
        "frequency_min": 20.0,
        "frequency_max": 8_000.0,
        "padding": "pad",
        "feature_mean": -4.2677393,
        "feature_scale": 2 * 4.5689974,
        "channel_axis": False,
    },
}
# Power below this counts as this, in both front ends of transformers: -100 dB.
_MIN_POWER = 1e-10
# A megabyte of samples in double precision stays in a CPU's cache: 1.5 times as fast as whole clips (measured).
_FRAMES_AT_ONCE = 128


class LogMelFeatureExtractor(SequenceFeatureExtractor):
    r"""Waveforms -> log-mel spectrograms of one fixed length, so that a clip's features never depend on its batch.

    Long clips are cut to their first or middle window and short ones repeated or padded; nothing here is random
    (training crops at random when it decodes). Two front ends: `stft`, decibels as in `ClapFeatureExtractor`, and
    `kaldi`, filter banks as in `ASTFeatureExtractor`; both agree with them on the same samples.

    `LogMelFeatureExtractor.from_preset("clap" | "clap_fused" | "wavcaps" | "ast")` gives the settings of a family.

    Args:
        feature_size (`int`): number of mel bands F.
        sampling_rate (`int`): of the waveforms, in Hz.
        padding_value (`float`): sample value of the padding.
        hop_length (`int`): step between frames, in samples.
        fft_window_size (`int`): length of a frame, in samples.
        max_length_s (`float`): length of every clip, in seconds. Not used where `num_frames` is given.
        num_frames (`int`, *optional*): length of every spectrogram; shorter ones get frames of zeros before
            normalisation (`kaldi` only).
        frequency_min, frequency_max (`float`): edges of the mel bands, in Hz.
        mel_scale (`str`): `slaney` or `htk` (`stft` only).
        mel_norm (`str`, *optional*): `slaney` or None (`stft` only).
        front_end (`str`): `stft` or `kaldi`.
        truncation (`str`): window of a long clip that is used, `first` or `center`.
        padding (`str`): of short clips; `repeatpad`: as many whole repeats as fit, then `padding_value`; `repeat`:
            repeats, the last one cut; `pad`: `padding_value` only.
        feature_mean, feature_scale (`float`): subtracted from the features, which are then divided.
        double_precision (`bool`): of the Fourier transform (`stft`). In single precision its rounding error, relative
            to the loudest bin, is decibels off in the quiet bands of a pure tone (4 dB, measured) though not in noise;
            but it is 1.5 times as fast, and some devices (MPS) have nothing else.
        channel_axis (`bool`): whether an axis of size 1 stands before the frames (CLAP) or not (AST).

    Raises:
        ValueError: unknown preset, front end, padding or truncation.
    """

    model_input_names = ["input_features"]

    def __init__(
        self,
        feature_size: int = 64,
        sampling_rate: int = 48_000,
        padding_value: float = 0.0,
        hop_length: int = 480,
        fft_window_size: int = 1024,
        max_length_s: float = 10.0,
        num_frames: int | None = None,
        frequency_min: float = 0.0,
        frequency_max: float = 14_000.0,
        mel_scale: Literal["slaney", "htk"] = "slaney",
        mel_norm: Literal["slaney"] | None = "slaney",
        front_end: Literal["stft", "kaldi"] = "stft",
        truncation: str = "first",
        padding: str = "repeatpad",
        feature_mean: float = 0.0,
        feature_scale: float = 1.0,
        double_precision: bool = True,
        channel_axis: bool = True,
        **kwargs: Any,
    ):
        kwargs.setdefault("return_attention_mask", False)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        _check_choice("front_end", front_end, ("stft", "kaldi"))
        if (num_frames is not None) != (front_end == "kaldi"):
            raise ValueError("num_frames goes with front_end='kaldi', max_length_s with front_end='stft'.")
        self.hop_length = hop_length
        self.fft_window_size = fft_window_size
        self.max_length_s = max_length_s
        self.num_frames = num_frames
        self.frequency_min = frequency_min
        self.frequency_max = frequency_max
        self.mel_scale = mel_scale
        self.mel_norm = mel_norm
        self.front_end = front_end
        self.truncation = _check_choice("truncation", truncation, TRUNCATIONS)
        self.padding = _check_choice("padding", padding, PADDINGS)
        self.feature_mean = feature_mean
        self.feature_scale = feature_scale
        self.double_precision = double_precision
        self.channel_axis = channel_axis
        if front_end == "stft":  # FeatureExtractionMixin leaves these two names out of the saved file
            self.mel_filters = self._make_mel_filters()  # (bins, F)
            self.window = torch.hann_window(fft_window_size, dtype=torch.float64 if double_precision else torch.float32)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "LogMelFeatureExtractor":
        """The settings of a family of audio encoders, some of them changed."""
        _check_choice("preset", name, tuple(PRESETS))
        return cls(**{**PRESETS[name], **overrides})

    @property
    def num_samples(self) -> int:
        """Length to which every waveform is brought, in samples."""
        if self.num_frames is not None:
            return (self.num_frames - 1) * self.hop_length + self.fft_window_size
        return round(self.max_length_s * self.sampling_rate)

    def __call__(
        self,
        raw_speech: np.ndarray | torch.Tensor | Sequence[np.ndarray] | Sequence[torch.Tensor] | Sequence[float],
        truncation: str | bool | None = None,
        padding: str | bool | None = None,
        max_length: int | None = None,
        sampling_rate: int | None = None,
        return_tensors: str | TensorType | None = None,
        device: str | torch.device = "cpu",
    ) -> BatchFeature:
        """Spectrograms of one or several mono clips.

        Args:
            raw_speech: one waveform (samples,), a batch (B, samples), or a list of waveforms of any lengths.
            truncation, padding: instead of the extractor's own. True and None mean the extractor's own.
            max_length: not used; a processor hands the length of its texts to every part of it.
            sampling_rate: of `raw_speech`, in Hz; checked against the extractor's.
            return_tensors: `pt` for tensors, `np` or None for NumPy arrays.
            device: where the spectrograms are computed and, with `return_tensors="pt"`, returned.

        Returns:
            `BatchFeature` with `input_features` (B, 1, frames, F), or (B, frames, F) without `channel_axis`; float32.

        Raises:
            ValueError: another sampling rate, an empty waveform, or more than one channel.
        """
        if sampling_rate is not None and sampling_rate != self.sampling_rate:
            raise ValueError(
                f"The waveforms have {sampling_rate} Hz, the model wants {self.sampling_rate} Hz: resample them first, "
                "for example with torchaudio.functional.resample."
            )
        cut = truncation if isinstance(truncation, str) else self.truncation
        fill = padding if isinstance(padding, str) else self.padding
        _check_choice("truncation", cut, TRUNCATIONS)
        _check_choice("padding", fill, PADDINGS)
        clips = [self._fit(clip, cut, fill) for clip in _as_clips(raw_speech)]
        features = torch.stack([self._spectrogram(clip.to(device)) for clip in clips])  # (B, frames, F)
        features = (features - self.feature_mean) / self.feature_scale
        if self.channel_axis:
            features = features[:, None]  # (B, 1, frames, F)
        if return_tensors is None or TensorType(return_tensors) == TensorType.NUMPY:
            return BatchFeature({"input_features": features.cpu().numpy()})
        return BatchFeature({"input_features": features}, tensor_type=return_tensors)

    def _fit(self, clip: torch.Tensor, truncation: str, padding: str) -> torch.Tensor:
        """Cut or lengthen a waveform to `num_samples` (Kaldi pads the spectrogram instead)."""
        missing = self.num_samples - len(clip)
        if missing <= 0:
            start = 0 if truncation == "first" else -missing // 2
            return clip[start : start + self.num_samples]
        if padding == "repeat":
            return clip.repeat(-(-self.num_samples // len(clip)))[: self.num_samples]
        if padding == "repeatpad":
            clip = clip.repeat(self.num_samples // len(clip))
        if self.front_end == "kaldi":
            return clip
        return torch.nn.functional.pad(clip, (0, self.num_samples - len(clip)), value=self.padding_value)

    def _spectrogram(self, clip: torch.Tensor) -> torch.Tensor:
        if self.num_frames is not None:
            return self._kaldi_filter_banks(clip, self.num_frames)
        return self._decibels(clip)

    def _decibels(self, waveform: torch.Tensor) -> torch.Tensor:
        """(samples,) -> mel bands in decibels (frames, F)."""
        half = self.fft_window_size // 2
        padded = torch.nn.functional.pad(waveform[None], (half, half), mode="reflect")[0]
        num_frames = (len(padded) - self.fft_window_size) // self.hop_length + 1
        mel = waveform.new_empty(num_frames, self.feature_size)
        window, filters = self.window.to(waveform.device), self.mel_filters.to(waveform.device)
        for start in range(0, num_frames, _FRAMES_AT_ONCE):
            block = mel[start : start + _FRAMES_AT_ONCE]
            first, last = start * self.hop_length, (start + len(block) - 1) * self.hop_length
            samples = padded[first : last + self.fft_window_size].to(window.dtype)
            frames = samples.unfold(0, self.fft_window_size, self.hop_length) * window  # (block, fft_window_size)
            spectrum = torch.fft.rfft(frames)[:, : len(filters)].to(torch.complex64)  # (block, bins)
            power = spectrum.real.square() + spectrum.imag.square()
            torch.mm(power, filters, out=block)  # all terms are positive, single precision does
        return 10 * mel.clamp_(min=_MIN_POWER).log10_()

    def _kaldi_filter_banks(self, waveform: torch.Tensor, frames: int) -> torch.Tensor:
        """(samples,) -> log energies (frames, F), zeros after the last frame of the clip."""
        banks = torchaudio.compliance.kaldi.fbank(
            waveform[None],
            sample_frequency=self.sampling_rate,
            window_type="hanning",
            num_mel_bins=self.feature_size,
            low_freq=self.frequency_min,
            high_freq=self.frequency_max,
            frame_length=1000 * self.fft_window_size / self.sampling_rate,  # milliseconds
            frame_shift=1000 * self.hop_length / self.sampling_rate,
        )  # (frames, F)
        missing = frames - len(banks)
        return torch.nn.functional.pad(banks, (0, 0, 0, missing))

    def _make_mel_filters(self) -> torch.Tensor:
        filters = torchaudio.functional.melscale_fbanks(
            n_freqs=self.fft_window_size // 2 + 1,
            f_min=self.frequency_min,
            f_max=self.frequency_max,
            n_mels=self.feature_size,
            sample_rate=self.sampling_rate,
            norm=self.mel_norm,
            mel_scale=self.mel_scale,
        )  # (bins, F)
        last_bin = int(filters.any(dim=1).nonzero().max())
        return filters[: last_bin + 1]


def _as_clips(raw_speech: Any) -> list[torch.Tensor]:
    """One or several waveforms of any type -> a list of float32 tensors (samples,)."""
    is_one = not isinstance(raw_speech[0], (np.ndarray, torch.Tensor, list, tuple)) or (
        isinstance(raw_speech, (np.ndarray, torch.Tensor)) and raw_speech.ndim == 1
    )
    clips = [torch.as_tensor(clip, dtype=torch.float32) for clip in ([raw_speech] if is_one else raw_speech)]
    for index, clip in enumerate(clips):
        if clip.ndim != 1 or not len(clip):
            raise ValueError(f"Waveform {index} has the shape {tuple(clip.shape)}; wanted is mono, (samples,).")
    return clips


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(choices)}, not {value!r}.")
    return value


__all__ = ["LogMelFeatureExtractor"]

"""Log-mel spectrograms on torchaudio: batched, deterministic, on any device."""

import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torchaudio.compliance.kaldi
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.audio_utils import mel_filter_bank
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
    # aiSFX, as its package computes spectrograms with librosa.
    "aisfx": {
        "front_end": "sound_effects",
        "sampling_rate": 44_100,
        "feature_size": 96,
        "hop_length": 1024,
        "fft_window_size": 2048,
        "max_length_s": 5.0,
        "frequency_min": 0.0,
        "frequency_max": 22_050.0,
        "mel_scale": "htk",
        "mel_norm": None,
        "padding": "pad",
        "feature_scale": 9.457798957824707,  # the largest value in the recordings that it was trained on
    },
}
# Of aiSFX (and of Essentia's `shift_scale_log`): what power is multiplied with before the logarithm.
_SOUND_EFFECTS_GAIN = 10_000.0
# Power below this counts as this, in both front ends of transformers: -100 dB.
_MIN_POWER = 1e-10
# How far single precision may be off before double precision takes over, in decibels.
_TOLERANCE_DB = 0.001
# Largest error of a band of a spectrum in single precision, as amplitude over the norm of the frame and the root of the
# band's largest weight (measured on noise, tones, sweeps, music, speech and environmental sounds). It is seven times
# the root mean square of a bin's; errors of neighbours differ, so that bands of many bins have no larger one.
_MAX_BAND_ERROR = 14 * 2**-24
# The ratio of powers at which a band of power P with noise e^2, that is 2 sqrt(P e^2) + e^2 off, is off by that.
_MIN_SIGNAL_TO_NOISE = ((10 ** (_TOLERANCE_DB / 10)) ** 0.5 - 1) ** -2
# Of 1, 1 - 1/32, 1 - 1/16, 1 - 1/8 and 0 the one that needs double precision least often (measured on music, speech
# and environmental sounds).
_PRE_EMPHASIS = 1 - 1 / 16
# Frames at a time, so that spectra stay in a CPU's cache, and filters at a time, so that products with bins that have
# no weight are left out (both measured).
_FRAMES_AT_ONCE, _DOUBLE_FRAMES_AT_ONCE, _FILTERS_AT_ONCE = 256, 192, 16
# Buffers of a thread by name. Memory that is fresh for every clip costs a fifth of its time in page faults (measured).
_SCRATCH = threading.local()


class LogMelFeatureExtractor(SequenceFeatureExtractor):
    r"""Waveforms -> log-mel spectrograms of one fixed length, so that a clip's features never depend on its batch.

    Long clips are cut to their first or middle window and short ones repeated or padded; nothing here is random
    (training crops at random when it decodes). Three front ends: `stft`, decibels as in `ClapFeatureExtractor`;
    `kaldi`, filter banks as in `ASTFeatureExtractor`; and `sound_effects`, log10(1 + 10,000 x power) of clips whose
    largest sample is 1, as in aiSFX. All agree with them on the same samples.

    `LogMelFeatureExtractor.from_preset("clap" | "clap_fused" | "wavcaps" | "ast" | "aisfx")` gives the settings of a
    family.

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
        mel_scale (`str`): `slaney` or `htk` (not of `kaldi`).
        mel_norm (`str`, *optional*): `slaney` or None (`stft` only; the filters of `sound_effects` have the sum 1).
        front_end (`str`): `stft`, `kaldi` or `sound_effects`.
        truncation (`str`): window of a long clip that is used, `first` or `center`.
        padding (`str`): of short clips; `repeatpad`: as many whole repeats as fit, then `padding_value`; `repeat`:
            repeats, the last one cut; `pad`: `padding_value` only.
        feature_mean, feature_scale (`float`): subtracted from the features, which are then divided.
        double_precision (`bool`): transform those frames in double precision in which single precision may be more
            than 0.001 dB off (`stft`): it is, by decibels, in bands far quieter than the loudest one. False leaves
            them as they are, which devices without double precision (MPS) need.
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
        front_end: Literal["stft", "kaldi", "sound_effects"] = "stft",
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
        _check_choice("front_end", front_end, ("stft", "kaldi", "sound_effects"))
        if (num_frames is not None) != (front_end == "kaldi"):
            raise ValueError("num_frames goes with front_end='kaldi', max_length_s with the other front ends.")
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
        self.mel_power = self._make_mel_power() if front_end == "stft" else None
        self.sum_one_filters = self._make_sum_one_filters() if front_end == "sound_effects" else None

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

    def to_dict(self) -> dict[str, Any]:
        """The settings, without what follows from them."""
        settings = super().to_dict()
        del settings["mel_power"], settings["sum_one_filters"]
        return settings

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
        features.sub_(self.feature_mean).div_(self.feature_scale)
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
        # Kaldi's needs one frame.
        wanted = self.fft_window_size if self.front_end == "kaldi" else self.num_samples
        return torch.nn.functional.pad(clip, (0, max(0, wanted - len(clip))), value=self.padding_value)

    def _spectrogram(self, clip: torch.Tensor) -> torch.Tensor:
        """(samples,) -> (frames, F)."""
        if self.num_frames is not None:
            return self._kaldi_filter_banks(clip, self.num_frames)
        if self.sum_one_filters is not None:
            return self._log_of_sound_effects(clip, self.sum_one_filters.to(clip.device))
        assert self.mel_power is not None  # one of the two is there
        power = self.mel_power.to(clip.device)(clip)
        return power.clamp_(min=_MIN_POWER).log10_().mul_(10)

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

    def _log_of_sound_effects(self, clip: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
        """(samples,) -> log10(1 + 10,000 x power) (frames, F), as aiSFX takes it: frames beyond the ends hold zeros."""
        peak = clip.abs().max()
        spectrum = torch.stft(
            clip / torch.where(peak > 0, peak, 1.0),
            self.fft_window_size,
            self.hop_length,
            window=torch.hann_window(self.fft_window_size, device=clip.device),
            pad_mode="constant",
            return_complex=True,
        )  # (bins, frames)
        power = torch.view_as_real(spectrum).square().sum(dim=-1)
        return power.T.matmul(filters).mul_(_SOUND_EFFECTS_GAIN).add_(1).log10_()

    def _make_sum_one_filters(self) -> torch.Tensor:
        """(bins, F) float32; the weights of each band have the sum 1."""
        filters = self._mel_filters(None)
        return torch.from_numpy(filters / filters.sum(axis=0)).float()

    def _make_mel_power(self) -> "_MelPower":
        if self.num_samples <= self.fft_window_size // 2:
            raise ValueError(f"max_length_s={self.max_length_s} is not longer than half a frame.")
        filters = self._mel_filters(self.mel_norm)
        return _MelPower(torch.from_numpy(filters), self.hop_length, self.double_precision)

    def _mel_filters(self, norm: str | None) -> np.ndarray:
        """(bins, F) in double precision: near a filter's edge torchaudio's single-precision weights are 0.1 % off."""
        return mel_filter_bank(
            num_frequency_bins=self.fft_window_size // 2 + 1,
            num_mel_filters=self.feature_size,
            min_frequency=self.frequency_min,
            max_frequency=self.frequency_max,
            sampling_rate=self.sampling_rate,
            norm=norm,
            mel_scale=self.mel_scale,
        )


class _MelPower(torch.nn.Module):
    r"""Mel bands of the power of Hann-windowed frames, as exact as in double precision, nearly as fast as in single.

    In single precision every bin errs in proportion to the norm of the frame: that is nothing beside a loud bin, and
    decibels in a quiet one. So frames are pre-emphasised, because in most sounds high frequencies are the quiet ones;
    and the error of each band is bounded, and frames are transformed again in double precision where it may be too
    large.

    Pre-emphasis acts on the windowed frame, y[n] = w[n] x[n] - a w[n-1] x[n-1]. Around the frame as a circle that
    multiplies bin k by 1 - a exp(-2 pi i k / N), which the filters take out again.

    Legend: B frames of N samples, K = N/2 + 1 bins, F bands.

    Args:
        filters: (K, F) float64, the weights of the bins.
        hop_length: step between frames, in samples.
        double_precision: whether doubtful frames are transformed again.
    """

    window: torch.Tensor
    window_step: torch.Tensor
    band_noise: torch.Tensor
    least_power: torch.Tensor
    window_double: torch.Tensor

    def __init__(self, filters: torch.Tensor, hop_length: int, double_precision: bool):
        super().__init__()
        self.frame_length = 2 * (len(filters) - 1)
        self.hop_length = hop_length
        self.double_precision = double_precision
        window = torch.hann_window(self.frame_length, dtype=torch.float64)
        angles = 2 * torch.pi * torch.arange(len(filters), dtype=torch.float64) / self.frame_length
        gains = 1 + _PRE_EMPHASIS**2 - 2 * _PRE_EMPHASIS * angles.cos()  # of powers
        emphasised_filters = filters / gains[:, None]
        band_noise = _MAX_BAND_ERROR**2 * emphasised_filters.amax(dim=0)  # over the energy of the frame
        # A frame begins at n = 1, where its window does: w[0] = w[N] = 0, and a shift changes no power.
        buffers = {
            "window": window.roll(-1).float(),
            "window_step": (window.roll(-1) - _PRE_EMPHASIS * window).float(),
            "band_noise": band_noise.float(),
            "least_power": (band_noise * _MIN_SIGNAL_TO_NOISE).float(),
        }
        if double_precision:
            buffers["window_double"] = window
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)
        self.spans = [_span_of_weights(group) for group in filters.split(_FILTERS_AT_ONCE, dim=1)]
        self._register_filters("emphasised_filters", emphasised_filters)
        if double_precision:
            self._register_filters("filters", filters)

    @torch.no_grad()
    def forward(self, clip: torch.Tensor) -> torch.Tensor:
        """(samples,) float32 -> (frames, F) float32; the first frame's middle is the first sample."""
        length, half = self.frame_length, self.frame_length // 2
        # Reflected at both ends, and one more, which the window takes for nothing.
        samples = _scratch("samples", len(clip) + length + 1, clip.device)
        samples[half : half + len(clip)] = clip
        samples[:half], samples[-half - 1 : -1] = clip[1 : half + 1].flip(0), clip[-half - 1 : -1].flip(0)
        samples[-1] = 0
        # Neighbours are subtracted before anything is rounded: where they are close, that is exact.
        steps = torch.sub(samples[1:], samples[:-1], out=_scratch("steps", len(samples) - 1, clip.device))
        steps = steps.unfold(0, length, self.hop_length)  # (frames, N)
        frames = samples[:-1].unfold(0, length, self.hop_length)
        power = clip.new_empty(len(frames), len(self.band_noise))
        energy = clip.new_empty(len(frames))
        for start in range(0, len(frames), _FRAMES_AT_ONCE):
            block = slice(start, start + _FRAMES_AT_ONCE)
            self._in_single(frames[block], steps[block], power[block], energy[block])
            if start == 0 and self.double_precision and self._most_are_doubtful(power[block], energy[block]):
                doubtful = torch.arange(len(frames), device=clip.device)  # so will the others be
                break
        else:
            doubtful = self._doubtful(power, energy) if self.double_precision else power.new_empty(0)
        for rows in doubtful.split(_DOUBLE_FRAMES_AT_ONCE) if len(doubtful) else ():
            power.index_copy_(0, rows, self._in_double(frames.index_select(0, rows)))
        return power

    def _in_single(self, frames: torch.Tensor, steps: torch.Tensor, power: torch.Tensor, energy: torch.Tensor) -> None:
        """(B, N) samples x[n-1] and steps x[n] - x[n-1] -> `power` (B, F), `energy` of the transformed (B,)."""
        # y[n] = w[n] (x[n] - x[n-1]) + (w[n] - a w[n-1]) x[n-1]
        emphasised = _scratch("emphasised", frames.numel(), frames.device).view(frames.shape)
        torch.mul(steps, self.window, out=emphasised).addcmul_(frames, self.window_step)
        torch.linalg.vector_norm(emphasised, dim=1, out=energy).square_()
        self._filter(torch.fft.rfft(emphasised), "emphasised_filters", power)

    def _doubtful(self, power: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
        """Rows of power (B, F) with energy (B,) that may be too far off.

        A band of power P and largest weight w, in a frame of norm r, is off by at most 2 e r sqrt(P w) where it stands
        out of the noise, with e = `_MAX_BAND_ERROR`.
        """
        rows = self._has_low_band(power, energy).nonzero()[:, 0]
        if not len(rows):
            return rows
        power, energy = power[rows], energy[rows, None]
        # What stays below the floor in any case does no harm.
        heard = power.sqrt() + (energy * self.band_noise).sqrt() > _MIN_POWER**0.5
        return rows[(heard & (power < energy * self.least_power)).any(dim=1)]

    def _has_low_band(self, power: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
        """Which frames could be doubtful, wherever the floor is: (B,)."""
        return torch.addcmul(power, energy[:, None], self.least_power, value=-1).amin(dim=1) < 0

    def _most_are_doubtful(self, power: torch.Tensor, energy: torch.Tensor) -> bool:
        half = len(power) / 2
        # The cheap test first.
        return int(self._has_low_band(power, energy).sum()) > half and len(self._doubtful(power, energy)) > half

    def _in_double(self, frames: torch.Tensor) -> torch.Tensor:
        """(B, N) samples -> power (B, F)."""
        windowed = _scratch("windowed", frames.numel(), frames.device, torch.float64).view(frames.shape)
        spectrum = torch.fft.rfft(windowed.copy_(frames).mul_(self.window_double))  # (B, K)
        # The terms of the sums to come are positive: single precision does for them.
        power = frames.new_empty(len(frames), len(self.band_noise))
        self._filter(spectrum[:, : self.spans[-1][1] // 2].to(torch.complex64), "filters", power)
        return power

    def _filter(self, spectrum: torch.Tensor, filters: str, power: torch.Tensor) -> None:
        """(B, K) complex, by the filters of that name -> `power` (B, F)."""
        squares = torch.view_as_real(spectrum).flatten(1)[:, : self.spans[-1][1]].square_()  # (B, 2 K)
        for group, (first, end) in enumerate(self.spans):
            weights = self.get_buffer(f"{filters}_{group}")
            bands = power[:, group * _FILTERS_AT_ONCE : (group + 1) * _FILTERS_AT_ONCE]
            torch.mm(squares[:, first:end], weights, out=bands)

    def _register_filters(self, name: str, filters: torch.Tensor) -> None:
        """Keep (K, F) filters as groups of neighbours, each on the bins where one of them has a weight."""
        # Real and imaginary parts of a bin follow each other.
        weights = filters.float().repeat_interleave(2, dim=0)  # (2 K, F)
        for group, (first, end) in enumerate(self.spans):
            columns = slice(group * _FILTERS_AT_ONCE, (group + 1) * _FILTERS_AT_ONCE)
            self.register_buffer(f"{name}_{group}", weights[first:end, columns].contiguous(), persistent=False)


def _scratch(name: str, size: int, device: torch.device, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A buffer (size,) with any content; the next call in the same thread takes it back."""
    if device.type != "cpu":  # has a caching allocator
        return torch.empty(size, dtype=dtype, device=device)
    buffers = _SCRATCH.__dict__
    if name not in buffers or len(buffers[name]) < size:
        with torch.inference_mode(False):  # else only inference mode could write to it
            buffers[name] = torch.empty(size, dtype=dtype, device=device)
    return buffers[name][:size]


def _span_of_weights(filters: torch.Tensor) -> tuple[int, int]:
    """The first and the end of the bins that have a weight in (K, F) filters, counted in real and imaginary parts."""
    bins = filters.any(dim=1).nonzero()
    return 2 * int(bins.min()), 2 * int(bins.max()) + 2


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

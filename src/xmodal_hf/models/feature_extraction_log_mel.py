"""Log-mel spectrograms on torchaudio: batched, deterministic, on any device."""

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
    # Settings of LAION-CLAP without fusion, from the preprocessor of laion/clap-htsat-unfused.
    "clap": {"sampling_rate": 48_000, "hop_length": 480, "frequency_min": 50.0, "frequency_max": 14_000.0},
    # The same settings with the filters of the fused checkpoints.
    "clap_fused": {
        "sampling_rate": 48_000,
        "hop_length": 480,
        "frequency_min": 50.0,
        "frequency_max": 14_000.0,
        "mel_scale": "htk",
        "mel_norm": None,
    },
    # Settings of WavCaps' HTSAT. Its clips may be longer (pass max_length_s); HTSAT itself takes 10 s.
    "wavcaps": {
        "sampling_rate": 32_000,
        "hop_length": 320,
        "frequency_min": 50.0,
        "frequency_max": 14_000.0,
        "padding": "pad",
    },
    # Settings of the Audio Spectrogram Transformer: 1024 frames of Kaldi filter banks, normalised by AudioSet's mean
    # and twice its deviation.
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
    # Settings of aiSFX, whose package computes spectrograms with librosa.
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
# Factor of the power before the logarithm in aiSFX (and in Essentia's `shift_scale_log`).
_SOUND_EFFECTS_GAIN = 10_000.0
# Minimum power, -100 dB, as in both front ends of transformers; smaller values are raised to it.
_MIN_POWER = 1e-10
PRECISIONS = {"single": torch.float32, "double": torch.float64}


class LogMelFeatureExtractor(SequenceFeatureExtractor):
    r"""Feature extractor for log-mel spectrograms of one fixed length, so that features never depend on the batch.

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
        precision (`str`): of the computation, `single` or `double`; the features are float32 in either case. In single
            precision, bands far quieter than the loudest one of their frame are off, by decibels in pure tones;
            `double` agrees with `ClapFeatureExtractor` to 0.001 dB there too, and is slower
            (benchmarks/results/log_mel.json). MPS devices have no double precision.
        channel_axis (`bool`): whether an axis of size 1 stands before the frames (CLAP) or not (AST).

    Raises:
        ValueError: If the preset, front end, padding or truncation is unknown.

    Example:
        >>> from xmodal_hf import LogMelFeatureExtractor
        >>> extractor = LogMelFeatureExtractor.from_preset("clap")
        >>> features = extractor(np.zeros(48_000), sampling_rate=48_000, return_tensors="pt")["input_features"]
        >>> features.shape  # (B, 1, frames, F)
        torch.Size([1, 1, 1001, 64])
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
        precision: Literal["single", "double"] = "single",
        channel_axis: bool = True,
        **kwargs: Any,
    ):
        kwargs.setdefault("return_attention_mask", False)
        # Files of earlier versions name the precision by this argument.
        in_double = kwargs.pop("double_precision", None)
        if in_double is not None:
            precision = "double" if in_double else "single"
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
        self.precision = _check_choice("precision", precision, tuple(PRECISIONS))
        self.channel_axis = channel_axis
        if num_frames is None and self.num_samples <= fft_window_size // 2:
            raise ValueError(f"max_length_s={max_length_s} is not longer than half a frame.")
        # (bins, F) in double precision: near a filter's edge torchaudio's single-precision weights are 0.1 % off.
        # transformers writes no attribute of this name into preprocessor_config.json.
        self.mel_filters = None if front_end == "kaldi" else torch.from_numpy(self._make_mel_filters())

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
            raw_speech: Waveform (samples,), a batch (B, samples), or a list of waveforms of any lengths.
            truncation, padding: Settings in place of the extractor's own. True and None mean the extractor's own.
            max_length: Argument that is ignored: processors pass the maximum length of texts to every component.
            sampling_rate: Sampling rate of `raw_speech`, in Hz, which is compared with the extractor's.
            return_tensors: Type of the result: `pt` for tensors, `np` or None for NumPy arrays.
            device: Device on which the spectrograms are computed and, with `return_tensors="pt"`, returned.

        Returns:
            `BatchFeature` with `input_features` (B, 1, frames, F), or (B, frames, F) without `channel_axis`; float32.

        Raises:
            ValueError: If the sampling rate is another one, a waveform is empty, or a clip has more than one channel.
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
        # The front end of Kaldi needs one frame.
        wanted = self.fft_window_size if self.front_end == "kaldi" else self.num_samples
        return torch.nn.functional.pad(clip, (0, max(0, wanted - len(clip))), value=self.padding_value)

    def _spectrogram(self, clip: torch.Tensor) -> torch.Tensor:
        """(samples,) -> (frames, F) float32."""
        clip = clip.to(PRECISIONS[self.precision])
        front_ends = {
            "stft": self._decibels,
            "kaldi": self._kaldi_filter_banks,
            "sound_effects": self._log_of_sound_effects,
        }
        return front_ends[self.front_end](clip).float()

    def _decibels(self, clip: torch.Tensor) -> torch.Tensor:
        """(samples,) -> decibels (frames, F), as CLAP takes them: frames beyond the ends hold reflections."""
        return self._mel_power(clip, "reflect").clamp_(min=_MIN_POWER).log10_().mul_(10)

    def _kaldi_filter_banks(self, waveform: torch.Tensor) -> torch.Tensor:
        """(samples,) -> log energies (num_frames, F), zeros after the last frame of the clip."""
        assert self.num_frames is not None  # num_frames is set with this front end
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
        missing = self.num_frames - len(banks)
        return torch.nn.functional.pad(banks, (0, 0, 0, missing))

    def _log_of_sound_effects(self, clip: torch.Tensor) -> torch.Tensor:
        """(samples,) -> log10(1 + 10,000 x power) (frames, F), as aiSFX takes it: frames beyond the ends hold zeros."""
        peak = clip.abs().max()
        power = self._mel_power(clip / torch.where(peak > 0, peak, 1.0), "constant")
        return power.mul_(_SOUND_EFFECTS_GAIN).add_(1).log10_()

    @torch.no_grad()
    def _mel_power(self, clip: torch.Tensor, pad_mode: str) -> torch.Tensor:
        """(samples,) -> mel bands of the power of Hann-windowed frames (frames, F), in the clip's precision."""
        assert self.mel_filters is not None
        spectrum = torch.stft(
            clip,
            self.fft_window_size,
            self.hop_length,
            window=torch.hann_window(self.fft_window_size, dtype=clip.dtype, device=clip.device),
            pad_mode=pad_mode,
            return_complex=True,
        )  # (bins, frames)
        power = torch.view_as_real(spectrum).square().sum(dim=-1)
        return power.T.matmul(self.mel_filters.to(clip.dtype).to(clip.device))

    def _make_mel_filters(self) -> np.ndarray:
        """(bins, F) float64; those of `sound_effects` have the sum 1 in each band."""
        filters = mel_filter_bank(
            num_frequency_bins=self.fft_window_size // 2 + 1,
            num_mel_filters=self.feature_size,
            min_frequency=self.frequency_min,
            max_frequency=self.frequency_max,
            sampling_rate=self.sampling_rate,
            norm=self.mel_norm if self.front_end == "stft" else None,
            mel_scale=self.mel_scale,
        )
        return filters / filters.sum(axis=0) if self.front_end == "sound_effects" else filters


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
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
    return value


__all__ = ["LogMelFeatureExtractor"]

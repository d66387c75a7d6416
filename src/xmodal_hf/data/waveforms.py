"""An encoded or decoded sound -> a mono waveform at the wanted rate.

Needs nothing of this package but `errors`, `formats`, `local_files` and `stream_lengths`: a demo Space carries it.

Shapes: n samples, C channels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from .errors import BadItemError, naming
from .formats import conversion, ending, is_unreadable
from .local_files import check_size, open_regular, read_regular
from .stream_lengths import is_chained, mended, needs_mending

# Shorter clips have not one frame of 25 ms, which front ends need.
MIN_SECONDS = 0.025
# Maximum number of values of all channels that are decoded from one clip, and of one waveform after resampling: 1 GiB
# of float32.
MAX_VALUES = 1 << 28
# Maximum amplitude of a sample, where full scale is 1. No recording is 40 dB above it: such samples are damaged, or
# integers that were not scaled.
MAX_AMPLITUDE = 100.0
# Maximum of integers of 32 bits that are taken for 16-bit samples: a recording whose full scale is 2^31 would be 96 dB
# below it.
_QUIET_INTEGERS = 1 << 15
# Number of values of all channels that are read at once.
_BLOCK = 1 << 19
# Number of samples that are decoded before the wanted ones: a frame of an mp3 file borrows bits from up to nine frames
# before it (`main_data_begin` of 511 bytes, ISO 11172-3 2.4.2.7), without which the first samples are wrong.
_MP3_LEAD = 10 * 1152
# Maximum number of entries of a filter of `resample`: 32 MB.
_MAX_FILTER_ENTRIES = 8_000_000
# The mean of C uncorrelated channels has 1 / C of their energy. Channels whose mean has less than a tenth of that
# cancel each other: two channels of equal energy do if their correlation is below -0.9.
_CANCELLED = 0.1

# Formats that libsndfile lacks, by the first bytes of their files (ISO 14496-12 4.3, RFC 8794 8, ASF 3.1, ISO 13818-7
# 6.2).
_HEAD_BYTES = 16
_FOREIGN_FORMATS: dict[str, Callable[[bytes], bool]] = {
    "MPEG-4 (m4a, mp4)": lambda head: head[4:8] == b"ftyp",
    "Matroska (webm, mka)": lambda head: head.startswith(b"\x1a\x45\xdf\xa3"),
    "Windows Media (wma)": lambda head: head.startswith(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"),
    "AAC (aac)": lambda head: head[:1] == b"\xff" and len(head) > 1 and head[1] & 0xF6 == 0xF0,
}


def decode_audio(
    source: bytes | str | os.PathLike, sampling_rate: int, *, max_seconds: float | None = None, offset: float = 0.0
) -> np.ndarray:
    """Decode what libsndfile reads (wav, flac, ogg, opus, mp3, aiff, ...), mix the channels down and resample.

    The length that a file declares is not trusted: streams that were written to a pipe declare none, or a wrong one.
    The samples that the file contains are decoded. Files without seeking are decoded up to the end of the window.

    Args:
        source: Encoded bytes, or the path of a local file, of which no more is read than the window needs.
        sampling_rate: Sampling rate of the returned waveform, in Hz.
        max_seconds: Maximum length of the waveform; of a longer clip only a window of this length is decoded.
        offset: Position of the window, from 0 (the start of the clip) to 1 (its end). A window that holds zeros only
            moves to the nearest sound, because clips of ESC-50 are padded with zeros and their caption describes the
            rest.

    Returns:
        Waveform of shape (n,), float32, the mean of the channels. If channels are negatives of each other (a
        correlation below -0.9), so that their mean would be close to zero, those unlike the first loud channel are
        inverted before.

    Raises:
        BadItemError: If the file is missing, not a regular file, empty, corrupt, not a sound file or in a format that
            libsndfile lacks (m4a, aac, wma, webm, Ogg with several sounds, which the detail names); if it holds no
            samples, samples that are all zero, not finite or beyond `MAX_AMPLITUDE`, or more than `MAX_VALUES` of them.
            The detail names the path.

    Example:
        >>> import soundfile
        >>> soundfile.write("tone.wav", np.sin(np.arange(16_000)), samplerate=16_000)
        >>> decode_audio("tone.wav", sampling_rate=8_000, max_seconds=0.5).shape
        (4000,)
    """
    with naming(None if isinstance(source, bytes) else os.fspath(source)):
        try:
            channels, file_rate = _read_window(_Sound(source), max_seconds, offset)
        except BadItemError:
            raise
        except FileNotFoundError as error:
            raise BadItemError("missing file", str(error.filename)) from error
        except soundfile.LibsndfileError as error:
            raise _unreadable(source, error) from error
        except Exception as error:  # damaged headers make soundfile raise more than its own errors
            raise BadItemError("corrupt audio", f"{type(error).__name__}: {error}") from error
        check_sounding(channels, file_rate)
        return resampled(mixed(channels), file_rate, sampling_rate)


def _unreadable(source: bytes | str | os.PathLike, error: Exception) -> BadItemError:
    """Error for a file that libsndfile does not read: a format that it lacks, by first bytes or ending, or damage."""
    if isinstance(source, bytes):
        head = source[:_HEAD_BYTES]
    else:
        with open_regular(source) as file:
            head = file.read(_HEAD_BYTES)
    for name, is_of in _FOREIGN_FORMATS.items():
        if is_of(head):
            return BadItemError("unsupported format", f"{name}: convert it with `ffmpeg -i INPUT OUTPUT.flac`")
    if not isinstance(source, bytes) and is_unreadable(name := os.fspath(source), "audio"):
        return BadItemError("unsupported format", f"{ending(name)}: convert it with `{conversion(name, 'audio')}`")
    return BadItemError("corrupt audio", f"{type(error).__name__}: {error}")


def window_of_samples(
    channels: np.ndarray, rate: int, sampling_rate: int, *, max_seconds: float | None = None, offset: float = 0.0
) -> np.ndarray:
    """The same as `decode_audio` of samples that are decoded: (n, C) float32 at `rate` Hz -> a waveform (m,)."""
    wanted = len(channels) if max_seconds is None else min(len(channels), round(max_seconds * rate))
    start = round(offset * (len(channels) - wanted))
    window = channels[start : start + wanted]
    if wanted < len(channels) and not window.any():
        sounding = np.flatnonzero(channels.any(axis=1))
        if len(sounding):
            nearest = int(sounding[np.abs(sounding - start - wanted // 2).argmin()])
            start = _start_around(nearest, wanted, len(channels))
            window = channels[start : start + wanted]
    return resampled(mixed(window), rate, sampling_rate)


def as_channels(samples: Any) -> np.ndarray:
    """Decoded samples (n,) or (C, n), as `datasets` and torchaudio have them, -> (n, C) float32 of full scale 1.

    Integers of 8, 16 or 32 bits are divided by their full scale; a Python list of integers, or an array of 64 bits,
    does not tell its full scale and is refused, and so are integers of 32 bits that all fit into 16.

    Raises:
        BadItemError: If the samples have another shape or type, or cannot be sound.
    """
    array = samples.detach().cpu().numpy() if isinstance(samples, torch.Tensor) else np.asarray(samples)
    if array.ndim not in (1, 2) or array.size == 0 or (array.ndim == 2 and len(array) > array.shape[1]):
        raise BadItemError(
            "unknown cell", f"samples have the shape (n,) or (channels, n), and these have {array.shape}"
        )
    if array.size > MAX_VALUES:
        raise BadItemError("audio too long", f"{array.size:,} samples, at most {MAX_VALUES:,}")
    channels = np.ascontiguousarray(np.atleast_2d(_full_scale_1(array)).T)
    check_samples(channels)
    return channels


def _full_scale_1(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f":
        return array.astype(np.float32)
    if array.dtype == np.uint8:  # in wav files of 8 bits, 128 is silence
        return (array.astype(np.float32) - 128) / 128
    if array.dtype == np.int32 and 0 < (peak := int(np.abs(array.astype(np.int64)).max())) <= _QUIET_INTEGERS:
        detail = f"integers of 32 bits up to {peak}, 96 dB below full scale: pass samples of 16 bits as int16"
        raise BadItemError("corrupt audio", detail)
    if array.dtype.kind == "i" and array.dtype.itemsize <= 4:
        return (array / -float(np.iinfo(array.dtype).min)).astype(np.float32)
    raise BadItemError(
        "corrupt audio",
        f"samples of type {array.dtype} have no known full scale: divide them by it (32768 for 16 bits) or pass int16",
    )


def check_samples(channels: np.ndarray) -> None:
    """Raise a BadItemError for samples that cannot be sound: not finite, or beyond `MAX_AMPLITUDE`."""
    if not np.isfinite(channels).all():
        raise BadItemError("corrupt audio", "samples that are not finite")
    if (peak := float(np.abs(channels).max(initial=0))) > MAX_AMPLITUDE:
        raise BadItemError("corrupt audio", f"samples up to {peak:.3g}, where full scale is 1")


def check_sounding(channels: np.ndarray, rate: int) -> None:
    """Raise a BadItemError for (n, C) samples at `rate` Hz that a model cannot learn from: none, zeros, too few."""
    if not len(channels):
        raise BadItemError("empty audio", "0 samples")
    check_samples(channels)
    if not channels.any():
        raise BadItemError("silent audio", "all samples are 0")
    if len(channels) < MIN_SECONDS * rate:
        raise BadItemError("audio too short", f"{len(channels)} samples at {rate} Hz")


def mixed(channels: np.ndarray) -> np.ndarray:
    """(n, C) -> (n,) the mean of the channels, of which none cancels another (see `decode_audio`)."""
    waveform = channels.mean(axis=1)
    num_channels = channels.shape[1]
    if num_channels == 1 or not len(channels):
        return waveform
    energies = np.square(channels, dtype=np.float64).sum(axis=0)  # (C,)
    if np.square(waveform, dtype=np.float64).sum() >= _CANCELLED * energies.mean() / num_channels:
        return waveform
    loud = channels[:, int((energies >= energies.max() / 2).argmax())].astype(np.float64)  # the first loud channel
    signs = np.where(loud @ channels < 0, -1, 1).astype(np.float32)  # (C,)
    return (channels * signs).mean(axis=1)


def resampled(waveform: np.ndarray, rate: int, sampling_rate: int) -> np.ndarray:
    """A waveform (n,) at `rate` Hz -> (m,) at `sampling_rate` Hz, as float32.

    Raises:
        BadItemError: If a rate is not positive, or the result has more than `MAX_VALUES` samples.
    """
    if rate <= 0:
        raise BadItemError("corrupt audio", f"a sampling rate of {rate} Hz")
    if len(waveform) * sampling_rate > MAX_VALUES * rate:
        raise BadItemError(
            "audio too long", f"{len(waveform):,} samples at {rate} Hz become too many at {sampling_rate} Hz"
        )
    waveform = np.ascontiguousarray(waveform, dtype=np.float32)
    if rate == sampling_rate:
        return waveform
    return resample(torch.from_numpy(waveform), *_simple_rates(rate, sampling_rate)).numpy()


def _simple_rates(file_rate: int, sampling_rate: int) -> tuple[int, int]:
    """Two rates in Hz of nearly that ratio whose greatest common divisor leaves small numbers.

    The filter of `resample` has about as many entries as the product of the two: gigabytes from 44,101 to 48,000 Hz.
    The nearest ratio of small numbers is off by a third of a cent of pitch at most, and common rates stay as they are.
    """
    ratio = Fraction(file_rate, sampling_rate)
    if ratio.numerator * ratio.denominator > _MAX_FILTER_ENTRIES:
        ratio = ratio.limit_denominator(max(1, int((_MAX_FILTER_ENTRIES / ratio) ** 0.5)))
    return ratio.numerator, ratio.denominator


class _Sound:
    """An encoded sound that can be opened several times: at its start, or at any frame."""

    def __init__(self, source: bytes | str | os.PathLike) -> None:
        self._content: bytes | None = None
        self._path: str | os.PathLike | None = None
        if isinstance(source, bytes | bytearray | memoryview):
            check_size(len(source), "")
            _refuse_chain(io.BytesIO(source), len(source))
            self._content = mended(bytes(source))
        else:
            with open_regular(source) as file:
                num_bytes = os.fstat(file.fileno()).st_size
                _refuse_chain(file, num_bytes)
                file.seek(0)
                is_wrong = needs_mending(file, num_bytes)
            self._path = source
            if not num_bytes or is_wrong:
                self._content = mended(read_regular(source))
        if self._content == b"":
            raise BadItemError("empty file", "0 bytes")

    def open(self) -> _Forward:
        """The sound from its first frame on.

        Raises:
            BadItemError: If the sampling rate of the file is not positive.
        """
        file: BinaryIO = io.BytesIO(self._content) if self._content is not None else open_regular(str(self._path))
        stream = _Forward(file)  # this closes the file
        if stream.samplerate <= 0:
            raise BadItemError("corrupt audio", f"a sampling rate of {stream.samplerate} Hz")
        return stream

    def opened_at(self, frame: int) -> _Forward:
        """The sound from a frame on: sought where that is possible, decoded up to it elsewhere."""
        stream = self.open()
        start = max(0, frame - (_MP3_LEAD if stream.format == "MP3" else 0))
        if start and not stream.sought(start):
            stream, start = self.open(), 0  # libsndfile has lost its position after a failure
        for _ in stream.blocks(frame - start):
            pass
        return stream

    def num_frames(self) -> int:
        """Number of frames: the declared number if the last of them exists, otherwise the number that can be read."""
        stream = self.open()
        declared = stream.frames
        if 0 < declared < np.iinfo(np.int64).max and stream.sought(declared - 1) and len(stream.read(2)) == 1:
            return int(declared)
        return sum(len(block) for block in self.open().blocks(None))


def _refuse_chain(file: BinaryIO, num_bytes: int) -> None:
    if is_chained(file, num_bytes):
        detail = "Ogg with several sounds, one after the other: convert it with `ffmpeg -i INPUT OUTPUT.flac`"
        raise BadItemError("unsupported format", detail)


class _Forward(soundfile.SoundFile):
    """A sound that is read onwards.

    `SoundFile.read` trusts the number of frames in the header, and asks for a seek after each read, which fails in
    streams that cannot be sought in; for one that says that it is not seekable it does neither.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._source = file
        super().__init__(file)

    def close(self) -> None:
        super().close()
        self._source.close()

    def seekable(self) -> bool:
        return False

    def sought(self, frame: int) -> bool:
        """Go to a frame, and return whether that was possible."""
        if not super().seekable():
            return False
        try:
            return self.seek(frame) == frame
        except (soundfile.SoundFileError, RuntimeError):
            return False

    def blocks(self, num_frames: int | None) -> Iterator[np.ndarray]:
        """The next frames, `num_frames` of them or all, in blocks (n, C) float32: never more memory than is filled."""
        at_once = max(1, _BLOCK // self.channels)
        while num_frames is None or num_frames > 0:
            count = at_once if num_frames is None else min(at_once, num_frames)
            block = self.read(count, dtype="float32", always_2d=True)
            if len(block):
                yield block
            if len(block) < count:
                return
            num_frames = None if num_frames is None else num_frames - count


def _read_window(sound: _Sound, max_seconds: float | None, offset: float) -> tuple[np.ndarray, int]:
    """Samples (n, C) of the window, and their rate in Hz."""
    first = sound.open()
    rate, channels = first.samplerate, first.channels
    if max_seconds is None:
        return _read_frames(first, None, channels), rate
    wanted = round(max_seconds * rate)
    start = round(offset * max(0, sound.num_frames() - wanted)) if offset else 0
    window = _read_frames(sound.opened_at(start) if start else first, wanted, channels)
    if len(window) == wanted and not window.any():
        nearest = _nearest_sound(sound, start, wanted)
        if nearest is not None:
            start = _start_around(nearest, wanted, sound.num_frames())
            window = _read_frames(sound.opened_at(start), wanted, channels)
    return window, rate


def _read_frames(stream: _Forward, num_frames: int | None, num_channels: int) -> np.ndarray:
    blocks, values = [np.empty((0, num_channels), np.float32)], 0
    for block in stream.blocks(num_frames):
        values += block.size
        if values > MAX_VALUES:
            raise BadItemError("audio too long", f"more than {MAX_VALUES:,} samples in {num_channels} channels")
        blocks.append(block)
    return np.concatenate(blocks)


def _nearest_sound(sound: _Sound, start: int, wanted: int) -> int | None:
    """The frame other than zero that is nearest to the middle of a window of zeros, the earlier of two; None: none."""
    middle = start + wanted // 2
    before, position = None, 0
    for block in sound.open().blocks(None):
        sounding = position + np.flatnonzero(block.any(axis=1))
        earlier, later = sounding[sounding < middle], sounding[sounding >= middle]
        if len(earlier):
            before = int(earlier[-1])
        if len(later):
            after = int(later[0])
            return before if before is not None and middle - before <= after - middle else after
        position += len(block)
        if before is not None and position - middle > middle - before:
            return before
    return before


def _start_around(nearest: int, wanted: int, num_frames: int) -> int:
    """Beginning of a window of `wanted` frames around a frame, moved so that it lies within the clip."""
    return int(np.clip(nearest - wanted // 2, 0, max(0, num_frames - wanted)))

"""Windows of sounds against whole files, headers that do not tell the length, channels, samples that are no sound."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_hf.data import stream_lengths, waveforms
from xmodal_hf.data.audio import load_waveform
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.data.waveforms import decode_audio, mixed

RATE = 8000
# Format, coding, and whether libsndfile can seek in it.
FORMATS = [
    *[("WAV", "PCM_16"), ("WAV", "FLOAT"), ("WAV", "GSM610"), ("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM")],
    *[("WAV", "G721_32"), ("WAV", "NMS_ADPCM_24"), ("W64", "GSM610"), ("AU", "G723_24"), ("AIFF", "DWVW_16")],
    *[("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("CAF", "ALAC_16")],
]


def sound(num_samples=20_000, seed=0):
    generator = np.random.default_rng(seed)
    tone = 0.3 * np.sin(np.arange(num_samples) * 0.2 * (1 + np.arange(num_samples) / num_samples))
    return (tone + 0.05 * generator.normal(size=num_samples)).astype(np.float32)


def encoded(samples, kind="WAV", rate=RATE, **options):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind, **options)
    return buffer.getvalue()


def without_length(content):
    """A FLAC whose total number of samples is 0: not known."""
    changed = bytearray(content)
    changed[21] &= 0xF0
    changed[22:26] = bytes(4)
    return bytes(changed)


CONTENTS = {f"{kind} {subtype}": encoded(sound(), kind, subtype=subtype) for kind, subtype in FORMATS}
CONTENTS["FLAC of unknown length"] = without_length(CONTENTS["FLAC PCM_16"])
WHOLE = {name: decode_audio(content, RATE) for name, content in CONTENTS.items()}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CONTENTS)), st.floats(0, 1), st.floats(0.03, 3), st.booleans())
def test_a_window_is_part_of_the_whole(tmp_path_factory, name, offset, seconds, from_file):
    whole = WHOLE[name]
    wanted = min(len(whole), round(seconds * RATE))
    start = round(offset * (len(whole) - wanted))
    source = CONTENTS[name]
    if from_file:
        source = tmp_path_factory.getbasetemp() / f"{name}.raw"  # the ending says nothing
        source.write_bytes(CONTENTS[name])
    window = decode_audio(source, RATE, max_seconds=seconds, offset=offset)
    assert np.abs(window - whole[start : start + wanted]).max() < 1e-5 and len(window) == wanted


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_silent_window_moves_to_the_sound_that_is_nearest_to_its_middle(data):
    """Against a search in the whole clip; blocks of 7 frames, so that sound lies at any place of a block."""
    length = data.draw(st.integers(30, 200))
    samples = np.zeros(length, np.float32)
    samples[data.draw(st.lists(st.integers(0, length - 1), min_size=1, max_size=4))] = 0.5
    wanted, offset = data.draw(st.integers(10, length)), data.draw(st.floats(0, 1))
    start = round(offset * (length - wanted))
    if not samples[start : start + wanted].any():
        nearest = min(np.flatnonzero(samples), key=lambda frame: (abs(frame - start - wanted // 2), frame))
        start = int(np.clip(nearest - wanted // 2, 0, length - wanted))
    expected = samples[start : start + wanted]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(waveforms, "_BLOCK", 7)
        content = encoded(samples, rate=100, subtype="FLOAT")
        assert np.array_equal(decode_audio(content, 100, max_seconds=wanted / 100, offset=offset), expected)
    cell = {"array": samples, "sampling_rate": 100}
    assert np.array_equal(load_waveform(cell, 100, max_seconds=wanted / 100, offset=offset), expected)
    assert np.array_equal(load_waveform(samples, 100, max_seconds=wanted / 100, offset=offset), expected)


def test_no_more_is_decoded_than_the_window(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", np.tile(sound(), 50), RATE)
    counted = []
    read = soundfile.SoundFile.read

    def counting(self, frames, **options):
        block = read(self, frames, **options)
        counted.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    for offset in (0.0, 0.5, 1.0):
        counted.clear()
        assert len(decode_audio(tmp_path / "long.wav", RATE, max_seconds=1.0, offset=offset)) == RATE
        assert sum(counted) <= RATE + 2


def wav_of_sizes(data_size, riff_size=None, extra=b"", **options):
    content = bytearray(encoded(sound(), **options) + extra)
    struct.pack_into("<I", content, content.index(b"data") + 4, data_size)
    if riff_size is not None:
        struct.pack_into("<I", content, 4, riff_size)
    return bytes(content)


def caf_of_size(size):
    content = bytearray(encoded(sound(), "CAF", subtype="PCM_16"))
    struct.pack_into(">Q", content, content.index(b"data", 20) + 4, size)
    return bytes(content)


def rf64_of_size(size):
    content = bytearray(encoded(sound(), "RF64", subtype="PCM_16"))
    struct.pack_into("<QQQ", content, content.index(b"ds64") + 8, size, size, size)
    return bytes(content)


def piped_mp3(samples=None):
    """A variable bit rate without the header that counts its frames, which only a file that can be sought in gets."""
    loud_and_quiet = sound(96_000) * np.repeat([1.0, 0.01], 48_000) if samples is None else samples
    content = encoded(loud_and_quiet, "MP3", 16_000, bitrate_mode="VARIABLE", compression_level=0.5)
    return content[: content.index(b"Xing")] + b"none" + content[content.index(b"Xing") + 4 :]


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "ULAW"])
@pytest.mark.parametrize("data_size", [0, 0xFFFFFFFF, 0x7FFFFFFF])
@pytest.mark.parametrize("riff_size", [None, 0, 0xFFFFFFFF])
def test_wavs_of_unknown_length_are_read_whole(data_size, riff_size, subtype, tmp_path):
    content = wav_of_sizes(data_size, riff_size, subtype=subtype)
    (tmp_path / "a.wav").write_bytes(content)
    expected = decode_audio(encoded(sound(), subtype=subtype), RATE)
    for source in (content, tmp_path / "a.wav"):
        assert np.array_equal(decode_audio(source, RATE), expected)
        assert np.array_equal(decode_audio(source, RATE, max_seconds=1.0, offset=0.5), expected[6000:14_000])


@pytest.mark.parametrize(
    "content",
    [
        caf_of_size(2**64 - 1),
        caf_of_size(0),
        rf64_of_size(0),
        rf64_of_size(2**64 - 1),
        (lambda au: au[:8] + b"\xff\xff\xff\xff" + au[12:])(encoded(sound(), "AU", subtype="PCM_16")),
        (lambda au: au[:8] + bytes(4) + au[12:])(encoded(sound(), "AU", subtype="PCM_16")),
        without_length(encoded(sound(), "FLAC")),
    ],
    ids=["caf -1", "caf 0", "rf64 0", "rf64 -1", "au -1", "au 0", "flac 0"],
)
def test_other_streams_of_unknown_length(content):
    assert np.abs(decode_audio(content, RATE) - sound()).max() < 1e-4
    assert np.abs(decode_audio(content, RATE, max_seconds=1.0, offset=1.0) - sound()[-RATE:]).max() < 1e-4


def test_a_flac_that_declares_more_than_there_is():
    content = bytearray(encoded(sound(), "FLAC"))
    content[22:26] = (50_000).to_bytes(4, "big")
    for offset in (0.0, 0.5, 1.0):
        window = decode_audio(bytes(content), RATE, max_seconds=1.0, offset=offset)
        start = round(offset * 12_000)
        assert np.abs(window - sound()[start : start + RATE]).max() < 1e-4


def flac_of_total(total, content=None):
    content = bytearray(encoded(sound(), "FLAC") if content is None else content)
    packed = int.from_bytes(content[18:26], "big")
    content[18:26] = ((packed >> 36 << 36) | total).to_bytes(8, "big")
    return bytes(content)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("total", [1, 4096, 19_999, 20_000])
@pytest.mark.parametrize("ends", [b"", b"TAG".ljust(128, b" ")], ids=["", "tagged"])
def test_a_flac_that_declares_less_than_there_is(subtype, total, ends, tmp_path):
    content = flac_of_total(total, encoded(sound(), "FLAC", subtype=subtype)) + ends
    (tmp_path / "a.flac").write_bytes(content)
    for source in (content, tmp_path / "a.flac"):
        assert np.abs(decode_audio(source, RATE) - sound()).max() < 1e-4
        window = decode_audio(source, RATE, max_seconds=1.0, offset=1.0)
        assert np.abs(window - sound()[-RATE:]).max() < 1e-4


@pytest.mark.parametrize("samples", [1, 192, 4095, 4096, 4097, 300_000])
def test_the_last_frame_of_a_flac_tells_its_length(samples):
    """One of a coded number of several bytes, whole and short last blocks; a true length needs no mending."""
    content = encoded(sound(samples), "FLAC")
    assert stream_lengths.mended(content) == content
    if samples > 1:
        assert stream_lengths.mended(flac_of_total(samples - 1, content)) == content


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "PCM_U8"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_wav_that_declares_less_than_there_is(subtype, share, tmp_path):
    """As of a recorder that died: the sizes are those of an earlier moment."""
    whole = encoded(sound(), subtype=subtype)
    start = whole.index(b"data") + 8
    size = int(share * (len(whole) - start)) // 6 * 6
    content = bytearray(whole)
    struct.pack_into("<I", content, start - 4, size)
    struct.pack_into("<I", content, 4, start + size - 8)
    (tmp_path / "a.wav").write_bytes(content)
    expected = decode_audio(whole[:start] + whole[start:], RATE)
    for source in (bytes(content), tmp_path / "a.wav"):
        decoded = decode_audio(source, RATE)
        assert np.array_equal(decoded[: len(expected)], expected) and len(decoded) == len(expected)


@pytest.mark.parametrize(
    "after",
    [
        b"",
        b"x",
        b"LIST" + struct.pack("<I", 4) + b"INFO",
        b"LIST" + struct.pack("<I", 400) + b"cut off",
        b"abcd" + struct.pack("<I", 3) + b"xyz",
        b"abcd" + struct.pack("<I", 3) + b"xyz\0" + b"cue " + struct.pack("<I", 4) + bytes(4),
        b"TAG".ljust(128, b" "),
        b"ID3\3" + bytes(60),
        bytes(512),
    ],
    ids=["nothing", "a byte", "list", "cut list", "unknown chunk", "chunks", "ID3v1", "ID3v2", "zeros"],
)
def test_what_follows_the_samples_of_a_wav_is_no_sound(after):
    content = encoded(sound(), subtype="PCM_16")
    assert len(decode_audio(content + after, RATE)) == 20_000
    odd = encoded(sound(19_999), subtype="PCM_U8")  # with or without the byte that makes the size even
    for file in (odd, odd[: odd.index(b"data") + 8 + 19_999]):
        assert len(decode_audio(file + after, RATE)) == 19_999


def test_a_piped_mp3_is_read_whole():
    """libsndfile takes the bit rate of the first frame for that of all, and reads half of this one."""
    with soundfile.SoundFile(io.BytesIO(piped_mp3())) as believed:
        assert believed.frames < 60_000
    decoded = decode_audio(piped_mp3(), 16_000)
    assert 96_000 <= len(decoded) < 96_000 + 4 * 1152
    complete = decode_audio(encoded(sound(96_000) * np.repeat([1.0, 0.01], 48_000), "MP3", 16_000), 16_000)
    lag = np.argmax([decoded[lag : lag + 40_000] @ complete[:40_000] for lag in range(3000)])
    assert np.corrcoef(decoded[lag : lag + 40_000], complete[:40_000])[0, 1] > 0.95  # other bit rates
    window = decode_audio(piped_mp3(), 16_000, max_seconds=1.0, offset=1.0)
    assert np.abs(window - decoded[-16_000:]).max() < 1e-5


def test_a_wav_without_samples_is_empty_whatever_follows():
    listed = b"LIST" + struct.pack("<I", 4) + b"INFO"
    empty = encoded(np.zeros(0, np.float32), subtype="PCM_16")
    for content in (empty, empty + listed):
        with pytest.raises(BadItemError, match="empty audio"):
            decode_audio(content, RATE)


class TestChannels:
    @pytest.mark.parametrize("factor", [-1.0, -0.9999, -0.97])
    @pytest.mark.parametrize("kind", ["WAV", "FLAC"])
    def test_that_cancel_are_not_lost(self, factor, kind):
        tone = sound()
        waveform = decode_audio(encoded(np.stack([tone, factor * tone], 1), kind), RATE)
        assert np.corrcoef(waveform, tone)[0, 1] > 0.999
        assert np.abs(waveform).max() > 0.9 * np.abs(tone).max()

    def test_that_cancel_with_noise_of_their_own(self):
        generator = np.random.default_rng(1)
        noise = 0.02 * generator.normal(size=(20_000, 2)).astype(np.float32)
        waveform = mixed(np.stack([sound(), -sound()], 1) + noise)
        assert np.corrcoef(waveform, sound())[0, 1] > 0.99

    def test_of_eight_of_which_half_are_inverted(self):
        signs = np.array([1, -1, 1, 1, -1, -1, 1, -1], np.float32)
        assert np.allclose(mixed(sound()[:, None] * signs), sound(), atol=1e-6)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 6), st.integers(0, 1000))
    def test_that_do_not_cancel_are_averaged(self, num_channels, seed):
        channels = np.random.default_rng(seed).normal(size=(500, num_channels)).astype(np.float32)
        assert np.array_equal(mixed(channels), channels.mean(axis=1))


class TestSamples:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e19, 3.4e38, 32_768.0])
    def test_that_cannot_be_sound_are_a_bad_item_with_the_files_name(self, value, tmp_path):
        samples = sound()
        samples[700] = value
        soundfile.write(tmp_path / "wrong.wav", samples, RATE, subtype="FLOAT")
        for item in (str(tmp_path / "wrong.wav"), {"bytes": None, "path": str(tmp_path / "wrong.wav")}):
            with pytest.raises(BadItemError, match=r"corrupt audio: .*wrong\.wav: samples"):
                load_waveform(item, RATE)
        for item in (samples, {"array": samples, "sampling_rate": RATE}):
            with pytest.raises(BadItemError, match="corrupt audio: samples"):
                load_waveform(item, RATE)
        content = {"bytes": (tmp_path / "wrong.wav").read_bytes(), "path": "in a table.wav"}
        with pytest.raises(BadItemError, match=r"corrupt audio: in a table\.wav: samples"):
            load_waveform(content, RATE)

    @pytest.mark.parametrize("dtype, scale", [(np.int16, 2**15), (np.int32, 2**31), (np.int8, 128)])
    def test_that_are_integers_are_scaled(self, dtype, scale):
        samples = (sound() * scale * 0.9).astype(dtype)
        for item in (samples, torch.from_numpy(samples), {"array": samples, "sampling_rate": RATE}):
            assert np.allclose(load_waveform(item, RATE), samples / scale, atol=1e-7)

    def test_that_fit_into_16_bits_are_not_taken_for_32(self):
        """They would be 96 dB too quiet."""
        samples = (sound() * 2**15 * 0.9).astype(np.int32)
        with pytest.raises(BadItemError, match=r"corrupt audio: integers of 32 bits up to .* as int16"):
            load_waveform({"array": samples, "sampling_rate": RATE}, RATE)
        assert not load_waveform(np.zeros(8000, np.int32), RATE).any()

    def test_of_unsigned_bytes_have_their_silence_at_128(self):
        samples = (128 + sound() * 100).astype(np.uint8)
        assert np.allclose(load_waveform(samples, RATE), (samples.astype(float) - 128) / 128)

    @pytest.mark.parametrize("samples", [[1, -5, 3000], np.array([1, -5, 3000]), np.array([True, False])])
    def test_of_unknown_scale_are_refused(self, samples):
        with pytest.raises(BadItemError, match="have no known full scale: divide them by it"):
            load_waveform({"array": samples, "sampling_rate": RATE}, RATE)

    def test_of_a_silent_file_are_a_bad_item_and_those_of_a_callers_array_are_not(self):
        with pytest.raises(BadItemError, match="silent audio"):
            load_waveform({"array": np.zeros(8000), "sampling_rate": RATE}, RATE)
        assert not load_waveform(np.zeros(8000), RATE).any()


class Decoder:
    """As torchcodec's, which `datasets` gives."""

    def __init__(self, samples, cell=None):
        self._samples = samples
        if cell is not None:
            self._hf_encoded = cell

    def get_all_samples(self):
        return type("Samples", (), {"data": torch.from_numpy(self._samples.T.copy()), "sample_rate": RATE})


class TestForms:
    def test_of_one_sound(self, tmp_path):
        content = encoded(sound(), subtype="FLOAT")
        (tmp_path / "a.wav").write_bytes(content)
        path = str(tmp_path / "a.wav")
        forms = [content, bytearray(content), path, tmp_path / "a.wav", f"file://{path}", {"path": path}]
        forms += [{"bytes": content, "path": None}, {"bytes": None, "path": path}, {"bytes": content}]
        forms += [{"array": sound(), "sampling_rate": RATE}, {"array": sound().tolist(), "sampling_rate": float(RATE)}]
        forms += [{"path": path, "array": sound()[None], "sampling_rate": RATE}, sound(), torch.from_numpy(sound())]
        forms += [
            sound().tolist(),
            Decoder(sound()[:, None]),
            Decoder(np.zeros((2, 1)), {"bytes": content, "path": None}),
        ]
        for form in forms:
            assert np.array_equal(load_waveform(form, RATE), sound())
            window = load_waveform(form, RATE, max_seconds=1.0, offset=0.5)
            assert np.array_equal(window, sound()[6000:14_000])

    def test_other_rates_are_resampled(self):
        content = encoded(sound(), subtype="FLOAT")
        expected = load_waveform(content, 16_000)
        assert len(expected) == 40_000
        assert np.array_equal(load_waveform({"array": sound(), "sampling_rate": RATE}, 16_000), expected)
        assert np.array_equal(load_waveform(Decoder(sound()[:, None]), 16_000), expected)

    @pytest.mark.parametrize(
        "item, message",
        [
            (3, "unknown cell: int is no sound"),
            (
                {"samples": [0.5]},
                "unknown cell: a sound has bytes, a path or array and sampling_rate, this cell: samples",
            ),
            ({"array": [0.5] * 800}, "unknown cell: an array needs its sampling_rate in Hz, got None"),
            ({"array": np.zeros((800, 2)), "sampling_rate": RATE}, r"have the shape \(n,\) or \(channels, n\)"),
            (np.zeros((2, 800)), r"a clip is a mono waveform \(samples,\), this one has the shape \(2, 800\)"),
            (np.zeros(0), r"have the shape \(n,\)"),
            (None, "no media"),
        ],
    )
    def test_what_is_no_sound(self, item, message):
        with pytest.raises(BadItemError, match=message):
            load_waveform(item, RATE)


@pytest.mark.parametrize(
    "content, name",
    [
        (b"\0\0\0\x20ftypM4A \0\0\0\0" + bytes(500), "m4a"),
        (b"\x1a\x45\xdf\xa3" + bytes(500), "webm"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11" + bytes(500), "wma"),
        (b"\xff\xf1\x50\x80" + bytes(500), "aac"),
    ],
)
def test_formats_that_libsndfile_lacks_are_named(content, name, tmp_path):
    (tmp_path / "a.wav").write_bytes(content)
    for source in (content, tmp_path / "a.wav"):
        with pytest.raises(BadItemError, match=rf"unsupported format: .*{name}.*convert it with `ffmpeg -i"):
            decode_audio(source, RATE)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_with_several_sounds_is_named(subtype, tmp_path):
    """libsndfile would read the first one alone."""
    first, second = (encoded(sound(), "OGG", subtype=subtype) for _ in range(2))
    (tmp_path / "a.ogg").write_bytes(first + second)
    for source in (first + second, tmp_path / "a.ogg"):
        with pytest.raises(BadItemError, match=r"unsupported format: .*Ogg with several sounds.*ffmpeg -i INPUT"):
            decode_audio(source, RATE, max_seconds=0.1)
    assert len(decode_audio(first, RATE)) > 0


def test_no_header_makes_us_take_memory(monkeypatch):
    """4 GHz, 1024 channels, 2^36 samples: blocks are filled before the next one is asked for."""
    content = bytearray(encoded(sound(), subtype="PCM_16"))
    struct.pack_into("<I", content, 24, 0x7FFFFFFF)
    with pytest.raises(BadItemError, match="audio too short"):
        decode_audio(bytes(content), RATE, max_seconds=1000.0)
    struct.pack_into("<I", content, 24, 1)
    with pytest.raises(BadItemError, match="audio too long"):
        decode_audio(bytes(content), 48_000)
    monkeypatch.setattr(waveforms, "MAX_VALUES", 10_000)
    with pytest.raises(BadItemError, match="audio too long"):
        decode_audio(encoded(sound()), RATE)


@pytest.mark.parametrize("seconds", [2, 40])  # of 40 seconds, the header is read before the file
@pytest.mark.parametrize("declared", [1, 5, 2**20])
def test_an_mp3_that_declares_another_number_of_frames_is_read_whole(declared, seconds, tmp_path):
    content = bytearray(encoded(sound(seconds * 16_000), "MP3", 16_000))
    whole = decode_audio(bytes(content), 16_000)
    assert len(whole) >= seconds * 16_000
    struct.pack_into(">I", content, content.index(b"Xing") + 8, declared)
    (tmp_path / "a.mp3").write_bytes(content)
    for source in (bytes(content), tmp_path / "a.mp3"):
        assert len(decode_audio(source, 16_000)) >= seconds * 16_000
        window = decode_audio(source, 16_000, max_seconds=0.5, offset=0.9)
        assert len(window) == 8_000 and np.abs(window).max() > 0.1


@pytest.mark.parametrize("ending", ["m4a", "aac", "wma", "webm"])
def test_a_file_of_a_foreign_format_is_named_by_its_ending_where_its_content_says_nothing(ending, tmp_path):
    (tmp_path / f"a.{ending}").write_bytes(bytes(500))
    with pytest.raises(BadItemError, match=rf"unsupported format: .*ffmpeg -i .*a\.{ending} .*a\.flac"):
        load_waveform({"bytes": None, "path": str(tmp_path / f"a.{ending}")}, RATE)


def test_equal_faults_have_equal_details_however_many_files_are_open(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no sound at all")
    details = []
    with open(tmp_path / "a.wav", "rb"):  # takes a number
        with pytest.raises(BadItemError) as caught:
            decode_audio(tmp_path / "a.wav", RATE)
        details.append(caught.value.detail)
    with pytest.raises(BadItemError) as caught:
        decode_audio(tmp_path / "a.wav", RATE)
    assert caught.value.detail == details[0] and "name=" not in details[0]

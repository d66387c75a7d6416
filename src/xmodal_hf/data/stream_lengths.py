"""Headers of sounds that do not say how much follows, as written to pipes, mended for libsndfile.

libsndfile reads no more than a header declares, and what it declares may be nothing (wav, au and RF64 of size 0), no
number (caf, RF64) or, of an mp3 without a Xing header, an estimate from the bit rate of its first frame, which of a
variable bit rate can be less than half. Players read to the end of the file, and so do we. FLAC, aiff and w64 need no
mending. Needs nothing of this package, so that a demo Space carries it.
"""

from __future__ import annotations

import struct

# From so many bytes one sees whether a header needs mending.
HEAD_BYTES = 1 << 16
_UNKNOWN_64 = (0, 2**64 - 1)
# MPEG audio, layer III (ISO 11172-3 2.4.2.3, 13818-3): kilobits a second by index, and rates in Hz of MPEG-1.
_BIT_RATES = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44_100, 48_000, 32_000)
_XING_FRAMES, _XING_BYTES = 1, 2  # flags of the fields that a Xing header has
_ID3V1_BYTES = 128


def needs_mending(head: bytes, num_bytes: int) -> bool:
    """Whether a sound that begins with `head`, its first `HEAD_BYTES`, and has `num_bytes` may need `mended`."""
    if head[:4] in (b"RIFF", b"RF64", b"caff", b".snd"):
        return _size_field(head) is not None
    start = _first_mp3_frame(head)
    return start is not None and not _declares_its_length(head, start, num_bytes)


def mended(content: bytes) -> bytes:
    """A sound with its real length in its header; any other content as it is."""
    if content[:4] == b".snd" and content[8:12] == bytes(4):
        return content[:8] + b"\xff\xff\xff\xff" + content[12:]  # "to the end of the file"
    field = _size_field(content)
    if field is not None:
        layout, position, data = field
        if _is_chain_of_chunks(content, data):
            return content
        size = struct.pack(layout, min(len(content) - data, 2**32 - 2) if layout == "<I" else len(content) - data)
        mended_size = content[:position] + size + content[position + len(size) :]
        if content[:4] != b"RIFF":
            return mended_size
        return mended_size[:4] + struct.pack("<I", min(len(content) - 8, 2**32 - 2)) + mended_size[8:]
    start = _first_mp3_frame(content)
    if start is None or _declares_its_length(content, start, len(content)):
        return content
    return _with_xing_header(content, start)


def _size_field(content: bytes) -> tuple[str, int, int] | None:
    """The layout and place of a size that is not known, and where the samples begin; None: all is known."""
    if content[:4] == b".snd" and content[8:12] == bytes(4):
        return ">I", 8, int.from_bytes(content[4:8], "big")
    if content[:4] == b"caff":
        return _caf_size_field(content)
    if content[:4] not in (b"RIFF", b"RF64") or content[8:12] != b"WAVE":
        return None
    position, wide_size = 12, None
    while position + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        if name == b"ds64" and position + 24 <= len(content):
            wide_size = position + 16
        if name == b"data":
            if wide_size is not None and content[:4] == b"RF64":
                is_unknown = struct.unpack_from("<Q", content, wide_size)[0] in _UNKNOWN_64
                return ("<Q", wide_size, position + 8) if is_unknown else None
            return ("<I", position + 4, position + 8) if size == 0 else None
        position += 8 + size + size % 2
    return None


def _caf_size_field(content: bytes) -> tuple[str, int, int] | None:
    position = 8
    while position + 12 <= len(content):
        name, size = struct.unpack_from(">4sQ", content, position)
        if name == b"data":
            return (">Q", position + 4, position + 12) if size in _UNKNOWN_64 else None
        position += 12 + size
    return None


def _is_chain_of_chunks(content: bytes, position: int) -> bool:
    """Whether what follows is nothing, or nothing but chunks of a wav to the last byte: there really are no samples."""
    while position + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, position)
        if not all(32 <= byte < 127 for byte in name):
            return False
        position += 8 + size + size % 2
    return position == len(content)


def _first_mp3_frame(content: bytes) -> int | None:
    """Where the first frame of an mp3 begins, after an ID3 tag; None for anything else."""
    start = 0
    if content[:3] == b"ID3" and len(content) >= 10:
        size = 0
        for byte in content[6:10]:
            size = size << 7 | byte & 127
        start = 10 + size
    length = _frame_length(content, start)
    if length is None or _frame_length(content, start + length) is None:  # two in a row are no accident
        return None
    return start


def _frame_length(content: bytes, position: int) -> int | None:
    """The bytes of the frame of layer III at a position; None where there is none."""
    header = content[position : position + 4]
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2 or header[1] & 0x18 == 0x08:
        return None
    bit_rate, rate_index = header[2] >> 4, header[2] >> 2 & 3
    if bit_rate in (0, 15) or rate_index == 3:
        return None
    version = header[1] >> 3 & 3  # 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
    rate = _RATES_HZ[rate_index] // {3: 1, 2: 2, 0: 4}[version]
    samples = 1152 if version == 3 else 576
    return samples // 8 * _BIT_RATES[version == 3][bit_rate] * 1000 // rate + (header[2] >> 1 & 1)


def _xing_offset(content: bytes, frame: int) -> int:
    """Where in a frame a Xing header would lie: after its side information."""
    is_mpeg_1, is_mono = content[frame + 1] >> 3 & 3 == 3, content[frame + 3] >> 6 == 3
    return 4 + {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}[is_mpeg_1, is_mono]


def _declares_its_length(content: bytes, start: int, num_bytes: int) -> bool:
    """Whether an mp3 has a Xing header with as many bytes as the file has, and no fewer frames."""
    place = start + _xing_offset(content, start)
    if content[place : place + 4] not in (b"Xing", b"Info"):
        return False
    flags, counted, declared = struct.unpack_from(">III", content.ljust(place + 16, b"\0"), place + 4)
    if flags & (_XING_FRAMES | _XING_BYTES) != _XING_FRAMES | _XING_BYTES:
        return False
    if not 0 <= num_bytes - start - declared <= _ID3V1_BYTES + declared // 100:
        return False
    num_frames, end = _walk_frames(content, start)
    if len(content) < num_bytes:  # the beginning: frames are about twice as long later on at most, or all are read
        num_frames = num_frames * declared // (2 * (end - start))
    return counted >= num_frames - 2  # some writers count the frame of the header, some do not


def _walk_frames(content: bytes, start: int) -> tuple[int, int]:
    """How many whole frames follow each other from a position on, and where they end."""
    position, num_frames = start, 0
    while (length := _frame_length(content, position)) is not None:
        position, num_frames = position + length, num_frames + 1
    return num_frames, position


def _with_xing_header(content: bytes, start: int) -> bytes:
    """An mp3 behind a frame of silence whose Xing header counts its frames; a wrong header is left out."""
    place = start + _xing_offset(content, start)
    if content[place : place + 4] in (b"Xing", b"Info"):
        start += _frame_length(content, start) or 0
    num_frames, position = _walk_frames(content, start)
    if not num_frames:
        return content
    # The same version, rate and channels; 64 kbit/s of MPEG-2 and 128 of MPEG-1 hold the header at any rate.
    head = bytes([0xFF, content[start + 1] | 1, (content[start + 2] & 0x0C) | 0x90, content[start + 3]])
    frame = bytearray(head.ljust(_frame_length(head, 0) or 0, b"\0"))
    fields = struct.pack(">4sIII", b"Info", _XING_FRAMES | _XING_BYTES, num_frames, len(frame) + position - start)
    offset = _xing_offset(head, 0)
    frame[offset : offset + len(fields)] = fields
    return bytes(frame) + content[start:]

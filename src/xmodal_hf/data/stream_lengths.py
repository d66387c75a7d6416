"""Headers of sounds that do not say how much follows, as written to pipes, mended for libsndfile.

libsndfile reads no more than a header declares, and what it declares may be nothing (wav, au and RF64 of size 0), no
number (caf, RF64), too little (a recording whose header was written at its start) or, of an mp3 without a Xing header,
an estimate from the bit rate of its first frame, which of a variable bit rate can be less than half. What is decoded is
what is there. Rules for those that declare too little:

- The samples of a wav end where its header says if nothing, a chunk, zeros or a tag of an mp3 player follow there.
  Where anything else follows, it is more samples.
- Each frame of a FLAC has its number and checksums: the last frame says how many samples there are.

Aiff and w64 need no mending. Needs nothing of this package, so that a demo Space carries it.
"""

from __future__ import annotations

import io
import struct
from functools import cache
from typing import BinaryIO

# Number of bytes that show whether a header needs mending.
HEAD_BYTES = 1 << 16
_UNKNOWN_64 = (0, 2**64 - 1)
# MPEG audio, layer III (ISO 11172-3 2.4.2.3, 13818-3): bit rates in kbit/s by index, and sampling rates in Hz of
# MPEG-1.
_BIT_RATES = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES_HZ = (44_100, 48_000, 32_000)
_XING_FRAMES, _XING_BYTES = 1, 2  # flags of the fields that a Xing header has
_ID3V1_BYTES = 128
# Names of chunks that may follow the samples of a wav file, whatever sizes they declare.
_KNOWN_CHUNKS = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"fact", b"cue ", b"smpl", b"inst", b"JUNK", b"PAD ", b"iXML")
# STREAMINFO of a FLAC (RFC 9639 8.2) begins here: the largest block and frame, and 64 bits that end with the total.
_FLAC_MAX_BLOCK, _FLAC_MAX_FRAME, _FLAC_TOTAL = slice(10, 12), slice(15, 18), slice(18, 26)
_FLAC_TOTAL_BITS = (1 << 36) - 1
_FLAC_TAIL = 1 << 17  # number of bytes to read if the largest frame is not known
# Beginning of a page of an Ogg file, flag of the first page of a stream, and bytes that hold at least one page (RFC
# 3533 6).
_OGG_PAGE, _OGG_BEGINS, _OGG_TAIL = b"OggS", 2, 1 << 17


def needs_mending(file: BinaryIO, num_bytes: int) -> bool:
    """Whether a sound of `num_bytes`, open at its beginning, may need `mended`; reads its ends only."""
    head = file.read(HEAD_BYTES)
    if head[:4] == b"fLaC":
        tail = _flac_tail(file, head, num_bytes)
        return _is_tagged(tail) or _flac_total(head, tail) is not None
    if head[:4] in (b"RIFF", b"RF64", b"caff", b".snd"):
        return _size_field(head) is not None or _wav_continues(file, head, num_bytes) is not None
    start = _first_mp3_frame(head)
    return start is not None and not _declares_its_length(head, start, num_bytes)


def mended(content: bytes) -> bytes:
    """A sound with its real length in its header; any other content as it is."""
    if content[:4] == b".snd" and content[8:12] == bytes(4):
        return content[:8] + b"\xff\xff\xff\xff" + content[12:]  # "to the end of the file"
    if content[:4] == b"fLaC":
        content = content[:-_ID3V1_BYTES] if _is_tagged(content) else content
        total = _flac_total(content, _flac_tail(io.BytesIO(content), content, len(content)))
        return content if total is None else content[:18] + total.to_bytes(8, "big") + content[26:]
    field = _size_field(content)
    if field is None:
        field = _wav_continues(io.BytesIO(content), content[:HEAD_BYTES], len(content))
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


def is_chained(file: BinaryIO, num_bytes: int) -> bool:
    """Whether an Ogg file of `num_bytes`, open at its beginning, holds one sound after the other (RFC 3533 4).

    Recordings of web radio do; libsndfile reads the first sound alone. The last page is then of a stream that does not
    begin where the first one does.
    """
    head = file.read(HEAD_BYTES)
    begun, position = set(), 0
    while head.startswith(_OGG_PAGE, position) and len(head) > position + 26 and head[position + 5] & _OGG_BEGINS:
        begun.add(head[position + 14 : position + 18])
        num_segments = head[position + 26]
        position += 27 + num_segments + sum(head[position + 27 : position + 27 + num_segments])
    if not begun:
        return False
    file.seek(max(0, num_bytes - _OGG_TAIL))
    tail = file.read()
    last = tail.rfind(_OGG_PAGE + b"\0")
    return last >= 0 and tail[last + 14 : last + 18] not in begun


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


def _wav_continues(file: BinaryIO, head: bytes, num_bytes: int) -> tuple[str, int, int] | None:
    """As `_size_field`, of a wav with more samples than it declares, by the rule of this module."""
    position = 12
    while head[:4] == b"RIFF" and head[8:12] == b"WAVE" and position + 8 <= len(head):
        name, size = struct.unpack_from("<4sI", head, position)
        if name == b"data":
            ends = {position + 8 + size, position + 8 + size + size % 2}
            more = all(_are_samples(file, end, num_bytes) for end in ends)
            return ("<I", position + 4, position + 8) if more else None
        position += 8 + size + size % 2
    return None


def _are_samples(file: BinaryIO, position: int, num_bytes: int) -> bool:
    """Whether a place after the samples of a wav holds more of them."""
    if position + 8 > num_bytes:
        return False
    file.seek(position)
    rest = file.read(HEAD_BYTES)
    if rest[:3] in (b"TAG", b"ID3") or rest[:4] in _KNOWN_CHUNKS or not any(rest):
        return False
    while position + 8 <= num_bytes:
        file.seek(position)
        name, size = struct.unpack("<4sI", file.read(8))
        if not all(32 <= byte < 127 for byte in name):
            return True
        position += 8 + size + size % 2
    return not num_bytes <= position <= num_bytes + 1  # a padding byte may make the size even


def _is_tagged(content: bytes) -> bool:
    """Whether a sound ends with a tag ID3v1, at which libsndfile's FLAC decoder loses its way."""
    return content[-_ID3V1_BYTES:].startswith(b"TAG") and len(content) > _ID3V1_BYTES


def _flac_tail(file: BinaryIO, head: bytes, num_bytes: int) -> bytes:
    """The end of a FLAC, which holds its last frame."""
    largest = int.from_bytes(head[_FLAC_MAX_FRAME], "big")
    file.seek(max(0, num_bytes - (largest + _ID3V1_BYTES if largest else _FLAC_TAIL)))
    return file.read()


def _flac_total(head: bytes, tail: bytes) -> int | None:
    """The eight bytes of a FLAC's header that hold its total, with that of its last frame, where that is larger."""
    packed = int.from_bytes(head[_FLAC_TOTAL], "big")
    declared = packed & _FLAC_TOTAL_BITS
    if not declared:  # libsndfile then reads to the end
        return None
    tail = tail[:-_ID3V1_BYTES] if _is_tagged(tail) else tail
    end = _end_of_last_frame(tail, int.from_bytes(head[_FLAC_MAX_BLOCK], "big"), declared)
    return None if end is None or end > _FLAC_TOTAL_BITS else packed - declared + end


def _end_of_last_frame(tail: bytes, max_block: int, declared: int) -> int | None:
    """End of the frame that ends with `tail`, in samples of a channel; None if that is no more than declared."""
    position = len(tail)
    while (position := tail.rfind(b"\xff", 0, position)) >= 0:
        end = _end_of_frame(tail[position : position + 16], max_block)
        if end is not None and end <= declared:
            return None
        if end is not None and _crc(tail[position:-2], 16, 0x8005) == int.from_bytes(tail[-2:], "big"):
            return end
    return None


def _end_of_frame(header: bytes, max_block: int) -> int | None:
    """The number of samples up to the end of a frame, from its header (RFC 9639 9.1); None where there is none."""
    if len(header) < 6 or header[1] & 0xFE != 0xF8 or header[3] & 1:
        return None
    ones = f"{header[4]:08b}".index("0") if header[4] != 0xFF else 8
    if ones in (1, 8):
        return None
    number, length = header[4] & (0x7F >> ones), max(ones, 1)
    for byte in header[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    size_code, position = header[2] >> 4, 4 + length
    extra = {6: 1, 7: 2}.get(size_code, 0)
    end = position + extra + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if size_code == 0 or end >= len(header) or _crc(header[:end], 8, 0x07) != header[end]:
        return None
    if extra:
        block = 1 + int.from_bytes(header[position : position + extra], "big")
    else:
        block = 192 if size_code == 1 else 576 << size_code - 2 if size_code < 6 else 256 << size_code - 8
    return number * (1 if header[1] & 1 else max_block) + block


def _crc(content: bytes, bits: int, polynomial: int) -> int:
    """The checksum of a FLAC's headers (8 bits) and frames (16 bits)."""
    table, mask, value = _crc_table(bits, polynomial), (1 << bits) - 1, 0
    for byte in content:
        value = (value << 8 & mask) ^ table[value >> bits - 8 ^ byte]
    return value


@cache
def _crc_table(bits: int, polynomial: int) -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> bits - 1 else 0)
            value &= (1 << bits) - 1
        table.append(value)
    return tuple(table)


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
    """Beginning of the first frame of an mp3, after an ID3 tag; None for anything else."""
    start = 0
    if content[:3] == b"ID3" and len(content) >= 10:
        size = 0
        for byte in content[6:10]:
            size = size << 7 | byte & 127
        start = 10 + size
    length = _frame_length(content, start)
    if length is None or _frame_length(content, start + length) is None:  # two frames in a row are not an accident
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
    """Place of a Xing header in a frame: after its side information."""
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
    # only the beginning is read: later frames are at most about twice as long; otherwise all are read
    if len(content) < num_bytes:
        num_frames = num_frames * declared // (2 * (end - start))
    return counted >= num_frames - 2  # some writers count the frame of the header and some do not


def _walk_frames(content: bytes, start: int) -> tuple[int, int]:
    """Number of complete frames that follow each other from a position on, and their end."""
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
    # The frame has the same version, rate and channels; 64 kbit/s of MPEG-2 and 128 of MPEG-1 hold the header at any
    # rate.
    head = bytes([0xFF, content[start + 1] | 1, (content[start + 2] & 0x0C) | 0x90, content[start + 3]])
    frame = bytearray(head.ljust(_frame_length(head, 0) or 0, b"\0"))
    fields = struct.pack(">4sIII", b"Info", _XING_FRAMES | _XING_BYTES, num_frames, len(frame) + position - start)
    offset = _xing_offset(head, 0)
    frame[offset : offset + len(fields)] = fields
    return bytes(frame) + content[start:]

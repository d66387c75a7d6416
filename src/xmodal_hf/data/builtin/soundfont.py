"""The built-in audio dataset: notes, phrases and drums of a General-MIDI soundfont, described in words.

The sounds are those of `TimGM6mb.sf2`, which the `pretty_midi` package ships (`pip install 'xmodal_hf[demo]'`), played
by `tinysoundfont` (`pip install --no-deps tinysoundfont`: it depends on a package for loudspeakers, which has to be
compiled and is not used). A clip is a function of its address, so nothing is stored: a row holds the address, and
decoding it renders the clip, in a few milliseconds.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from torchaudio.functional import resample

from ...messages import missing_package
from ..files import AUDIO_CELL

SPLIT_SIZES = {"train": 6000, "test": 400}
CLIP_SECONDS = 3.0
# Share of the (instrument, register, manner) combinations, and of the pairs of sources, that only the test split has.
TEST_FRACTION = 0.15
ADDRESS_SCHEME = "soundfont://"

_SEED = 20240811
# Sampling rate of the synthesizer, whose filters sound different at other rates. With a fixed one, a clip is the same
# sound at any rate.
_RENDER_RATE_HZ = 48_000
_LEAD_SECONDS, _GAP_SECONDS, _FADE_SECONDS = 0.1, 0.2, 0.01
# MIDI velocities: 20 dB apart, since amplitude is in proportion to velocity.
_VELOCITIES = {"loudly": 120, "quietly": 12}
_GAIN_DB = -3.0  # the loudest notes reach full scale without it (measured)
# After this time a stopped note is silent: longer than the synthesizer's fade of 0.01 s.
_STOP_SECONDS = 0.02
_DRUM_CHANNEL_FIRST_PITCH = 35  # General MIDI: 35 acoustic bass drum ... 81 open triangle
_NUM_PROGRAMS, _NUM_DRUMS = 128, 47
_CHANNEL, _DRUM_BANK = 0, 128
# MIDI pitches of the first note: all programs of this soundfont sound there, and at the steps below (tested).
_REGISTERS = {"low": (50, 51, 53), "middle": (59, 60, 62), "high": (70, 71, 72)}
# Manner -> ((semitones above the first note, seconds), ...).
_MANNERS = {
    "short note": ((0, 0.25),),
    "long note": ((0, 1.2),),
    "rising phrase": ((0, 0.3), (3, 0.3), (6, 0.4)),
    "falling phrase": ((6, 0.3), (3, 0.3), (0, 0.4)),
}
# Words by which the prompts of a family describe its instruments, in addition to their names.
_PROMPT_MANNERS, _PROMPT_REGISTERS = ("long note", "once"), ("middle", "")
_DRUM_MANNERS = {"once": ((0, 0.4),), "three times": ((0, 0.25), (0, 0.25), (0, 0.4))}


@dataclass(frozen=True)
class Event:
    """One thing heard: an instrument (program 0 to 127) or a drum (128 plus its number), and how it is played."""

    source: int
    manner: str
    register: str = ""
    loudness: str = "loudly"

    @property
    def is_drum(self) -> bool:
        return self.source >= _NUM_PROGRAMS

    @property
    def combination(self) -> str:
        """Key by which the split is made; loudness is not part of it."""
        return f"{self.source}|{self.register}|{self.manner}"


@dataclass(frozen=True)
class Clip:
    """One event, or two in sequence, and the pitches at which they start."""

    events: tuple[Event, ...]
    pitches: tuple[int, ...]


def load_soundfont(split: str = "train", *, num_clips: int | None = None, max_samples: int | None = None) -> Dataset:
    """Sounds with captions; the test split has combinations that the training split never has.

    Half of the clips are one event (an instrument in a register and a manner: 128 x 3 x 4, or a drum hit once or three
    times: 47 x 2), half are two events in sequence. A combination is held out when the SHA-256 of its key is below
    `TEST_FRACTION` (of single drum hits, none), likewise an unordered pair of sources. One-event test clips are
    held-out combinations; two-event test clips are held-out pairs of sources, of training combinations.

    Args:
        split: Split: `train` or `test`.
        num_clips: Number of clips. Default: the usual number of the split (`SPLIT_SIZES`).
        max_samples: Maximum number of clips; the first ones are kept. If None, all are.

    Returns:
        A `Dataset` with `id` ("train-17"), `audio` ({"bytes": None, "path": address}), `text` (three captions) and
        `family` (of the instrument: "Strings", ..., "Drums"; None for two events).

    Raises:
        ValueError: If the split is unknown.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"The split of soundfont must be one of {', '.join(SPLIT_SIZES)}, got {split!r}.")
    num_clips = SPLIT_SIZES[split] if num_clips is None else num_clips
    num_clips = num_clips if max_samples is None else min(num_clips, max_samples)
    clips = [make_clip(split, index) for index in range(num_clips)]
    features = Features(
        {
            "id": Value("string"),
            "audio": AUDIO_CELL,
            "text": List(Value("string")),
            "family": Value("string"),
        }
    )
    columns = {
        "id": [f"{split}-{index}" for index in range(num_clips)],
        "audio": [{"bytes": None, "path": f"{ADDRESS_SCHEME}{split}/{index}"} for index in range(num_clips)],
        "text": [captions(clip) for clip in clips],
        "family": [_family(clip.events[0].source) if len(clip.events) == 1 else None for clip in clips],
    }
    return Dataset.from_dict(columns, features=features)


def soundfont_captions(split: str = "train") -> list[str]:
    """All captions of a split of `load_soundfont`, without building its rows."""
    return [caption for index in range(SPLIT_SIZES[split]) for caption in captions(make_clip(split, index))]


def family_prompts() -> dict[str, list[str]]:
    """Instrument family -> descriptions of its instruments, by which zero-shot classification knows the family."""
    prompts: dict[str, list[str]] = {}
    for event in _all_events():
        if event.manner in _PROMPT_MANNERS and event.register in _PROMPT_REGISTERS:
            prompts.setdefault(_family(event.source), []).extend(_wordings(event))
    return prompts


def render_address(address: str, sampling_rate: int) -> np.ndarray:
    """The waveform of a row's address: float32 (samples,), `CLIP_SECONDS` long, at `sampling_rate` in Hz."""
    split, index = address.removeprefix(ADDRESS_SCHEME).split("/")
    return render(make_clip(split, int(index)), sampling_rate)


def make_clip(split: str, index: int) -> Clip:
    """The clip of an index: even ones are one event, odd ones two."""
    sequence = np.random.SeedSequence((_SEED, index), spawn_key=(list(SPLIT_SIZES).index(split),))
    generator = np.random.Generator(np.random.Philox(sequence))
    if index % 2:
        events = _draw_sequence(split, generator)
    else:
        combinations = _combinations(split == "test")
        events = (_with_loudness(combinations[(index // 2) % len(combinations)], generator),)
    return Clip(events, tuple(_draw_pitch(event, generator) for event in events))


def render(clip: Clip, sampling_rate: int) -> np.ndarray:
    """Play a clip at a rate in Hz: float32 (samples,)."""
    waveform = np.zeros(round(CLIP_SECONDS * _RENDER_RATE_HZ), dtype=np.float32)
    start = round(_LEAD_SECONDS * _RENDER_RATE_HZ)
    for event, pitch in zip(clip.events, clip.pitches, strict=True):
        sound = _play(event, pitch)[: len(waveform) - start]
        waveform[start : start + len(sound)] = sound
        start += len(sound) + round(_GAP_SECONDS * _RENDER_RATE_HZ)
    if sampling_rate == _RENDER_RATE_HZ:
        return waveform
    return resample(torch.from_numpy(waveform), _RENDER_RATE_HZ, sampling_rate).numpy()


def captions(clip: Clip) -> list[str]:
    """Three wordings of what is heard."""
    wordings = [_wordings(event) for event in clip.events]
    if len(wordings) == 1:
        return list(wordings[0])
    (clause, phrase, short), (next_clause, next_phrase, next_short) = wordings
    return [f"{clause}, then {next_clause}", f"{phrase} followed by {next_phrase}", f"{short}; then {next_short}"]


def _wordings(event: Event) -> tuple[str, str, str]:
    """(clause, noun phrase, short noun phrase) for one event."""
    name, loudness = _source_name(event.source), event.loudness
    noun, adjective = _with_article(name), {"loudly": "loud", "quietly": "quiet"}[loudness]
    if event.is_drum:
        hits = {"once": "hit", "three times": "three hits"}[event.manner]
        phrase = f"{_with_article(f'{adjective} hit')} of {noun}" if hits == "hit" else f"{adjective} {hits} of {noun}"
        return f"{noun} is hit {event.manner} {loudness}", phrase, f"{adjective} {name}, {hits}"
    what = f"{event.register} {event.manner}"
    register = {"low": "low", "middle": "mid-range", "high": "high"}[event.register]
    described = event.manner.replace("note", f"{register} note").replace("phrase", f"{register} phrase")
    return (
        f"{noun} plays {_with_article(described)} {loudness}",
        f"{_with_article(f'{adjective} {described}')} on {noun}",
        f"{adjective} {name}, {what}",
    )


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


@cache
def _source_name(source: int) -> str:
    """Name of a source in captions: "sawtooth lead synthesizer" for "Lead 2 (sawtooth)"."""
    midi = _import_pretty_midi()
    if source >= _NUM_PROGRAMS:
        return midi.note_number_to_drum_name(_DRUM_CHANNEL_FIRST_PITCH + source - _NUM_PROGRAMS).lower()
    name = midi.program_to_instrument_name(source)
    synth = re.fullmatch(r"(Lead|Pad|FX) \d \(?([^()]+)\)?", name)
    if synth:
        kind = {"Lead": "lead synthesizer", "Pad": "synthesizer pad", "FX": "synthesizer effect"}[synth[1]]
        return f"{synth[2].removesuffix(' + lead')} {kind}"
    name = re.sub(r"(.+) \((.+)\)", r"\2 \1", name).lower()  # "Acoustic Guitar (nylon)" -> "nylon acoustic guitar"
    return f"{name} sound" if _family(source) == "Sound Effects" else name


def _family(source: int) -> str:
    return "Drums" if source >= _NUM_PROGRAMS else _import_pretty_midi().program_to_instrument_class(source)


@cache
def _combinations(is_test: bool) -> tuple[Event, ...]:
    """Events (without loudness) of one side of the split, in the order of their hashes."""
    events = [event for event in _all_events() if _is_test_combination(event) == is_test]
    return tuple(sorted(events, key=lambda event: _hash_fraction(event.combination)))


def _all_events() -> Iterator[Event]:
    for source in range(_NUM_PROGRAMS):
        yield from (Event(source, manner, register) for register in _REGISTERS for manner in _MANNERS)
    for source in range(_NUM_PROGRAMS, _NUM_PROGRAMS + _NUM_DRUMS):
        yield from (Event(source, manner) for manner in _DRUM_MANNERS)


def _draw_sequence(split: str, generator: np.random.Generator) -> tuple[Event, ...]:
    """Two training combinations of different sources, whose pair of sources belongs to the split."""
    combinations = _combinations(False)
    while True:
        first, second = (combinations[index] for index in generator.integers(len(combinations), size=2))
        pair = "+".join(str(source) for source in sorted((first.source, second.source)))
        if first.source != second.source and _is_held_out(pair) == (split == "test"):
            return _with_loudness(first, generator), _with_loudness(second, generator)


def _with_loudness(event: Event, generator: np.random.Generator) -> Event:
    loudness = tuple(_VELOCITIES)[generator.integers(len(_VELOCITIES))]
    return Event(event.source, event.manner, event.register, loudness)


def _draw_pitch(event: Event, generator: np.random.Generator) -> int:
    if event.is_drum:
        return _DRUM_CHANNEL_FIRST_PITCH + event.source - _NUM_PROGRAMS
    return int(generator.choice(_REGISTERS[event.register]))


def _is_test_combination(event: Event) -> bool:
    """Single drum hits are all for training: a drum has only two combinations, and one at least must be heard there."""
    return _is_held_out(event.combination) and event.manner != "once"


def _is_held_out(key: str) -> bool:
    return _hash_fraction(key) < TEST_FRACTION


def _hash_fraction(key: str) -> float:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def _play(event: Event, pitch: int) -> np.ndarray:
    """One event at `_RENDER_RATE_HZ`, faded out: float32 (samples,)."""
    synthesizer, font = _SYNTHESIZER.synthesizer, _SYNTHESIZER.font
    # Notes that were played before must not be heard.
    synthesizer.sounds_off(_CHANNEL)
    synthesizer.generate(round(_STOP_SECONDS * _RENDER_RATE_HZ))
    bank, program = (_DRUM_BANK, 0) if event.is_drum else (0, event.source)
    synthesizer.program_select(_CHANNEL, font, bank, program, event.is_drum)
    parts = []
    for semitones, seconds in (_DRUM_MANNERS if event.is_drum else _MANNERS)[event.manner]:
        synthesizer.noteon(_CHANNEL, pitch + semitones, _VELOCITIES[event.loudness])
        stereo = memoryview(synthesizer.generate(round(seconds * _RENDER_RATE_HZ))).cast("f")
        parts.append(np.array(stereo, dtype=np.float32).reshape(-1, 2).mean(axis=1))
        synthesizer.noteoff(_CHANNEL, pitch + semitones)
    sound = np.concatenate(parts)
    fade = round(_FADE_SECONDS * _RENDER_RATE_HZ)
    sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    return sound


class _Synthesizer(threading.local):
    """The synthesizer of a thread, made when it first plays, and the number of the soundfont in it."""

    @cached_property
    def synthesizer(self) -> Any:
        return _import_tinysoundfont().Synth(gain=_GAIN_DB, samplerate=_RENDER_RATE_HZ)

    @cached_property
    def font(self) -> int:
        return self.synthesizer.sfload(str(Path(_import_pretty_midi().__file__).with_name("TimGM6mb.sf2")))


_SYNTHESIZER = _Synthesizer()


def _import_pretty_midi() -> Any:
    try:
        import pretty_midi
    except ImportError as error:
        raise missing_package("the soundfont data set", "pretty_midi", "demo") from error
    return pretty_midi


def _import_tinysoundfont() -> Any:
    try:
        import tinysoundfont
    except ImportError as error:
        raise ImportError(
            "the soundfont data set needs the package tinysoundfont: pip install --no-deps tinysoundfont"
        ) from error
    return tinysoundfont

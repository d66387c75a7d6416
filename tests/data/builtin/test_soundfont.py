import dataclasses
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from xmodal_hf.data.builtin import soundfont
from xmodal_hf.data.builtin.soundfont import (
    family_prompts,
    load_soundfont,
    make_clip,
    render,
    render_address,
    soundfont_captions,
)


@pytest.fixture(scope="module")
def splits():
    return {split: load_soundfont(split) for split in ("train", "test")}


def events(split):
    return [make_clip(split, index).events for index in range(soundfont.SPLIT_SIZES[split])]


def test_test_clips_are_combinations_that_training_never_has():
    def kinds(split):
        singles = {clip[0].combination for clip in events(split) if len(clip) == 1}
        pairs = {frozenset(event.source for event in clip) for clip in events(split) if len(clip) == 2}
        parts = {event.combination for clip in events(split) for event in clip if len(clip) == 2}
        return singles, pairs, parts

    (train_singles, train_pairs, train_parts), (test_singles, test_pairs, test_parts) = kinds("train"), kinds("test")
    assert not test_singles & (train_singles | train_parts)
    assert not test_pairs & train_pairs
    assert test_parts <= {event.combination for event in soundfont._combinations(False)}
    assert len(test_singles) == 200 and len(test_pairs) > 150


def test_every_source_and_every_attribute_is_heard_in_training():
    heard = [event for clip in events("train") for event in clip]
    assert {event.source for event in heard} == set(range(128 + 47))
    assert {event.register for event in heard} == {"low", "middle", "high", ""}
    assert {event.manner for event in heard} == {*soundfont._MANNERS, *soundfont._DRUM_MANNERS}


def test_captions_tell_test_clips_apart(splits):
    train, test = ({caption for row in splits[name]["text"] for caption in row} for name in ("train", "test"))
    assert not train & test
    assert len({row[0] for row in splits["test"]["text"]}) == len(splits["test"]) == 400
    assert all(len(set(row)) == 3 for row in splits["test"]["text"])
    assert soundfont_captions("test") == [caption for row in splits["test"]["text"] for caption in row]


def test_captions_read_well():
    names = [soundfont._source_name(source) for source in range(175)]
    assert len(set(names)) > 170
    assert names[0] == "acoustic grand piano" and names[24] == "nylon acoustic guitar"
    assert names[80:88:3] == ["square lead synthesizer", "chiff lead synthesizer", "fifths lead synthesizer"]
    assert names[122] == "seashore sound" and names[128 + 7] == "closed hi hat"
    event = soundfont.Event(16, "rising phrase", "middle", "quietly")
    assert soundfont._wordings(event)[:2] == (
        "a drawbar organ plays a rising mid-range phrase quietly",
        "a quiet rising mid-range phrase on a drawbar organ",
    )


def test_families_label_single_events(splits):
    families = Counter(splits["test"]["family"])
    assert families[None] == 200
    assert len(families) == 18  # 16 of General MIDI, drums, none
    assert splits["test"][0]["family"] == soundfont._family(make_clip("test", 0).events[0].source)


def test_prompts_describe_every_family_by_its_instruments(splits):
    prompts = family_prompts()
    assert set(prompts) == set(splits["train"]["family"]) - {None}
    assert "a viola plays a long mid-range note loudly" in prompts["Strings"]
    assert "a loud hit of a cowbell" in prompts["Drums"]
    assert len(prompts["Drums"]) == 47 * 3 and len(prompts["Piano"]) == 8 * 3


@pytest.mark.parametrize("rate", [16_000, 32_000, 48_000])
def test_an_address_always_gives_the_same_sound(rate):
    first, again = (render_address("soundfont://test/3", rate) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (round(soundfont.CLIP_SECONDS * rate),) and first.dtype == np.float32


def test_what_was_played_before_is_not_heard():
    """Also where another thread plays at the same time."""
    alone = render(make_clip("test", 3), 16_000)
    for index in range(5):
        render(make_clip("train", index), 16_000)
    assert np.array_equal(render(make_clip("test", 3), 16_000), alone)
    with ThreadPoolExecutor(2) as threads:
        for sound in threads.map(lambda _: render(make_clip("test", 3), 16_000), range(8)):
            assert np.array_equal(sound, alone)


def test_every_note_that_can_be_asked_for_is_audible_and_as_loud_as_it_says():
    for event in soundfont._all_events():
        pitches = soundfont._REGISTERS.get(event.register) or (35 + event.source - 128,)
        if event.manner in ("short note", "rising phrase", "once"):  # the notes of the other manners are among these
            for pitch in pitches:
                loud, quiet = (
                    soundfont._play(dataclasses.replace(event, loudness=loudness), pitch)
                    for loudness in ("loudly", "quietly")
                )
                assert np.isfinite(loud).all() and 1 >= np.abs(loud).max() > 5 * np.abs(quiet).max() > 3e-4, event


def test_high_notes_are_higher_than_low_ones():
    def centroid(register, pitch):
        sound = soundfont._play(soundfont.Event(73, "long note", register), pitch)  # a flute
        power = np.abs(np.fft.rfft(sound)) ** 2
        return (power * np.arange(len(power))).sum() / power.sum()

    assert centroid("low", 50) < centroid("middle", 60) < centroid("high", 71)


def test_wrong_use(monkeypatch):
    with pytest.raises(ValueError, match="must be one of train, test, got 'dev'"):
        load_soundfont("dev")
    hints = {
        "tinysoundfont": (soundfont._import_tinysoundfont, "pip install --no-deps tinysoundfont"),
        "pretty_midi": (soundfont._import_pretty_midi, r"pip install 'xmodal_hf\[demo\]'"),
    }
    for package, (function, hint) in hints.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=hint):
            function()

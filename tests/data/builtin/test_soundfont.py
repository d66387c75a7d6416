import sys
from collections import Counter

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
    assert {event.source for event in heard} == set(range(128 + 47)) - {78}
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


def test_every_test_clip_is_audible_and_as_loud_as_it_says():
    for index in range(soundfont.SPLIT_SIZES["test"]):
        clip = make_clip("test", index)
        peak = np.abs(render(clip, 32_000)).max()
        assert peak == pytest.approx(max(soundfont._GAINS[event.loudness] for event in clip.events), rel=0.1)


def test_every_note_that_can_be_asked_for_is_audible():
    """Some programs are silent at some pitches; the registers avoid them."""
    for event in soundfont._all_events():
        pitches = soundfont._REGISTERS.get(event.register) or (35 + event.source - 128,)
        for pitch in pitches[:1] if event.is_drum else pitches:
            sound = soundfont._play(event, pitch)
            assert np.isfinite(sound).all() and np.array_equal(sound, soundfont._play(event, pitch))
    whistle = soundfont._score(soundfont.Event(78, "short note"), 82)  # not in a register: the check is not vacuous
    assert not soundfont._synthesizer(32_000).render(whistle, False).any()


def test_high_notes_are_higher_than_low_ones():
    def centroid(register, pitch):
        sound = soundfont._play(soundfont.Event(73, "long note", register), pitch)  # a flute
        power = np.abs(np.fft.rfft(sound)) ** 2
        return (power * np.arange(len(power))).sum() / power.sum()

    assert centroid("low", 50) < centroid("middle", 60) < centroid("high", 71)


def test_wrong_use(monkeypatch):
    with pytest.raises(ValueError, match="train, test, not 'dev'"):
        load_soundfont("dev")
    for package, function in (("symusic", soundfont._import_symusic), ("pretty_midi", soundfont._import_pretty_midi)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ImportError, match=r"pip install 'xmodal_hf\[demo\]'"):
            function()

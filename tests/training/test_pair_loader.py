"""The loader of pairs that the options ask for: sources, bad items, audio."""

import io
import json
import warnings

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset
from PIL import Image
from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor

from xmodal_hf import AudioTextProcessor, LogMelFeatureExtractor
from xmodal_hf.data.bad_items import TooManyBadItemsError
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.training.arguments import PairArguments, TextModelArguments, TrainingArguments
from xmodal_hf.training.batches import build_pair_loader, check_length, load_pair_table
from xmodal_hf.training.checkpoint import CheckpointError
from xmodal_hf.training.loop import build_accelerator


@pytest.fixture
def pictures(tmp_path):
    """Twenty pictures; number 7 is cut off."""
    rows = []
    for number in range(20):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"the dog {number}"})
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:60])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "rows.jsonl")


@pytest.fixture
def sounds(tmp_path):
    """Eight noises of 0.5 and 3 seconds at 8 kHz, alternately."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(8):
        buffer = io.BytesIO()
        soundfile.write(buffer, generator.normal(0, 0.1, (4000, 24_000)[number % 2]), 8000, format="WAV")
        (tmp_path / f"{number}.wav").write_bytes(buffer.getvalue())
        rows.append({"audio": f"{number}.wav", "caption": "rain"})
    (tmp_path / "sounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "sounds.jsonl")


@pytest.fixture
def audio_processor(tokenizer):
    extractor = LogMelFeatureExtractor(
        sampling_rate=8000, hop_length=80, fft_window_size=256, frequency_max=4000.0, feature_size=16, max_length_s=1.0
    )
    return AudioTextProcessor(extractor, tokenizer)


def loader_of(pairs, processor, folder, epoch=0, **training):
    arguments = TrainingArguments(output_dir=str(folder), batch_size=4, report_to="none", **training)
    accelerator = build_accelerator(arguments)
    loader = build_pair_loader(accelerator, load_pair_table(pairs), processor, arguments, TextModelArguments(), pairs)
    loader.load_state_dict(loader.state_dict() | {"epoch": epoch})
    return loader


def epoch_of(pairs, processor, folder, epoch=0, **training):
    loader = loader_of(pairs, processor, folder, epoch, **training)
    return [batch for _, batch in zip(range(len(loader)), loader, strict=False)]


def test_a_bad_item_is_skipped_and_listed(pictures, image_text_processor, tmp_path):
    pairs = PairArguments(dataset=[pictures], max_bad_fraction=0.05)
    batches = epoch_of(pairs, image_text_processor, tmp_path)
    assert len(batches) == 5 and "7.png" not in {item for batch in batches for item in batch["ids"]}
    (listed,) = (json.loads(line) for line in (tmp_path / "bad_items.jsonl").read_text().splitlines())
    assert listed["id"] == "7.png" and listed["reason"] == "corrupt image" and listed["source"].endswith("/7.png")


def test_items_are_listed_when_their_batch_is_used(pictures, image_text_processor, tmp_path):
    """Workers read ahead of a run that stops in mid-epoch, by how much is chance: two equal runs leave one list."""
    for number in range(8, 16):
        (tmp_path / f"{number}.png").write_bytes(b"")
    pairs, lists = PairArguments(dataset=[pictures], max_bad_fraction=1), []
    for num_workers in (0, 2):
        batches = iter(loader_of(pairs, image_text_processor, tmp_path, num_workers=num_workers))
        assert "bad_items" not in next(batches)
        lists.append((tmp_path / "bad_items.jsonl").read_bytes())
        batches.close()
    assert lists[0] == lists[1] and 1 <= len(lists[0].splitlines()) < 9


def test_or_stops_the_run(pictures, image_text_processor, tmp_path):
    with pytest.raises(TooManyBadItemsError, match=r"1 of 20 items cannot be used, more than max_bad_fraction=0\.04"):
        epoch_of(PairArguments(dataset=[pictures], max_bad_fraction=0.04), image_text_processor, tmp_path)
    with pytest.raises(BadItemError, match="corrupt image"):
        epoch_of(PairArguments(dataset=[pictures], on_bad_item="error"), image_text_processor, tmp_path)


def test_a_new_run_begins_a_new_list_and_a_resumed_one_goes_on(pictures, image_text_processor, tmp_path):
    pairs = PairArguments(dataset=[pictures], max_bad_fraction=0.1)
    path = tmp_path / "bad_items.jsonl"
    earlier = '{"index": 3, "id": "3.png", "source": "", "reason": "missing file"}\n'
    path.write_text(earlier)
    epoch_of(pairs, image_text_processor, tmp_path, resume="auto")  # which finds no state: a first start
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["7.png"]
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step_00000001" / "state.json").write_text("{}")
    path.write_text(earlier)
    epoch_of(pairs, image_text_processor, tmp_path, resume="auto")
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["3.png", "7.png"]
    epoch_of(pairs, image_text_processor, tmp_path)
    assert len(path.read_text().splitlines()) == 1


def test_sources_are_mixed_by_weight(pictures, image_text_processor, tmp_path):
    pairs = PairArguments(
        dataset=[pictures, "openmoji"], dataset_weights=[0.9, 0.1], max_samples=20, max_bad_fraction=1
    )
    names = [item for batch in epoch_of(pairs, image_text_processor, tmp_path) for item in batch["ids"]]
    # Number 7 has two turns of the 36, and what stands in for it may be of either source.
    assert 34 <= sum(name.startswith(pictures) for name in names) <= 36 and len(names) == 40


class TestAudio:
    def test_windows_of_long_clips_are_drawn_anew_each_epoch_or_not(self, sounds, audio_processor, tmp_path):
        def features(window, epoch):
            pairs = PairArguments(dataset=[sounds], modality="audio", audio_window=window)
            batches = epoch_of(pairs, audio_processor, tmp_path, epoch)
            return {name: x for b in batches for name, x in zip(b["ids"], b["input_features"], strict=True)}

        first, second = features("random", 0), features("random", 1)
        changed = {name for name in first if not torch.equal(first[name], second[name])}
        assert changed == {"1.wav", "3.wav", "5.wav", "7.wav"}  # the long ones
        first, second = features("center", 0), features("center", 1)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_spec_augment_and_padding(self, sounds, audio_processor, tmp_path):
        def features(**options):
            pairs = PairArguments(dataset=[sounds], modality="audio", audio_window="first", **options)
            return torch.cat([batch["input_features"] for batch in epoch_of(pairs, audio_processor, tmp_path)])

        plain = features()
        augmented = features(spec_augment=True)
        assert 0.05 < (augmented != plain).float().mean() < 0.95
        padded = features(audio_padding="pad")
        assert audio_processor.feature_extractor.padding == "pad"  # and so it is saved
        assert sorted((row == -100).float().mean() > 0.4 for row in padded) == [False] * 4 + [True] * 4

    def test_clips_of_one_length_for_an_extractor_of_waveforms(self, sounds, tokenizer, tmp_path):
        processor = AudioTextProcessor(Wav2Vec2FeatureExtractor(sampling_rate=8000), tokenizer)
        pairs = PairArguments(dataset=[sounds], modality="audio", clip_seconds=1.0)
        first, second = (epoch_of(pairs, processor, tmp_path, epoch) for epoch in (0, 1))
        assert {batch["input_values"].shape for batch in first} == {(4, 8000)}
        first, second = (
            {name: x for b in batches for name, x in zip(b["ids"], b["input_values"], strict=True)}
            for batches in (first, second)
        )
        # Long clips are cut anew each epoch, short ones repeated.
        assert all(torch.equal(x, second[name]) == (int(name[0]) % 2 == 0) for name, x in first.items())
        assert torch.equal(first["0.wav"][:4000], first["0.wav"][4000:])

    def test_an_extractor_without_a_choice_of_padding(self, sounds, tokenizer, tmp_path):
        processor = AudioTextProcessor(ASTFeatureExtractor(sampling_rate=8000, max_length=32), tokenizer)
        pairs = PairArguments(dataset=[sounds], modality="audio", audio_padding="pad")
        with pytest.raises(ValueError, match="ASTFeatureExtractor has no choice of padding"):
            epoch_of(pairs, processor, tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"dataset": []}, "pass --dataset"),
        ({"dataset": ["a", "a"]}, "names a data set twice"),
        (
            {"dataset": ["a"], "dataset_weights": [1.0, 2.0]},
            "--dataset_weights needs one weight per --dataset: 1, got 2",
        ),
        ({"dataset": ["a"], "dataset_weights": [0.0]}, "must be positive"),
        ({"dataset": ["a"], "streaming": True, "max_samples": 3}, "--max_samples and --streaming exclude"),
        ({"dataset": ["a"], "max_samples": -1}, "--max_samples must be at least 1, got -1; leave it out for all rows"),
        ({"dataset": ["a"], "shuffle_buffer": 0}, "--shuffle_buffer must be at least 1"),
        ({"dataset": ["a"], "max_bad_fraction": 1.5}, "must lie between 0 and 1"),
        ({"dataset": ["a"], "spec_augment": True}, "--spec_augment does not go with --modality image"),
        ({"dataset": ["a"], "clip_seconds": 1.0}, "--clip_seconds does not go with --modality image"),
        ({"dataset": ["a"], "audio_padding": "pad"}, "--audio_padding does not go with --modality image"),
        ({"dataset": ["a"], "augment": True, "modality": "audio"}, "--augment does not go with --modality audio"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        PairArguments(**options)


def test_a_state_of_other_data_is_refused(pictures, image_text_processor, tmp_path):
    """With a shard more or less the same position would be another sample's."""
    arguments = TrainingArguments(output_dir=str(tmp_path), batch_size=4, report_to="none")
    pairs = PairArguments(dataset=[pictures])
    table = load_pair_table(pairs)
    parts = (image_text_processor, arguments, TextModelArguments(), pairs)
    loader = build_pair_loader(build_accelerator(arguments), table, *parts)
    state = loader.state_dict() | {"epoch": 1, "batch": 1}
    loader.load_state_dict(state)
    less = build_pair_loader(build_accelerator(arguments), table.select(range(len(table) - 1)), *parts)
    with pytest.raises(CheckpointError, match=f"the data have {len(table) - 1} rows, and had {len(table)} when"):
        less.load_state_dict(state)


def test_rows_that_an_epoch_leaves_out_are_said_once(pictures, image_text_processor, tmp_path, caplog):
    with caplog.at_level("INFO", logger="xmodal_hf"):
        epoch_of(PairArguments(dataset=[pictures], max_samples=7), image_text_processor, tmp_path)
    assert caplog.text.count("3 of 7 rows are left out in each epoch with --batch_size 4") == 1
    caplog.clear()
    with caplog.at_level("INFO", logger="xmodal_hf"):
        epoch_of(PairArguments(dataset=[pictures], max_samples=4), image_text_processor, tmp_path)
    assert "left out" not in caplog.text


def test_captions_that_are_kept_out_are_counted(pictures, tmp_path, caplog):
    (tmp_path / "test.txt").write_text("The dog 3!\nthe dog 5\n")
    with caplog.at_level("INFO", logger="xmodal_hf"):
        table = load_pair_table(PairArguments(dataset=[pictures]), [str(tmp_path / "test.txt")])
    assert len(table) == 18 and "--exclude_texts left out 2 texts that occur in evaluation sets" in caplog.text


def test_one_text_column_is_held_as_before_there_could_be_several():
    assert PairArguments(dataset=["a"], text_column=["caption"]).text_column == "caption"
    assert PairArguments(dataset=["a"], text_column="caption").text_column == "caption"
    assert PairArguments(dataset=["a"], text_column=["a", "b"]).text_column == ["a", "b"]


@pytest.mark.parametrize(("rows", "expected"), [(3, 4), (5, 4)])
def test_another_number_of_rows_than_expected_is_said(rows, expected):
    """Half a download, and a folder with more than was meant."""
    table = Dataset.from_dict({"text": ["x"] * rows})
    with pytest.warns(UserWarning, match=f"the data have {rows} rows, --expected_items says {expected}"):
        check_length(table, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_length(table, rows)
        check_length(table, None)

import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    ASTFeatureExtractor,
    BertConfig,
    ClapAudioConfig,
    ClapFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from xmodal_hf import AudioTextConfig, AudioTextDualEncoder
from xmodal_hf.data.audio import SpecAugment
from xmodal_hf.data.clips import set_clip_seconds
from xmodal_hf.data.collators import PairCollator, SentenceCollator
from xmodal_hf.data.images import ImageAugment
from xmodal_hf.data.orders import ShuffledOrder
from xmodal_hf.data.sampling import EpochBatchSampler, PairDataset, SentenceDataset, group_id
from xmodal_hf.data.seeding import EpochIndex
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.models.feature_extraction_log_mel import LogMelFeatureExtractor
from xmodal_hf.models.processing_dual_encoder import AudioTextProcessor
from xmodal_hf.objectives import CrossModalObjective


@pytest.fixture
def items(tmp_path, image_table):
    Dataset.from_list(image_table).to_json(tmp_path / "rows.jsonl")
    return PairDataset(load_pairs(tmp_path / "rows.jsonl"), seed=0)


class TestPairCollator:
    def test_batch(self, processor, items):
        rows = [items[index] for index in (3, 7, 3)]
        rows[1]["text"] = "a longer picture of number 7 7 7"
        batch = PairCollator(processor, max_length=6)(rows)
        assert set(batch) == {"input_ids", "attention_mask", "pixel_values", "group_ids", "ids"}
        assert batch["input_ids"].shape == (3, 6)  # the longest text, cut
        assert batch["attention_mask"].sum(dim=1).tolist() == [4, 6, 4]
        assert batch["group_ids"].tolist() == [group_id(row["id"]) for row in rows]
        assert batch["group_ids"].dtype == torch.int64
        assert batch["ids"] == ["files/3.png", "files/7.png", "files/3.png"]
        assert batch["pixel_values"].shape == (3, 3, 16, 16)
        red = (batch["pixel_values"][:, 0, 5, 5] * 255).round().tolist()
        assert red == [3, 7, 3]  # picture i goes with text i
        numbers = processor.tokenizer.convert_tokens_to_ids(["3", "7"])
        assert batch["input_ids"][0, 3] == numbers[0] and batch["input_ids"][1, 5] == numbers[1]

    def test_padding_to_the_longest_or_to_max_length(self, processor, items):
        rows = [items[0], items[1]]
        assert PairCollator(processor, max_length=9)(rows)["input_ids"].shape == (2, 4)
        assert PairCollator(processor, max_length=9, pad_to_max_length=True)(rows)["input_ids"].shape == (2, 9)

    def test_augmentation_follows_the_position_in_any_number_of_workers(self, processor, items):
        collator = PairCollator(processor, max_length=6, image_augment=ImageAugment(16, seed=1))

        def pixels(num_workers, epoch):
            batches = EpochBatchSampler(ShuffledOrder(len(items), 0), 5)
            batches.set_position(epoch, 0)
            loader = DataLoader(items, batch_sampler=batches, num_workers=num_workers, collate_fn=collator)
            return torch.cat([batch["pixel_values"] for batch in loader])

        assert torch.equal(pixels(0, 1), pixels(2, 1))
        assert not torch.equal(pixels(0, 1), pixels(0, 2))

    def test_is_picklable(self, processor, items):
        collator = PairCollator(processor, max_length=6, image_augment=ImageAugment(16), feature_augment=SpecAugment())
        copied = pickle.loads(pickle.dumps(collator))
        copied.feature_augment = None
        assert torch.equal(
            copied([items[0]])["input_ids"], PairCollator(processor, max_length=6)([items[0]])["input_ids"]
        )

    def test_one_tokenizer_call_a_batch(self, processor, items, monkeypatch):
        calls = []
        original = type(processor.tokenizer).__call__
        monkeypatch.setattr(
            type(processor.tokenizer), "__call__", lambda self, *a, **k: calls.append(1) or original(self, *a, **k)
        )
        PairCollator(processor, max_length=6)([items[index] for index in range(6)])
        assert len(calls) == 1


@pytest.mark.parametrize(
    "extractor",
    [
        LogMelFeatureExtractor(sampling_rate=8000, max_length_s=1.0, frequency_max=4000),
        ClapFeatureExtractor(sampling_rate=8000, max_length_s=1, frequency_max=4000, truncation="rand_trunc"),
    ],
    ids=["ours", "ClapFeatureExtractor"],
)
def test_audio_batches(extractor, tokenizer):
    """The text's options must not reach the feature extractor, whose padding has other names."""
    items = PairDataset(load_pairs("soundfont", modality="audio", split="test"), seed=0, sampling_rate=8000)
    rows = [items[index] for index in range(3)]
    processor = AudioTextProcessor(extractor, tokenizer)
    batch = PairCollator(processor, max_length=7, pad_to_max_length=True)(rows)
    assert batch["input_ids"].shape == (3, 7)
    assert batch["input_features"].shape == (3, 1, 17, 64)
    augmented = PairCollator(processor, max_length=7, feature_augment=SpecAugment(time_width=9))(rows)
    assert augmented["input_features"].shape == (3, 1, 17, 64)
    if isinstance(extractor, LogMelFeatureExtractor):  # the other one crops at random
        changed = (augmented["input_features"] != batch["input_features"]).flatten(1).float().mean(dim=1)
        assert (changed > 0).all() and (changed < 0.9).all()


class TestWaveformExtractor:
    """wav2vec2's features are as long as the clip, and models of audio take no mask of padding."""

    @staticmethod
    def rows(lengths):
        return [
            {"audio": np.full(n, 0.1, np.float32), "text": "a", "id": "0", "group_id": 0, "position": EpochIndex(0, 0)}
            for n in lengths
        ]

    def test_clips_of_one_length(self, tokenizer):
        collator = PairCollator(AudioTextProcessor(Wav2Vec2FeatureExtractor(), tokenizer), max_length=5)
        assert collator(self.rows([800, 800]))["input_values"].shape == (2, 800)

    def test_clips_of_several_lengths_say_what_to_do(self, tokenizer):
        collator = PairCollator(AudioTextProcessor(Wav2Vec2FeatureExtractor(), tokenizer), max_length=5)
        with pytest.raises(ValueError, match=r"Wav2Vec2FeatureExtractor leaves .* 800 to 900 samples.*--clip_seconds"):
            collator(self.rows([800, 900]))

    def test_clips_are_brought_to_the_length_that_the_run_wants(self, tokenizer, tmp_path):
        extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
        set_clip_seconds(extractor, 0.05)
        extractor.save_pretrained(tmp_path)  # and keeps it
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(tmp_path)
        collator = PairCollator(AudioTextProcessor(extractor, tokenizer), max_length=5)
        rows = self.rows([700, 800, 900])
        for row in rows:
            row["audio"] = np.arange(len(row["audio"]), dtype=np.float32)
        short, equal, long = collator(rows)["input_values"].int().tolist()
        assert equal == long == list(range(800)) and short == [*range(700), *range(100)]

    @pytest.mark.parametrize("kind", [ASTFeatureExtractor, WhisperFeatureExtractor])
    def test_extractors_of_one_length_take_any_clips(self, tokenizer, kind):
        collator = PairCollator(AudioTextProcessor(kind(), tokenizer), max_length=5)
        together = collator(self.rows([8000, 9000]))[kind.model_input_names[0]]
        for row, features in zip(self.rows([8000, 9000]), together, strict=True):
            assert torch.equal(collator([row])[kind.model_input_names[0]][0], features)

    def test_features_of_several_lengths_are_refused_whatever_their_size(self, tokenizer):
        collator = PairCollator(AudioTextProcessor(SeamlessM4TFeatureExtractor(), tokenizer), max_length=5)
        with pytest.raises(ValueError, match="SeamlessM4TFeatureExtractor leaves clips as long as they are"):
            collator(self.rows([8000, 16_000]))

    def test_the_attention_mask_is_that_of_the_texts(self, tokenizer):
        collator = PairCollator(AudioTextProcessor(SeamlessM4TFeatureExtractor(), tokenizer), max_length=5)
        batch = collator(self.rows([8000, 8000]))
        assert batch["attention_mask"].shape == batch["input_ids"].shape


class TestFusedClap:
    """Clips that are longer than the model takes become four channels, from crops that any run repeats."""

    @pytest.fixture
    def collator(self, tokenizer):
        extractor = ClapFeatureExtractor(
            sampling_rate=8000, hop_length=80, max_length_s=1, fft_window_size=256, frequency_max=4000
        )
        return PairCollator(AudioTextProcessor(extractor, tokenizer), max_length=7)

    @pytest.fixture
    def rows(self, samples):
        noise = np.random.default_rng(0).normal(size=30_000).astype(np.float32)
        clips = [noise[:4000], noise, noise[:20_000], noise[:8000]]
        return [
            {"id": str(i), "text": "a sound", "audio": clip, "group_id": i, "position": EpochIndex(0, i)}
            for i, clip in enumerate(clips)
        ]

    def test_four_channels(self, collator, rows):
        batch = collator(rows)
        assert batch["input_features"].shape == (4, 4, 101, 64)
        assert batch["is_longer"].tolist() == [[False], [True], [True], [False]]
        channels = batch["input_features"][:, 1:] - batch["input_features"][:, :1]
        assert [bool(x.any()) for x in channels] == [False, True, True, False]

    def test_crops_follow_the_position_only(self, collator, rows):
        batch = collator(rows)
        np.random.seed(5)
        state = np.random.get_state()[1].copy()
        again = collator(rows[1:2])
        assert torch.equal(again["input_features"][0], batch["input_features"][1])
        assert np.array_equal(np.random.get_state()[1], state)
        other = collator([rows[1] | {"position": EpochIndex(1, 1)}])
        assert not torch.equal(other["input_features"], again["input_features"])

    def test_every_process_uses_the_weights_of_long_clips(self, collator, rows):
        assert collator([rows[0], rows[3]])["is_longer"].tolist() == [[True], [False]]

    def test_a_fused_model_trains(self, collator, rows):
        audio = ClapAudioConfig(
            window_size=8, num_mel_bins=64, spec_size=256, patch_size=4, patch_stride=[4, 4], hidden_size=32,
            depths=[1, 1], num_attention_heads=[2, 2], patch_embeds_hidden_size=16, enable_fusion=True,
            aff_block_r=2, patch_embed_input_channels=1,
        )  # fmt: skip
        text = BertConfig(vocab_size=250, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        model = AudioTextDualEncoder(AudioTextConfig(text_config=text, audio_config=audio, projection_dim=8))
        CrossModalObjective("clip")(model, collator(rows)).loss.backward()
        fusion = {name: p.grad for name, p in model.named_parameters() if "fusion_model" in name}
        assert fusion and all(grad is not None and grad.isfinite().all() for grad in fusion.values())


class TestSentenceCollator:
    def test_views_come_one_after_the_other(self, tokenizer):
        table = {"anchor": ["1", "2 2"], "positive": ["3", "4"], "negative": ["5 5 5 5", "6"]}
        items = SentenceDataset(Dataset.from_dict(table))
        batch = SentenceCollator(tokenizer, max_length=3)([items[0], items[1]])
        assert batch["input_ids"].shape == (6, 3)
        firsts = tokenizer.convert_ids_to_tokens(batch["input_ids"][:, 0])
        assert firsts == ["1", "2", "3", "4", "5", "6"]
        assert batch["attention_mask"].sum(dim=1).tolist() == [1, 2, 1, 1, 3, 1]

    def test_anchors_alone(self, tokenizer):
        items = SentenceDataset(Dataset.from_dict({"anchor": ["1", "2 2"]}))
        batch = pickle.loads(pickle.dumps(SentenceCollator(tokenizer)))([items[0], items[1]])
        assert batch["input_ids"].shape == (2, 2)

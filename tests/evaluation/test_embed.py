"""The embedding loop: equal to the model called plainly, whatever the batches; deterministic; clear about bad input."""

import copy
import io

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from transformers import AutoModel, CLIPImageProcessor, SiglipProcessor

from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor, SentenceEncoder
from xmodal_hf.data.audio import load_waveform
from xmodal_hf.data.builtin.soundfont import load_soundfont
from xmodal_hf.data.errors import BadItemError
from xmodal_hf.evaluation import Embedder, as_embedder, embed_pairs, evaluate_retrieval
from xmodal_hf.evaluation.embed import EmbedOptions, evaluation_mode
from xmodal_hf.models.text_tower import token_batches


def unit(embeds):
    return nn.functional.normalize(embeds, dim=-1).detach().numpy()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_token_batches_cover_every_text_once_within_the_budget(lengths, max_tokens):
    batches = token_batches(lengths, max_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= max_tokens


@pytest.mark.parametrize("max_tokens", [1, 40, 100_000])
def test_clip_texts_equal_one_by_one(clip, sentences, max_tokens):
    model, processor = clip
    embeds = as_embedder(model, processor, options=EmbedOptions(max_tokens_per_batch=max_tokens)).encode_text(sentences)
    for index in (0, 17, 59):
        inputs = processor(text=[sentences[index]], return_tensors="pt")
        assert np.allclose(embeds[index], unit(model.get_text_features(**inputs).pooler_output)[0], atol=1e-6)
    assert embeds.dtype == np.float32 and np.allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-6)


def test_siglip_pads_to_its_fixed_length(siglip, sentences):
    model, processor = siglip
    embeds = as_embedder(model, processor).encode_text(sentences)
    inputs = processor(text=sentences, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape[1] == 24
    assert np.allclose(embeds, unit(model.get_text_features(**inputs).pooler_output), atol=1e-6)
    shorter = processor(text=["dog"], return_tensors="pt")
    unpadded = unit(model.get_text_features(**shorter).pooler_output)[0]
    assert not np.allclose(as_embedder(model, processor).encode_text(["dog"])[0], unpadded, atol=1e-3)


def test_siglip_attends_to_padding_where_its_tokenizer_gives_no_mask(siglip, sentences):
    model, processor = siglip
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.model_input_names = ["input_ids"]  # as in the published checkpoints
    inputs = tokenizer(sentences, padding="max_length", max_length=24, truncation=True, return_tensors="pt")
    assert "attention_mask" not in inputs
    embeds = as_embedder(model, SiglipProcessor(processor.image_processor, tokenizer)).encode_text(sentences)
    assert np.allclose(embeds, unit(model.get_text_features(**inputs).pooler_output), atol=1e-6)
    assert not np.allclose(embeds, as_embedder(model, processor).encode_text(sentences), atol=1e-3)


def test_siglip_2_whose_tokenizer_knows_no_limit(siglip, sentences):
    model, processor = siglip
    tokenizer = copy.deepcopy(processor.tokenizer)
    tokenizer.model_max_length = 10**30
    embeds = as_embedder(model, SiglipProcessor(processor.image_processor, tokenizer)).encode_text(sentences)
    assert np.array_equal(embeds, as_embedder(model, processor).encode_text(sentences))


def test_a_tokenizer_without_a_padding_token(bert, tokenizer, sentences):
    without = copy.deepcopy(tokenizer)
    without.pad_token = None
    embeds = as_embedder(bert, without).encode_text(sentences)
    assert np.allclose(embeds, as_embedder(bert, tokenizer).encode_text(sentences), atol=1e-6)
    assert without.pad_token is None


def test_a_tokenizers_file_can_ask_for_a_fixed_length(bert, tokenizer):
    fixed = copy.deepcopy(tokenizer)
    fixed.init_kwargs["padding"] = "max_length"
    seen = []
    handle = bert.register_forward_pre_hook(lambda *hook: seen.append(hook[2]["input_ids"].shape), with_kwargs=True)
    as_embedder(bert, fixed).encode_text(["dog"])
    handle.remove()
    assert seen == [(1, 24)]


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "eos", "pooler"])
def test_text_model_pooling(bert, tokenizer, sentences, pooling):
    if pooling == "eos":
        bert.config.eos_token_id = tokenizer.eos_token_id
    embeds = as_embedder(bert, tokenizer, pooling=pooling).encode_text(sentences)
    ids = tokenizer([sentences[3]], return_tensors="pt")
    outputs = bert(**ids)
    hidden, own = outputs.last_hidden_state[0], outputs.pooler_output[0]
    expected = {"cls": hidden[0], "mean": hidden.mean(0), "max": hidden.amax(0), "eos": hidden[-1], "pooler": own}
    expected = expected[pooling]
    assert np.allclose(embeds[3], unit(expected[None])[0], atol=1e-6)


@pytest.mark.parametrize("tower", ["bert", "roberta"])
def test_long_texts_are_cut_to_what_the_tower_takes(text_config, tokenizer, tower):
    """RoBERTa's table has one row less for tokens than its size says."""
    model = AutoModel.from_config(text_config(tower)).eval()
    unlimited = copy.deepcopy(tokenizer)
    unlimited.model_max_length = 10**30
    embedder = as_embedder(model, unlimited)
    assert np.allclose(embedder.encode_text(["rain " * 22]), embedder.encode_text(["rain " * 200]), atol=1e-6)


def test_images_equal_one_by_one(clip, pictures):
    model, processor = clip
    embeds = as_embedder(model, processor, options=EmbedOptions(batch_size=3)).encode_image(iter(pictures))
    inputs = processor(images=pictures, return_tensors="pt")
    assert np.allclose(embeds, unit(model.get_image_features(**inputs).pooler_output), atol=1e-6)


def test_fused_clap_depends_on_neither_random_state_nor_neighbours(fused_clap):
    model, processor = fused_clap
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=length).astype(np.float32) for length in (4000, 8000, 20000, 26000)]
    embedder = as_embedder(model, processor)
    together = embedder.encode_audio(clips)
    np.random.seed(123)
    before = np.random.get_state()[1].copy()
    alone = np.concatenate([embedder.encode_audio([clip]) for clip in clips])
    assert np.allclose(together, alone, atol=1e-5)
    assert np.array_equal(np.random.get_state()[1], before)
    assert np.abs(together[2] - together[3]).max() > 1e-3


def test_random_truncation_is_replaced_by_the_beginning(clap):
    model, processor = clap
    long = np.random.default_rng(0).normal(size=20000).astype(np.float32)
    embeds = as_embedder(model, processor).encode_audio([long, long[:8000]])
    assert np.allclose(embeds[0], embeds[1], atol=1e-6)


@pytest.mark.parametrize("batch_size", [2, 32])
def test_long_clips_are_the_mean_of_their_windows(clap, batch_size):
    """In any batch, to 1e-5: 2.5 s in a model of 1 s are three windows, a short clip is itself."""
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=length).astype(np.float32) for length in (20_000, 5000, 30_000)]
    first = as_embedder(*clap)
    windows = [first.encode_audio([clips[0][start : start + 8000]])[0] for start in (0, 6000, 12_000)]
    expected = np.mean(windows, axis=0)
    embedder = as_embedder(*clap, options=EmbedOptions(long_clips="mean", batch_size=batch_size))
    together = embedder.encode_audio(clips)
    assert np.allclose(together[0], expected / np.linalg.norm(expected), atol=1e-5)
    assert np.allclose(together[1], first.encode_audio([clips[1]])[0], atol=1e-5)
    alone = np.concatenate([embedder.encode_audio([clip]) for clip in clips])
    assert np.allclose(together, alone, atol=1e-5)
    assert np.abs(together[0] - first.encode_audio([clips[0]])[0]).max() > 1e-3


def test_rendered_sounds_are_rendered(clap):
    pytest.importorskip("tinysoundfont")
    cells = load_soundfont("test", num_clips=2)["audio"]
    embeds = as_embedder(*clap).encode_audio(cells)
    waveforms = [load_waveform(cell, 8000) for cell in cells]
    assert np.allclose(embeds, as_embedder(*clap).encode_audio(waveforms), atol=1e-6)


def test_embed_pairs_keeps_owners_and_order(clip, pictures, sentences):
    rows = [{"text": sentences[3 * i : 3 * i + 1 + i % 3], "image": picture} for i, picture in enumerate(pictures)]
    rows[0]["text"] = sentences[0]  # a plain string is one caption
    embedder = as_embedder(*clip)
    pairs = embed_pairs(embedder, iter(rows))
    assert pairs.text_to_item.tolist() == [0, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5, 5, 6]
    assert np.allclose(pairs.text_embeds[2], embedder.encode_text([sentences[4]])[0], atol=1e-6)
    assert np.allclose(pairs.modality_embeds, embedder.encode_image(pictures), atol=1e-6)
    results = evaluate_retrieval(pairs.modality_embeds, pairs.text_embeds, pairs.text_to_item, num_resamples=0)
    assert results["num_texts"] == 13


def test_rows_with_one_id_are_one_item(clip, pictures, sentences):
    """A caption a row, as many published tables have it, is the same data as lists of captions."""
    lists = [{"id": f"{i}", "text": sentences[2 * i : 2 * i + 2], "image": x} for i, x in enumerate(pictures)]
    single = [{**row, "text": text} for turn in (0, 1) for row in lists for text in [row["text"][turn]]]
    embedder = as_embedder(*clip)
    expected, found = embed_pairs(embedder, lists), embed_pairs(embedder, single)
    assert np.array_equal(found.modality_embeds, expected.modality_embeds)
    assert found.text_to_item.tolist() == [*range(len(pictures))] * 2
    results = [
        evaluate_retrieval(pairs.modality_embeds, pairs.text_embeds, pairs.text_to_item, num_resamples=0)
        for pairs in (expected, found)
    ]
    assert results[0] == pytest.approx(results[1])


def test_one_id_of_two_files_is_an_error(clip, pictures, tmp_path):
    cells = []
    for number, picture in enumerate(pictures[:2]):
        picture.save(tmp_path / f"{number}.png")
        cells.append({"bytes": None, "path": str(tmp_path / f"{number}.png")})
    rows = [{"id": "7", "text": "rain", "image": cell} for cell in (cells[0], cells[0], cells[1])]
    with pytest.raises(ValueError, match=r"row 2 has the id '7' of .*0\.png, and another image, .*1\.png"):
        embed_pairs(as_embedder(*clip), rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision_take_their_input_so(make_image_text, make_audio_text, clap, tokenizer, dtype):
    resnet = make_image_text(image="resnet", image_pooling="pooler").to(dtype)
    processor = ImageTextProcessor(CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16), tokenizer)
    noise = np.random.default_rng(0).integers(0, 255, (20, 24, 3), dtype=np.uint8)
    assert as_embedder(resnet, processor).encode_image([Image.fromarray(noise)]).dtype == np.float32
    clip = np.random.default_rng(0).normal(size=8000)
    model = copy.deepcopy(clap[0])
    whole = as_embedder(model, clap[1]).encode_audio([clip])
    half = as_embedder(model.to(dtype), clap[1]).encode_audio([clip])
    assert not np.array_equal(half, whole) and (half * whole).sum() > 0.99


def test_a_loaded_model_finds_its_own_processor(image_text_folder, sentence_encoder_folder, tokenizer, sentences):
    for folder, class_ in ((image_text_folder, ImageTextDualEncoder), (sentence_encoder_folder, SentenceEncoder)):
        model = class_.from_pretrained(folder)
        embeds = as_embedder(model).encode_text(sentences)
        inputs = tokenizer(sentences, padding=True, return_tensors="pt")
        assert np.allclose(embeds, model(**inputs).text_embeds.detach().numpy(), atol=1e-6)


def test_the_text_tower_is_embedded_before_the_projection(clip, siglip, bert, tokenizer, image_text_folder, sentences):
    own = ImageTextDualEncoder.from_pretrained(image_text_folder)
    inputs = tokenizer(sentences, padding=True, return_tensors="pt")
    hidden = own.text_model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    assert own.config.text_pooling == "mean"
    pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
    assert np.allclose(as_embedder(own).text_tower.encode_text(sentences), unit(pooled), atol=1e-6)
    model, processor = clip
    inputs = processor(text=sentences, padding=True, return_tensors="pt")
    embeds = as_embedder(model, processor).text_tower.encode_text(sentences)
    assert np.allclose(embeds, unit(model.text_model(**inputs).pooler_output), atol=1e-6)
    unprojected = as_embedder(*siglip)  # has no text projection
    assert np.allclose(unprojected.text_tower.encode_text(sentences), unprojected.encode_text(sentences), atol=1e-6)
    alone = as_embedder(bert, tokenizer)
    assert alone.text_tower is alone


def test_functions(sentences):
    vectors = {sentence: np.random.default_rng(len(sentence)).normal(size=5) for sentence in sentences}
    embeds = as_embedder(lambda texts: np.stack([vectors[text] for text in texts])).encode_text(sentences)
    assert np.allclose(np.linalg.norm(embeds, axis=1), 1)


def test_evaluation_mode_restores_each_module():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2))
    model.train()
    model[1].eval()
    with evaluation_mode(model):
        assert not model[0].training and torch.is_inference_mode_enabled()
    assert model[0].training and not model[1].training


def test_dropout_is_off_while_embedding(clip, sentences):
    model, processor = clip
    model.train()
    try:
        first = as_embedder(model, processor).encode_text(sentences)
        assert model.training
    finally:
        model.eval()
    assert np.array_equal(first, as_embedder(model, processor).encode_text(sentences))


def test_bad_input_is_named(clip, clap, bert, tokenizer):
    embedder = as_embedder(*clip)
    with pytest.raises(ValueError, match=r"pass \[text\]"):
        embedder.encode_text("a dog")
    with pytest.raises(ValueError, match="no texts"):
        embedder.encode_text([])
    with pytest.raises(ValueError, match="no images"):
        embedder.encode_image([])
    with pytest.raises(
        ValueError, match="takes no sounds, because its CLIPProcessor has no feature_extractor: pass items of another"
    ):
        embedder.encode_audio([np.zeros(10)])
    with pytest.raises(ValueError, match="FunctionEmbedder has no image encoder"):
        as_embedder(lambda texts: np.ones((1, 2))).encode_image([None])
    with pytest.raises(ValueError, match="lacks a processor"):
        as_embedder(clip[0])
    with pytest.raises(ValueError, match=r"cannot embed with str: pass a model.*load_embedder loads one from a folder"):
        as_embedder("outputs/clip")
    with pytest.raises(ValueError, match="cannot embed with int"):
        as_embedder(3)
    for text, media, message in (
        ([], None, "no caption: item 0: the list is empty"),
        (None, None, "no caption: item 0: null"),
        (["rain", None], None, "no caption: item 0: null"),
        ("  ", None, "empty caption: item 0"),
        ("rain", None, "no media: item 0: the cell is null"),
    ):
        with pytest.raises(BadItemError, match=message):
            embed_pairs(embedder, [{"text": text, "image": media}], on_bad_item="error")
    with pytest.raises(ValueError, match=r"no pairs to embed \(1 no media; the first: item 0: no media"):
        embed_pairs(embedder, [{"text": "rain", "image": None}])
    with pytest.raises(ValueError, match="lacks a processor"):
        embed_pairs(clip[0], [])
    with pytest.raises(ValueError, match="unknown modality 'video'"):
        Embedder().encode_items("video", [])


def test_encoders_name_the_item_that_cannot_be_used(clip, clap, tmp_path):
    """They give a row for each item, so they leave none out."""
    broken, missing = tmp_path / "broken", tmp_path / "missing"
    broken.write_bytes(b"neither a picture nor a sound")
    encoders = {"not an image": as_embedder(*clip).encode_image, "corrupt audio": as_embedder(*clap).encode_audio}
    for reason, encode in encoders.items():
        for item in (str(broken), broken, {"path": str(broken)}):
            with pytest.raises(BadItemError, match=f"{reason}: {broken}: "):
                encode([item])
        with pytest.raises(BadItemError, match=f"missing file: {missing}"):
            encode([{"bytes": None, "path": str(missing)}])
        with pytest.raises(BadItemError, match=f"{reason}: "):
            encode([{"bytes": broken.read_bytes(), "path": None}])


def test_what_cannot_be_used_is_left_out_of_pairs(clip, pictures, sentences, tmp_path, caplog):
    good = [
        {"id": f"{i}", "text": sentences[2 * i : 2 * i + 2], "image": picture} for i, picture in enumerate(pictures)
    ]
    bad = [
        {"id": "null", "text": "rain", "image": None},
        {"id": "cut", "text": "rain", "image": {"bytes": b"not a picture", "path": "cut.png"}},
        {"id": "device", "text": "rain", "image": {"bytes": None, "path": "/dev/zero"}},
        {"id": "none", "text": [], "image": pictures[0]},
        {"id": "blank", "text": ["", " \n"], "image": pictures[0]},
    ]
    some = [bad[0], *good[:3], *bad[1:4], *good[3:], bad[4]]
    some[2] = some[2] | {"text": ["", *some[2]["text"], None]}
    embedder = as_embedder(*clip)
    expected, found = embed_pairs(embedder, good), embed_pairs(embedder, some)
    for name in ("modality_embeds", "text_embeds", "text_to_item", "texts"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert [(bad.index, bad.id, bad.reason) for bad in found.bad_items] == [
        *[(0, "null", "no media"), (2, "1", "empty caption"), (2, "1", "no caption"), (4, "cut", "not an image")],
        *[(5, "device", "not a regular file"), (6, "none", "no caption")],
        *[(11, "blank", "empty caption"), (11, "blank", "empty caption")],
    ]
    assert not expected.bad_items and "left out of the evaluation: 8 items or captions" in caplog.text
    with pytest.raises(BadItemError, match=r"not an image: item cut: cut\.png: "):
        embed_pairs(embedder, [*good, bad[1]], on_bad_item="error")


def test_a_row_that_can_be_used_stands_for_one_of_its_id_that_cannot(clip, pictures):
    rows = [
        {"id": "7", "text": "rain", "image": None},
        {"id": "7", "text": "the dog", "image": pictures[0]},
        {"id": "7", "text": "music", "image": pictures[0]},
    ]
    pairs = embed_pairs(as_embedder(*clip), rows)
    assert pairs.texts == ("the dog", "music") and pairs.text_to_item.tolist() == [0, 0]


def test_equal_bytes_without_an_id_are_one_item(clip, pictures):
    def content(picture):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    rows = [{"text": f"text {number}", "image": content(pictures[number % 2])} for number in range(4)]
    pairs = embed_pairs(as_embedder(*clip), rows)
    assert pairs.text_to_item.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("long_clips", ["first", "mean"])
def test_leading_silence_is_passed_over_as_in_training(clap, tmp_path, long_clips):
    rate = 8000
    sounds = [np.random.default_rng(number).normal(0, 0.1, rate).astype(np.float32) for number in range(2)]
    cells = []
    for number, sound in enumerate(sounds):
        padded = np.concatenate([np.zeros(3 * rate, np.float32), sound])
        soundfile.write(tmp_path / f"{number}.wav", padded, rate, subtype="FLOAT")
        cells.append({"bytes": None, "path": str(tmp_path / f"{number}.wav")})
    embedder = as_embedder(*clap, options=EmbedOptions(long_clips=long_clips))
    embeds = embedder.encode_audio(cells)
    if long_clips == "first":
        windows = [load_waveform(cell, rate, max_seconds=1.0) for cell in cells]
        assert np.allclose(embeds, embedder.encode_audio(windows), atol=1e-6)
    else:
        assert np.allclose(embeds, embedder.encode_audio(sounds), atol=1e-5)
    assert np.allclose(
        embeds, embedder.encode_audio([np.concatenate([np.zeros(3 * rate), x]) for x in sounds]), atol=1e-5
    )
    assert np.abs(embeds[0] - embeds[1]).max() > 1e-3
    assert np.abs(embeds - embedder.encode_audio([np.zeros(rate)])).max() > 1e-3


def test_no_more_of_a_clip_is_decoded_than_the_model_takes(clap, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.wav", np.random.default_rng(0).normal(0, 0.1, 480_000), 8000)
    counted, read = [], soundfile.SoundFile.read

    def counting(self, frames, **options):
        block = read(self, frames, **options)
        counted.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counting)
    rows = [{"text": "rain", "audio": {"bytes": None, "path": str(tmp_path / "long.wav")}}]
    embed_pairs(as_embedder(*clap), rows, "audio")
    assert 8000 <= sum(counted) <= 8002


def test_nan_embeddings_are_an_error():
    with pytest.raises(ValueError, match=r"1 of 2 rows of the model.s embeddings hold NaN"):
        as_embedder(lambda texts: np.array([[1.0, 0.0], [np.nan, 0.0]])).encode_text(["a", "b"])

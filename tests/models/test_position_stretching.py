"""Long-CLIP's stretching of positions: against the paper's loop, and what it leaves as it is."""

import copy

import pytest
import torch
import transformers

from xmodal_hf import SentenceEncoder
from xmodal_hf.models.position_stretching import stretch_positions
from xmodal_hf.training.arguments import ContrastiveArguments, LoraArguments, TextModelArguments
from xmodal_hf.training.building import build_text_model, build_trained_dual_encoder, check_max_length


@pytest.fixture
def tower(text_config):
    return transformers.CLIPTextModel(text_config("clip_text", max_position_embeddings=77)).eval()


def table_of(tower):
    return next(p for name, p in tower.named_parameters() if name.endswith("position_embedding.weight")).detach()


def test_positions_are_those_of_the_paper(tower):
    """77 to 248: 20 kept, each of the 57 others and three between it and the next, the last step going on."""
    old = table_of(tower).clone()
    stretch_positions(tower, 248)
    expected = [old[place] for place in range(20)]
    for place in range(20, 77):
        following = old[place + 1] if place < 76 else 2 * old[76] - old[75]
        expected += [old[place] + (following - old[place]) * quarter / 4 for quarter in range(4)]
    assert table_of(tower).shape == (248, 32) and tower.config.max_position_embeddings == 248
    assert torch.allclose(table_of(tower), torch.stack(expected), atol=1e-6)


def test_short_texts_keep_their_vectors_and_long_ones_are_taken(tower):
    generator = torch.Generator().manual_seed(0)
    long, short = (torch.randint(4, 60, (2, width), generator=generator) for width in (130, 20))
    with torch.inference_mode():
        before = tower(input_ids=short).last_hidden_state
        with pytest.raises(ValueError):
            tower(input_ids=long)
        stretch_positions(tower, 130)
        assert torch.equal(tower(input_ids=short).last_hidden_state, before)
        assert tower(input_ids=long).last_hidden_state.shape == (2, 130, 32)


def test_saved_with_the_config(tower, tokenizer, tmp_path):
    """As --text_model with a --max_length above its positions, and loaded again, long texts and all."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = 77
    tower.save_pretrained(tmp_path / "clip")
    options = TextModelArguments(text_model=str(tmp_path / "clip"), max_length=120)
    model = SentenceEncoder.from_text_pretrained(build_text_model(options, tokenizer), pooling="last").eval()
    check_max_length(model, tokenizer, options)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    loaded = SentenceEncoder.from_pretrained(tmp_path / "model")
    assert loaded.config.text_config.max_position_embeddings == 120
    text = "the cat sleeps " * 50  # beyond 77 tokens
    changed = text[: 3 * 90] + "rain " + text[3 * 90 :]
    embeds = loaded.encode([text, changed])
    assert torch.equal(embeds, model.encode([text, changed], tokenizer=tokenizer))
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(saved(text, truncation=True)["input_ids"]) == 120


def test_an_adapter_does_not_hold_them(tower, make_image_text, image_text_processor, tmp_path):
    """Its base would be loaded with the positions that it was saved with."""
    processor = copy.deepcopy(image_text_processor)
    processor.tokenizer.model_max_length = 77
    make_image_text(text_config=tower.config, text_pooling="last").save_pretrained(tmp_path)
    contrastive, lora = ContrastiveArguments(model=str(tmp_path)), {"lora_rank": 2}

    def build(max_length, **options):
        text, processor_ = TextModelArguments(max_length=max_length), copy.deepcopy(processor)
        return build_trained_dual_encoder(text, contrastive, LoraArguments(**options), processor_)

    with pytest.raises(ValueError, match=r"--max_length 120 stretches .* pass --lora_merge, or a smaller"):
        build(120, **lora)
    models = build(77, **lora), build(120, **lora, lora_merge=True), build(120)
    assert [model.config.text_config.max_position_embeddings for model in models] == [77, 120, 120]


def test_other_towers_are_refused(text_config, tokenizer, tmp_path):
    bert = transformers.BertModel(text_config("bert"))
    with pytest.raises(ValueError, match="positions of a bert cannot be stretched"):
        stretch_positions(bert, 248)
    clip = transformers.CLIPTextModel(text_config("clip_text", max_position_embeddings=21))
    with pytest.raises(ValueError, match="21 positions cannot be stretched to 40 with the first 20 kept"):
        stretch_positions(clip, 40)
    bert.save_pretrained(tmp_path)
    options = TextModelArguments(text_model=str(tmp_path), max_length=248)
    model = SentenceEncoder.from_text_pretrained(build_text_model(options, copy.deepcopy(tokenizer)))
    with pytest.raises(ValueError, match="--max_length 248: the text tower takes 24 tokens at most"):
        check_max_length(model, tokenizer, options)

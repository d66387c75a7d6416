"""One place decides how texts are cut and padded; what it decides is saved with tokenizer and model."""

import copy
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor, SentenceEncoder
from xmodal_hf.evaluation import as_embedder
from xmodal_hf.models.text_format import TextFormat, prepare_tokenizer

TEXTS = ["rain", "the dog barks at night", "two small birds sing in the tall old tree"]
PAD, UNK, CLS, SEP = range(4)


@pytest.fixture
def make_tokenizer(tokenizer: PreTrainedTokenizerBase) -> Callable[..., PreTrainedTokenizerBase]:
    """Give `make_tokenizer(template, **attributes)`: the word tokenizer with other special tokens around a text."""

    def make(template: str = "[CLS] $A [SEP]", **attributes: object) -> PreTrainedTokenizerBase:
        made = copy.deepcopy(tokenizer)
        ends = [(token, made.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
        made.backend_tokenizer.post_processor = TemplateProcessing(template, special_tokens=ends)
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    return make


def with_poolings(texts: list[str], poolings: list[str]) -> list[tuple[str, str]]:
    """Pairs of a tower and a pooling; GPT-2 has no pooling layer of its own."""
    return [(text, pooling) for text in texts for pooling in poolings if (text, pooling) != ("gpt2", "pooler")]


class TestAFixedLength:
    def test_siglip_is_padded_as_it_was_trained(self, make_sentence_encoder, make_tokenizer, tmp_path):
        """SigLIP 2's tokenizer names no limit, gives a mask and pads with another id than the config says."""
        tokenizer = make_tokenizer(model_max_length=10**30)
        model = make_sentence_encoder("siglip_text", pooling="pooler")
        model.text_model.config.pad_token_id = UNK
        model.adopt_tokenizer(tokenizer)
        assert (tokenizer.model_max_length, model.text_model.config.pad_token_id) == (24, PAD)
        tokenizer.save_pretrained(tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        for each in (tokenizer, loaded):
            inputs = ImageTextProcessor(transformers.ViTImageProcessor(), each)(text=TEXTS, return_tensors="pt")
            assert inputs["input_ids"].shape == (3, 24) and "attention_mask" not in inputs
            expected = model.text_model(input_ids=inputs["input_ids"]).pooler_output
            alone = torch.cat([model.encode([text], normalize=False, tokenizer=each) for text in TEXTS])
            torch.testing.assert_close(alone, expected, atol=1e-6, rtol=0)

    def test_a_cut_text_is_padded_all_the_same(self, make_sentence_encoder, make_tokenizer):
        model, tokenizer = make_sentence_encoder("siglip_text", pooling="pooler"), make_tokenizer()
        text_format = TextFormat.of(model.text_model, tokenizer, max_length=4)
        batch = text_format.collate(text_format.tokenize(TEXTS))
        assert batch["input_ids"].shape == (3, 24) and batch["attention_mask"].sum(dim=1).tolist() == [3, 4, 4]

    def test_the_model_pads_what_a_pipeline_does_not(self, make_sentence_encoder, make_tokenizer, tmp_path):
        tokenizer = make_tokenizer()
        model = make_sentence_encoder("siglip_text", pooling="pooler")
        model.adopt_tokenizer(tokenizer)
        assert model.config.text_length == 24
        model.save_pretrained(tmp_path)
        loaded = SentenceEncoder.from_pretrained(tmp_path)
        expected = loaded.encode(TEXTS, tokenizer=tokenizer)
        narrow = tokenizer(TEXTS, padding=True, return_tensors="pt")
        assert narrow["input_ids"].shape[1] < 24
        torch.testing.assert_close(loaded(**narrow).text_embeds, expected, atol=1e-6, rtol=0)
        masked = tokenizer(TEXTS, padding=True, return_attention_mask=True, return_tensors="pt")
        torch.testing.assert_close(loaded(**masked).text_embeds, expected, atol=1e-6, rtol=0)
        one = loaded(masked["input_ids"][:1, :3], masked["attention_mask"][:1, :3]).text_embeds
        torch.testing.assert_close(loaded(**masked, text_sub_batches=3).text_embeds[:1], one, atol=1e-6, rtol=0)

    def test_a_model_that_never_met_a_tokenizer_pads_to_all_positions(self, make_sentence_encoder, make_tokenizer):
        tower, tokenizer = make_sentence_encoder("siglip_text", pooling="pooler").text_model, make_tokenizer()
        tower.config.pad_token_id = tokenizer.pad_token_id
        full = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
        expected = tower(input_ids=full).pooler_output
        model = SentenceEncoder.from_text_pretrained(tower, pooling="pooler")
        again = SentenceEncoder.from_text_pretrained(model, pooling="pooler")
        for each in (model, again):
            assert each.config.text_length == 24
            narrow = each(**tokenizer(TEXTS, padding=True, return_tensors="pt")).pooler_output
            torch.testing.assert_close(narrow, expected, atol=1e-6, rtol=0)
        model.config.text_length = 16  # as a tokenizer has said
        assert SentenceEncoder.from_text_pretrained(model, pooling="pooler").config.text_length == 16

    @pytest.mark.parametrize("pooling", ["pooler", "mean"])
    def test_a_tokenizer_that_was_not_prepared_gives_no_mask_either(
        self, pooling, make_sentence_encoder, make_tokenizer
    ):
        model, tokenizer = make_sentence_encoder("siglip_text", pooling=pooling), make_tokenizer()
        ids = tokenizer(TEXTS, padding="max_length", max_length=24, return_tensors="pt")["input_ids"]
        assert "attention_mask" in tokenizer.model_input_names
        expected = model(ids).text_embeds
        torch.testing.assert_close(model.encode(TEXTS, tokenizer=tokenizer), expected, atol=1e-6, rtol=0)
        found = torch.from_numpy(as_embedder(model, tokenizer).encode_text(TEXTS))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


class TestPadding:
    def test_a_missing_pad_token_is_chosen_saved_and_masked(
        self, make_sentence_encoder, make_tokenizer, tmp_path, caplog
    ):
        tokenizer, model = make_tokenizer(pad_token=None), make_sentence_encoder("gpt2", pooling="last")
        expected = torch.cat([model.encode([text], tokenizer=tokenizer) for text in TEXTS])
        together = model.encode(TEXTS, tokenizer=tokenizer, max_tokens_per_batch=99)
        torch.testing.assert_close(together, expected, atol=1e-6, rtol=0)
        assert tokenizer.pad_token is None  # the caller's
        model.text_model.config.pad_token_id = None
        with caplog.at_level(logging.WARNING):
            model.adopt_tokenizer(tokenizer)
        assert len(caplog.messages) == 1 and "padded with '[SEP]', masked" in caplog.text
        assert model.config.text_config.pad_token_id == tokenizer.pad_token_id == SEP
        tokenizer.save_pretrained(tmp_path)
        batch = AutoTokenizer.from_pretrained(tmp_path)(TEXTS, padding=True, return_tensors="pt")
        torch.testing.assert_close(model(**batch).text_embeds, expected, atol=1e-6, rtol=0)

    def test_a_token_that_pads_and_ends_texts_keeps_its_gradient(self, text_config):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.LlamaConfig(**sizes, vocab_size=40, pad_token_id=SEP, eos_token_id=[SEP, 9])
        model = SentenceEncoder(SentenceEncoder.config_class(text_config=config, pooling="eos"))
        model(torch.tensor([[5, 6, SEP]])).text_embeds.sum().backward()
        assert model.get_input_embeddings().weight.grad[SEP].abs().sum() > 0

    @pytest.mark.parametrize(
        ("text", "pooling"),
        with_poolings(["bert", "roberta", "mpnet", "clip_text", "gpt2"], ["cls", "mean", "last", "eos", "pooler"]),
    )
    def test_the_side_makes_no_difference(self, text, pooling, make_sentence_encoder, tokenizer):
        model = make_sentence_encoder(text, pooling=pooling)
        sides = {
            side: tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt") for side in ("left", "right")
        }
        left, right = (model(**sides[side], output_hidden_states=True) for side in ("left", "right"))
        assert sides["left"]["attention_mask"][0, 0] == 0
        torch.testing.assert_close(left.text_embeds, right.text_embeds, atol=1e-6, rtol=0)
        for states in (lambda out: out.last_hidden_state, lambda out: out.hidden_states[1]):
            expected = [states(right)[row, : mask.sum()] for row, mask in enumerate(sides["right"]["attention_mask"])]
            found = [states(left)[row, -mask.sum() :] for row, mask in enumerate(sides["left"]["attention_mask"])]
            for one, other in zip(found, expected, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=0)

    def test_attentions_come_back_on_the_side_that_was_padded(self, make_sentence_encoder, tokenizer):
        model = make_sentence_encoder("bert")
        model.set_attn_implementation("eager")
        left = model(**tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="pt"), output_attentions=True)
        right = model(**tokenizer(TEXTS, padding=True, return_tensors="pt"), output_attentions=True)
        torch.testing.assert_close(left.attentions[0][0, :, -3:, -3:], right.attentions[0][0, :, :3, :3])

    @pytest.mark.parametrize(
        ("text", "pooling"), with_poolings(["bert", "roberta", "gpt2"], ["cls", "mean", "last", "pooler"])
    )
    def test_embeddings_in_the_place_of_ids_are_padded_on_either_side(
        self, text, pooling, make_sentence_encoder, tokenizer
    ):
        model = make_sentence_encoder(text, pooling=pooling)
        expected = model(**tokenizer(TEXTS, padding=True, return_tensors="pt")).text_embeds
        found = []
        for side in ("right", "left"):
            batch = tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")
            embeds = model.get_input_embeddings()(batch["input_ids"])
            found.append(model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).text_embeds)
        torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(found[0], expected, atol=1e-6, rtol=0)


class TestAPoolingThatReadsNothing:
    @pytest.mark.parametrize("text", ["gpt2", "clip_text", "llama"])
    def test_is_refused_where_a_model_is_built_and_named_where_one_is_loaded(
        self, text, make_sentence_encoder, text_config, tmp_path, caplog
    ):
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.LlamaConfig(**sizes, vocab_size=40) if text == "llama" else text_config(text)
        old = SentenceEncoder(SentenceEncoder.config_class(text_config=config, pooling="cls")).eval()
        with pytest.raises(ValueError, match=r"'cls' reads the first token.*use 'last' or 'mean'"):
            SentenceEncoder.from_text_pretrained(old.text_model, pooling="cls")
        with pytest.raises(ValueError, match=r"'cls' reads the first token.*use 'last' or 'mean'"):
            image = transformers.ResNetModel(transformers.ResNetConfig(hidden_sizes=[8], depths=[1], embedding_size=8))
            ImageTextDualEncoder.from_text_image_pretrained(old.text_model, image, pooling="cls")
        old.save_pretrained(tmp_path)
        loaded = SentenceEncoder.from_pretrained(tmp_path)
        assert "every text has the same vector" in caplog.text
        ids = torch.tensor([[5, 6, 7]])
        torch.testing.assert_close(loaded(ids).text_embeds, old(ids).text_embeds)

    def test_others_are_built(self, make_sentence_encoder, caplog):
        for text, pooling in (("bert", "cls"), ("t5", "cls"), ("siglip_text", "cls"), ("gpt2", "last")):
            tower = make_sentence_encoder(text).text_model
            assert SentenceEncoder.from_text_pretrained(tower, pooling=pooling).config.pooling == pooling

    def test_unknown_words_are_not_taken_for_the_end(self, make_sentence_encoder, make_tokenizer):
        """GPT-2's tokenizer has one special token for both, and appends none."""
        model, tokenizer = make_sentence_encoder("gpt2", pooling="eos"), make_tokenizer("$A")
        model.text_model.config.eos_token_id = tokenizer.unk_token_id
        with pytest.raises(ValueError, match="'eos' reads the end-of-text token"):
            model.encode(TEXTS, tokenizer=tokenizer)

    @pytest.mark.parametrize(
        ("text", "pooling", "template", "match"),
        [
            ("gpt2", "cls", "[CLS] $A [SEP]", "'cls' gives texts that differ the same vector.*causal text tower"),
            ("gpt2", "cls", "$A", "'cls' gives texts that differ the same vector"),
            ("clip_text", "pooler", "[CLS] $A", "'pooler' gives texts that differ the same vector.*eos_token_id"),
            ("gpt2", "eos", "[CLS] $A", r"'eos' reads the end-of-text token, id 3.*use pooling 'last'"),
            ("bert", "eos", "[SEP] $A", r"'eos' reads the end-of-text token, id 3"),
        ],
    )
    def test_is_refused(self, text, pooling, template, match, make_sentence_encoder, make_tokenizer):
        model, tokenizer = make_sentence_encoder(text, pooling=pooling), make_tokenizer(template)
        with pytest.raises(ValueError, match=match):
            model.encode(TEXTS, tokenizer=tokenizer)
        with pytest.raises(ValueError, match=match):
            as_embedder(model, tokenizer).encode_text(TEXTS)
        if pooling != "pooler":
            with pytest.raises(ValueError, match=match):
                as_embedder(model.text_model, tokenizer, pooling=pooling).encode_text(TEXTS)

    @pytest.mark.parametrize(
        ("text", "pooling", "template"),
        [
            ("gpt2", "last", "$A"),
            ("gpt2", "mean", "[CLS] $A"),
            ("bert", "cls", "[CLS] $A"),
            ("clip_text", "pooler", "[CLS] $A [SEP]"),
            ("gpt2", "eos", "[SEP] $A [SEP]"),
        ],
    )
    def test_others_are_not(self, text, pooling, template, make_sentence_encoder, make_tokenizer):
        model, tokenizer = make_sentence_encoder(text, pooling=pooling), make_tokenizer(template)
        embeds = model.encode(TEXTS, tokenizer=tokenizer)
        assert (embeds[0] - embeds[1]).abs().max() > 1e-3


def test_texts_are_cut_where_tokenizer_and_tower_end(make_sentence_encoder, make_tokenizer, tmp_path: Path) -> None:
    model, tokenizer = make_sentence_encoder("roberta"), make_tokenizer(model_max_length=10**30)
    assert TextFormat.of(model, tokenizer).max_length == 24
    assert TextFormat.of(model, make_tokenizer(model_max_length=9)).max_length == 9
    assert TextFormat.of(model, tokenizer, max_length=5).max_length == 5
    prepare_tokenizer(tokenizer, model.text_model)
    assert tokenizer.model_max_length == 24

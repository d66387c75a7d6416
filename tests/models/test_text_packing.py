"""A packed text tower computes what the padded one computes, for every tower and pooling that is packed."""

import copy

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from xmodal_hf import SentenceEncoder
from xmodal_hf.models import text_packing
from xmodal_hf.models.text_packing import Packing, can_pack
from xmodal_hf.models.towers import build_tower

PAD, END = 1, 99
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 100,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": transformers.BertConfig(**SIZES, eos_token_id=END),
    "roberta": transformers.RobertaConfig(**SIZES, eos_token_id=END),
    "xlm-roberta": transformers.XLMRobertaConfig(**SIZES, eos_token_id=END),
    "clip_text_model": transformers.CLIPTextConfig(**SIZES, eos_token_id=END),
    "clip_text_model of 2021": transformers.CLIPTextConfig(**SIZES, eos_token_id=2),
}


def make_tower(name: str) -> PreTrainedModel:
    """A tower whose weights are all random: new norms and biases would hide which token they were applied to."""
    torch.manual_seed(0)
    tower = build_tower(copy.deepcopy(CONFIGS[name])).double()
    for parameter in tower.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return tower


def make_texts(rows: int = 11, width: int = 20) -> dict[str, Tensor]:
    """Right-padded texts of 2 to `width` tokens that end with END."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, width + 1, (rows,), generator=generator)
    lengths[0] = width
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.randint(5, 98, (rows, width), generator=generator)
    ids[torch.arange(rows), lengths - 1] = END
    return {"input_ids": torch.where(mask.bool(), ids, PAD), "attention_mask": mask}


def embed_and_differentiate(model: SentenceEncoder, **inputs: Tensor | int) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    embeds = model(**inputs).text_embeds
    (embeds * torch.linspace(-1, 1, embeds.numel()).view_as(embeds)).sum().backward()
    return embeds.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "eos", "last", "pooler"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_is_padded(name: str, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tower = make_tower(name)
    # Not by `from_text_pretrained`, which refuses CLIP's tower with `cls`.
    config = SentenceEncoder.config_class(text_config=tower.config.to_dict(), pooling=pooling)
    model = SentenceEncoder(config, tower).double().eval()
    calls: list[Packing] = []
    attend = text_packing.attend
    packed = {**transformers.AttentionInterface._global_mapping}
    monkeypatch.setattr(transformers.AttentionInterface, "_global_mapping", packed)
    packed[text_packing._IMPLEMENTATION] = lambda *args, **kwargs: (
        calls.append(kwargs["packing"]) or attend(*args, **kwargs)
    )
    texts = make_texts()
    expected, expected_gradients = embed_and_differentiate(model, **texts)
    assert not calls
    embeds, gradients = embed_and_differentiate(model, **texts, text_sub_batches=3)
    assert len(calls) == SIZES["num_hidden_layers"] and len(calls[0].sub_batches) == 3
    torch.testing.assert_close(embeds, expected, atol=1e-12, rtol=0)
    assert gradients.keys() == expected_gradients.keys()
    for parameter, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[parameter], gradient, atol=1e-10, rtol=0)


def texts_with_equal_beginnings() -> dict[str, Tensor]:
    """Texts of which some begin alike; two are equal, and one is the beginning of others."""
    words = [[3, 10, 11, 12, END], [3, 10, 11, END], [3, 10, 11], [3, 20, END], [3, 10, 11, 12, END], [4, 10, END]]
    words += [[3, 10, 11, 30, 31, 32, END], [3, 20, 21, 10, 11, END]]
    width = max(map(len, words))
    ids = torch.tensor([text + [END] * (width - len(text)) for text in words])
    mask = (torch.arange(width) < torch.tensor([len(text) for text in words])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


class TestEqualBeginnings:
    @pytest.mark.parametrize("pooling", ["mean", "max", "eos", "last", "pooler"])
    @pytest.mark.parametrize("name", ["clip_text_model", "clip_text_model of 2021"])
    def test_they_are_computed_once(self, name: str, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
        model = SentenceEncoder.from_text_pretrained(make_tower(name), pooling=pooling).double().train()
        texts = texts_with_equal_beginnings()
        if pooling == "pooler":  # which finds no end in the third text
            texts = {name: value[[0, 1, 3, 4, 5, 6, 7]] for name, value in texts.items()}
        expected, expected_gradients = embed_and_differentiate(model, **texts)
        computed: dict[str, int] = {}
        blocks = model.text_model.encoder.layers
        for where, module in (
            ("first", blocks[0].mlp),
            ("last", blocks[-1].mlp.fc1),
            ("keys", blocks[-1].self_attn.k_proj),
        ):
            module.register_forward_hook(
                lambda module, inputs, output, where=where: computed.update({where: len(inputs[0])})
            )
        embeds, gradients = embed_and_differentiate(model, **texts, text_sub_batches=3)
        real = [row[mask.bool()].tolist() for row, mask in zip(*texts.values(), strict=True)]
        beginnings = {tuple(text[: end + 1]) for text in real for end in range(len(text))}
        assert computed["first"] == computed["keys"] == len(beginnings) < sum(map(len, real)) - 10
        read = len({tuple(text) for text in real}) if pooling in ("eos", "last", "pooler") else len(beginnings)
        assert computed["last"] == read
        torch.testing.assert_close(embeds, expected, atol=1e-12, rtol=0)
        assert gradients.keys() == expected_gradients.keys()
        for parameter, gradient in expected_gradients.items():
            torch.testing.assert_close(gradients[parameter], gradient, atol=1e-10, rtol=0)
        assert not any(module._forward_hooks for module in model.modules() if module is blocks[-1].self_attn.q_proj)

    def test_rows_with_the_same_beginning(self) -> None:
        texts = texts_with_equal_beginnings()
        first = text_packing.first_rows(*texts.values())
        for row, mask in enumerate(texts["attention_mask"].bool()):
            for column in range(int(mask.sum())):
                begins = (texts["input_ids"][:, : column + 1] == texts["input_ids"][row, : column + 1]).all(dim=1)
                alike = (begins & texts["attention_mask"][:, column].bool()).nonzero().squeeze(1)
                assert first[row, column] in alike and len(set(first[alike, column].tolist())) == 1

    def test_not_with_dropout_nor_where_tokens_see_what_follows(self) -> None:
        tower = make_tower("clip_text_model").train()
        assert text_packing.shares_beginnings(tower)
        assert not text_packing.shares_beginnings(make_tower("bert").eval())
        tower.config.attention_dropout = 0.1
        assert not text_packing.shares_beginnings(tower) and text_packing.shares_beginnings(tower.eval())
        tower.config.attention_dropout = 0.0
        tower.train().encoder.layers[0].self_attn.lora_dropout = torch.nn.Dropout(0.1)
        assert not text_packing.shares_beginnings(tower)


def test_every_packed_tower_is_tested() -> None:
    assert {config.model_type for config in CONFIGS.values()} == set(text_packing.PACKED_TOWERS)


def test_given_positions_and_token_types_are_kept() -> None:
    model = SentenceEncoder.from_text_pretrained(make_tower("bert"), pooling="mean").double().eval()
    texts = make_texts()
    texts["position_ids"] = torch.arange(20).flip(0).expand(11, -1)
    texts["token_type_ids"] = torch.arange(20).remainder(2).expand(11, -1)
    expected, _ = embed_and_differentiate(model, **texts)
    embeds, _ = embed_and_differentiate(model, **texts, text_sub_batches=4)
    torch.testing.assert_close(embeds, expected, atol=1e-12, rtol=0)


def test_slots_are_unique_and_unpacking_undoes_packing() -> None:
    texts = make_texts()
    packing = Packing.of(texts["attention_mask"], text_sub_batches=3)
    assert len(packing.slots.unique()) == len(packing.slots) == texts["attention_mask"].sum()
    assert packing.num_slots == sum(group.texts * group.width for group in packing.sub_batches) < 11 * 20
    values = torch.randn(11, 20, dtype=torch.float64) * texts["attention_mask"]
    assert torch.equal(packing.unpack(packing.pack(values), values.shape).squeeze(2), values)


def test_padding_ids_inside_a_text_keep_their_positions() -> None:
    model = SentenceEncoder.from_text_pretrained(make_tower("roberta"), pooling="mean").double().eval()
    texts = make_texts()
    texts["input_ids"][0, 3] = PAD
    expected, _ = embed_and_differentiate(model, **texts)
    embeds, _ = embed_and_differentiate(model, **texts, text_sub_batches=3)
    torch.testing.assert_close(embeds, expected, atol=1e-12, rtol=0)


def test_a_text_that_is_read_in_its_padding_is_not_packed() -> None:
    tower, (ids, mask) = make_tower("clip_text_model"), make_texts().values()
    ids[mask == 0] = END  # CLIP pads with the end of text
    assert can_pack(tower, "pooler", ids, mask)
    ids[1, mask[1].sum() - 1] = 7  # cut before its end
    assert not can_pack(tower, "pooler", ids, mask)
    assert can_pack(tower, "mean", ids, mask)


def test_what_cannot_be_packed() -> None:
    tower, (ids, mask) = make_tower("bert"), make_texts().values()
    assert can_pack(tower, "mean", ids, mask)
    assert not can_pack(tower, "mean", ids.flip(1), mask.flip(1))
    tower.gradient_checkpointing_enable()
    assert not can_pack(tower, "mean", ids, mask)
    tower.gradient_checkpointing_disable()
    tower.set_attn_implementation("eager")
    assert not can_pack(tower, "mean", ids, mask)


def test_the_tower_is_as_before_after_an_error() -> None:
    model = SentenceEncoder.from_text_pretrained(make_tower("bert"), pooling="mean").double()
    texts = make_texts()
    with pytest.raises(IndexError):
        model(texts["input_ids"] + 1000, texts["attention_mask"], text_sub_batches=2)
    assert model.text_model.config._attn_implementation == "sdpa"

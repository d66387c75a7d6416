"""The sentence encoder: head, encoding of lists, and where its tokenizer comes from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertForMaskedLM, PreTrainedTokenizerBase, ViTModel

from xmodal_hf import SentenceEncoder, SentenceEncoderConfig

SENTENCES = [
    "rain",
    "two small birds sing in the tall old tree",
    "the dog barks at night",
    "music plays softly while people talk",
    "the cat sleeps",
]


def encode_in_a_loop(encoder: SentenceEncoder, tokenizer: PreTrainedTokenizerBase, normalize: bool) -> torch.Tensor:
    """Encode one sentence at a time: no padding, no order."""
    rows = []
    for sentence in SENTENCES:
        inputs = tokenizer(sentence, return_tensors="pt")
        with torch.no_grad():
            output = encoder(input_ids=inputs["input_ids"])
        rows.append((output.text_embeds if normalize else output.pooler_output)[0])
    return torch.stack(rows)


# --- forward ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["none", "linear", "mlp"])
def test_head(head: str, make_sentence_encoder: Callable, make_text_batch: Callable) -> None:
    encoder = make_sentence_encoder(head=head, head_dim=None if head == "none" else 8)
    batch = make_text_batch()
    output = encoder(**batch)
    mask = batch["attention_mask"].unsqueeze(-1).double()
    pooled = (output.last_hidden_state.double() * mask).sum(dim=1) / mask.sum(dim=1)
    if head != "none":
        linear = encoder.head[0] if head == "mlp" else encoder.head
        pooled = pooled @ linear.weight.double().t() + linear.bias.double()
        pooled = pooled.tanh() if head == "mlp" else pooled
    torch.testing.assert_close(output.pooler_output.double(), pooled, atol=1e-6, rtol=1e-5)
    expected = pooled / pooled.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(output.text_embeds.double(), expected, atol=1e-6, rtol=1e-5)


def test_head_at_inference(make_sentence_encoder: Callable, make_text_batch: Callable) -> None:
    """Unsupervised SimCSE trains with the head and drops it afterwards."""
    encoder = make_sentence_encoder(head="mlp", head_dim=8, head_at_inference=False)
    batch = make_text_batch()
    assert encoder(**batch).pooler_output.shape == (4, 32)
    encoder.train()
    assert encoder(**batch).pooler_output.shape == (4, 8)
    with_head = make_sentence_encoder(head="mlp", head_dim=8)
    assert with_head(**batch).pooler_output.shape == with_head.train()(**batch).pooler_output.shape == (4, 8)


@pytest.mark.parametrize(
    ("text", "pooling", "head"),
    [("bert", "mean", "none"), ("bert", "pooler", "linear"), ("roberta", "cls", "mlp"), ("clip_text", "eos", "none")],
)
def test_every_parameter_gets_a_gradient(
    text: str, pooling: str, head: str, make_sentence_encoder: Callable, make_text_batch: Callable
) -> None:
    encoder = make_sentence_encoder(text, pooling=pooling, head=head).train()
    embeds = encoder(**make_text_batch()).text_embeds
    (embeds @ embeds.t()).logsumexp(dim=1).sum().backward()
    assert [name for name, parameter in encoder.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("padding_side", ["right", "left"])
def test_text_sub_batches_change_nothing(
    padding_side: str, make_sentence_encoder: Callable, make_text_batch: Callable
) -> None:
    encoder = make_sentence_encoder(head="linear").double()
    batch = make_text_batch(rows=7, padding_side=padding_side)
    weights = torch.randn(7, 32, dtype=torch.double)
    grads = []
    for parts in (1, 3):
        (encoder(**batch, text_sub_batches=parts).text_embeds * weights).sum().backward()
        grads.append([parameter.grad.clone() for parameter in encoder.parameters()])
        encoder.zero_grad()
    for plain, parts in zip(*grads, strict=True):
        torch.testing.assert_close(parts, plain, atol=1e-11, rtol=0)
    assert max(grad.abs().max() for grad in grads[0]) > 1e-3


def test_masked_tokens_are_predicted_alike_on_either_side_of_padding(make_sentence_encoder: Callable) -> None:
    """BERT counts its positions from the first column, padding included."""
    model = make_sentence_encoder(mlm_head=True)
    pad = model.config.text_config.pad_token_id
    words, labels = torch.tensor([[5, 6, 7]]), torch.tensor([[-100, 6, -100]])
    losses = []
    for sides in ((0, 2), (2, 0)):
        ids, of_ids = (torch.nn.functional.pad(x, sides, value=fill) for x, fill in ((words, pad), (labels, -100)))
        losses.append(model(input_ids=words, mlm_input_ids=ids, mlm_labels=of_ids).mlm_loss)
    assert torch.allclose(*losses, atol=1e-5) and losses[0] > 0


def test_token_type_ids(make_sentence_encoder: Callable, make_text_batch: Callable) -> None:
    batch = make_text_batch()
    types = torch.ones_like(batch["input_ids"])
    for text, used in (("bert", True), ("distilbert", False)):
        encoder = make_sentence_encoder(text)
        same = torch.equal(encoder(**batch, token_type_ids=types).text_embeds, encoder(**batch).text_embeds)
        assert same != used


def test_gradient_checkpointing(make_sentence_encoder: Callable, make_text_batch: Callable) -> None:
    encoder, batch = make_sentence_encoder().double(), make_text_batch()
    grads = []
    for enable in (False, True):
        if enable:
            encoder.gradient_checkpointing_enable()
            encoder.train()
            for module in encoder.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        encoder(**batch).text_embeds[:, 0].sum().backward()
        grads.append([parameter.grad.clone() for parameter in encoder.parameters()])
        encoder.zero_grad()
    assert any(module.gradient_checkpointing for module in encoder.text_model.encoder.layer)
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-10, rtol=0)


def test_bfloat16_and_eager(tmp_path: Path, sentence_encoder: SentenceEncoder, make_text_batch: Callable) -> None:
    sentence_encoder.save_pretrained(tmp_path)
    batch = make_text_batch()
    expected = sentence_encoder(**batch).text_embeds
    small = SentenceEncoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(small(**batch).text_embeds.float(), expected, atol=0.03, rtol=0)
    eager = SentenceEncoder.from_pretrained(tmp_path, attn_implementation="eager")
    assert eager.text_model.config._attn_implementation == "eager"
    torch.testing.assert_close(eager(**batch).text_embeds, expected, atol=1e-6, rtol=1e-5)


def test_resized_token_embeddings(
    sentence_encoder: SentenceEncoder, make_text_batch: Callable, reload: Callable
) -> None:
    sentence_encoder.resize_token_embeddings(70)
    batch = make_text_batch()
    batch["input_ids"][0, 0] = 69
    assert sentence_encoder.config.text_config.vocab_size == 70
    assert torch.equal(reload(sentence_encoder)(**batch).text_embeds, sentence_encoder(**batch).text_embeds)


# --- building --------------------------------------------------------------------------------------------------------


def test_from_a_model_with_a_head_on_top(text_config: Callable, make_text_batch: Callable, reload: Callable) -> None:
    masked_lm = BertForMaskedLM(text_config()).eval()
    weights = {name: value.clone() for name, value in masked_lm.bert.state_dict().items()}
    encoder = SentenceEncoder.from_text_pretrained(masked_lm, pooling="cls", head="mlp").eval()
    assert encoder.text_model is masked_lm.bert
    for name, value in encoder.text_model.state_dict().items():
        assert torch.equal(value, weights[name])
    batch = make_text_batch()
    assert torch.equal(reload(encoder)(**batch).text_embeds, encoder(**batch).text_embeds)


def test_wrong_towers(image_config: Callable, text_config: Callable) -> None:
    with pytest.raises(ValueError, match="text_model ViTModel does not take input_ids: pass an encoder that does"):
        SentenceEncoder.from_text_pretrained(ViTModel(image_config()))
    with pytest.raises(ValueError, match="text_model ViTModel does not take input_ids: pass an encoder that does"):
        SentenceEncoder(SentenceEncoderConfig(text_config=image_config()))
    with pytest.raises(TypeError, match=r"SentenceEncoderConfig has no field heads: did you mean head\?"):
        SentenceEncoder.from_text_pretrained(BertForMaskedLM(text_config()), heads="mlp")


# --- encode ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("text", "pooling"), [("bert", "mean"), ("bert", "cls"), ("roberta", "max"), ("clip_text", "eos"), ("t5", "mean")]
)
def test_encode_equals_a_loop(
    text: str, pooling: str, normalize: bool, make_sentence_encoder: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    encoder = make_sentence_encoder(text, pooling=pooling)
    expected = encode_in_a_loop(encoder, tokenizer, normalize)
    embeds = encoder.encode(SENTENCES, batch_size=2, normalize=normalize, tokenizer=tokenizer)
    torch.testing.assert_close(embeds, expected, atol=1e-6, rtol=1e-5)
    # In the order that was given: no two rows are alike.
    assert torch.pdist(embeds).min() > 1e-3


def test_encode_does_not_depend_on_the_batch_size(
    sentence_encoder: SentenceEncoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    whole = sentence_encoder.encode(SENTENCES, batch_size=64, tokenizer=tokenizer)
    for batch_size in (1, 2, 3):
        parts = sentence_encoder.encode(SENTENCES, batch_size=batch_size, tokenizer=tokenizer)
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=0)


def test_encode_pads_little(sentence_encoder: SentenceEncoder, tokenizer: PreTrainedTokenizerBase) -> None:
    shapes: list[tuple[int, ...]] = []
    sentence_encoder.text_model.register_forward_hook(
        lambda module, args, kwargs, output: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sentence_encoder.encode(SENTENCES, batch_size=2, tokenizer=tokenizer)
    assert shapes == [(2, 11), (2, 7), (1, 3)]  # longest first; 9 words and two special tokens


def test_encode_drops_the_head_and_dropout_and_comes_back(
    make_sentence_encoder: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    encoder = make_sentence_encoder(head="mlp", head_dim=8, head_at_inference=False).train()
    first = encoder.encode(SENTENCES, tokenizer=tokenizer)
    assert encoder.training
    assert first.shape == (5, 32) and torch.equal(first, encoder.encode(SENTENCES, tokenizer=tokenizer))
    encoder.eval()
    encoder.encode(SENTENCES, tokenizer=tokenizer)
    assert not encoder.training


def test_encoded_vectors_can_train_a_probe(
    sentence_encoder: SentenceEncoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    embeds = sentence_encoder.encode(SENTENCES, tokenizer=tokenizer)
    assert embeds.dtype == torch.float32 and embeds.device.type == "cpu" and not embeds.requires_grad
    probe = nn.Linear(32, 1)
    probe(embeds).sum().backward()
    torch.testing.assert_close(probe.weight.grad[0], embeds.sum(dim=0))


def test_encode_normalises_in_full_precision(
    sentence_encoder: SentenceEncoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    embeds = sentence_encoder.bfloat16().encode(SENTENCES, tokenizer=tokenizer)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(5), atol=1e-6, rtol=0)


def test_tokenizer_beside_the_model(
    sentence_encoder_folder: Path, sentence_encoder: SentenceEncoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    expected = sentence_encoder.encode(SENTENCES, tokenizer=tokenizer)
    for loaded in (
        SentenceEncoder.from_pretrained(sentence_encoder_folder),
        AutoModel.from_pretrained(sentence_encoder_folder),
    ):
        torch.testing.assert_close(loaded.encode(SENTENCES), expected, atol=1e-6, rtol=1e-5)


# RoBERTa has 25 positions here and leaves one for padding, MPNet leaves two; T5 has no limit.
@pytest.mark.parametrize(
    ("text", "width"), [("bert", 24), ("roberta", 24), ("mpnet", 23), ("clip_text", 24), ("t5", 52)]
)
def test_long_texts_are_cut_to_what_the_tower_takes(
    text: str, width: int, make_sentence_encoder: Callable, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A tokenizer without a limit of its own leaves it to the tower's positions."""
    unlimited = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    assert unlimited.model_max_length > 10**9
    encoder = make_sentence_encoder(text)
    widths: list[int] = []
    encoder.text_model.register_forward_hook(
        lambda module, args, kwargs, output: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    encoder.encode(["the dog barks at night " * 10], tokenizer=unlimited)
    assert widths == [width]
    encoder.encode(["the dog barks at night " * 10], tokenizer=unlimited, max_length=5)
    assert widths[-1] == 5


def test_wrong_sentences(sentence_encoder: SentenceEncoder, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(TypeError, match=r"encode takes a list of sentences: pass \[sentence\]"):
        sentence_encoder.encode("rain", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="encode needs at least one sentence"):
        sentence_encoder.encode([], tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"not loaded from a folder: pass encode\(..., tokenizer=...\)"):
        sentence_encoder.encode(["rain"])


def test_wrong_input(sentence_encoder: SentenceEncoder) -> None:
    with pytest.raises(ValueError, match=r"input_ids must be a tensor \(batch, tokens\) of token ids, got NoneType"):
        sentence_encoder()
    with pytest.raises(ValueError, match=r"got a tensor of shape \(3,\)"):
        sentence_encoder(input_ids=torch.ones(3, dtype=torch.long))


@pytest.mark.parametrize("limits", [{"max_tokens_per_batch": 1}, {"max_tokens_per_batch": 30}, {"batch_size": 2}, {}])
def test_encode_gives_the_same_vectors_whatever_the_batches(sentence_encoder, tokenizer, limits):
    sentences = ["rain", "a red apple and two small birds", "the dog", "the cat sleeps"]
    alone = torch.cat([sentence_encoder.encode([sentence], tokenizer=tokenizer) for sentence in sentences])
    torch.testing.assert_close(sentence_encoder.encode(sentences, tokenizer=tokenizer, **limits), alone)


def test_encoded_vectors_may_take_part_in_training(sentence_encoder, tokenizer):
    """They are made in inference mode, whose tensors autograd refuses."""
    embeds = sentence_encoder.encode(["rain", "the dog"], tokenizer=tokenizer)
    probe = torch.nn.Linear(embeds.shape[1], 1)
    probe(embeds).sum().backward()
    assert not embeds.is_inference() and probe.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("limits", [{"max_tokens_per_batch": 0}, {"batch_size": 0}])
def test_encode_refuses_batches_of_nothing(sentence_encoder, tokenizer, limits):
    with pytest.raises(ValueError, match="batch_size and max_tokens_per_batch must be at least 1"):
        sentence_encoder.encode(["rain"], tokenizer=tokenizer, **limits)


def test_encode_restores_the_modes_of_all_modules(
    sentence_encoder: SentenceEncoder, tokenizer: PreTrainedTokenizerBase
) -> None:
    sentence_encoder.train()
    sentence_encoder.text_model.encoder.eval()  # as a part that is frozen

    def modes() -> dict[str, bool]:
        return {name: module.training for name, module in sentence_encoder.named_modules()}

    before = modes()
    assert set(before.values()) == {True, False}
    sentence_encoder.encode(["a cat", "a dog barks"], tokenizer=tokenizer)
    assert modes() == before

    def fail(*_: object) -> None:
        assert not sentence_encoder.training
        raise RuntimeError("out of memory")

    hook = sentence_encoder.text_model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        sentence_encoder.encode(["a cat"], tokenizer=tokenizer)
    hook.remove()
    assert modes() == before

"""Every text family that people use, tiny and with random weights: what must work works for each.

The table of docs/towers.md is written by `python tests/models/test_text_families.py`, and compared with it here.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate import Accelerator
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor, SentenceEncoder
from xmodal_hf.data.collators import PairCollator, SentenceCollator
from xmodal_hf.data.seeding import EpochIndex
from xmodal_hf.evaluation import as_embedder
from xmodal_hf.evaluation.loading import load_embedder
from xmodal_hf.models.text_packing import PACKED_TOWERS
from xmodal_hf.models.towers import build_tower
from xmodal_hf.objectives import CrossModalObjective, SentenceObjective
from xmodal_hf.training.adapters import add_lora
from xmodal_hf.training.arguments import ContrastiveArguments, LoraArguments, SentenceArguments, TextModelArguments
from xmodal_hf.training.batches import text_lengths
from xmodal_hf.training.building import build_dual_encoder, build_processor, build_sentence_encoder, build_tokenizer
from xmodal_hf.training.dry_run import _activation_bytes
from xmodal_hf.training.grad_cache import cached_backward
from xmodal_hf.training.towers import halve_frozen_weights, has_halved_weights, restore_frozen_weights

DOCUMENT = Path(__file__).parents[2] / "docs" / "towers.md"
WORDS = [
    "a",
    "the",
    "red",
    "green",
    "blue",
    "square",
    "squares",
    "circle",
    "dog",
    "cat",
    "bird",
    "sings",
    "runs",
    "under",
    "over",
    "two",
    "three",
    "small",
    "big",
    "old",
    "tall",
]
TEXTS = ["a dog", "the red cat runs under two tall blue squares", "bird", "three small old green circle"]
POSITIONS = 20
WIDTH = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = {**WIDTH, **NO_DROPOUT, "max_position_embeddings": POSITIONS}
ROBERTA = {**BERT, "max_position_embeddings": POSITIONS + 2}  # positions are counted from the padding id on
DECODER = {**WIDTH, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}

# Special tokens in the order of their ids, by the name of transformers' attribute; one token can have several.
BERT_TOKENS = {"[PAD]": "pad", "[UNK]": "unk", "[CLS]": "cls", "[SEP]": "sep", "[MASK]": "mask"}
ROBERTA_TOKENS = {"<s>": "bos cls", "<pad>": "pad", "</s>": "eos sep", "<unk>": "unk", "<mask>": "mask"}


@dataclass(frozen=True)
class Family:
    """A text family.

    Args:
        config: Class of the tower's config, and its fields beside the ids of special tokens.
        tokens: Dictionary from special tokens, in the order of their ids, to names of their attributes.
        template: Template of a text.
        poolings: Poolings that fit the family; the first one is tested in everything.
        side: Side on which its tokenizer pads.
        fixed: Whether its texts have one length.
        eos_ids: End-of-text ids of the config, if they differ from the tokenizer's.
        tokenizer: Further attributes of the tokenizer.
    """

    config: tuple[str, dict[str, Any]]
    tokens: dict[str, str]
    template: str
    poolings: tuple[str, ...]
    side: str = "right"
    fixed: bool = False
    eos_ids: list[int] | None = None
    tokenizer: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "BERT": Family(("BertConfig", BERT), BERT_TOKENS, "[CLS] $A [SEP]", ("mean", "cls", "max", "pooler", "last")),
    "RoBERTa": Family(("RobertaConfig", ROBERTA), ROBERTA_TOKENS, "<s> $A </s>", ("mean", "cls", "pooler", "eos")),
    "XLM-R": Family(("XLMRobertaConfig", ROBERTA), ROBERTA_TOKENS, "<s> $A </s>", ("mean", "cls", "eos")),
    "MPNet": Family(("MPNetConfig", ROBERTA), ROBERTA_TOKENS, "<s> $A </s>", ("mean", "cls", "eos")),
    "DistilBERT": Family(
        (
            "DistilBertConfig",
            {
                "dim": 16,
                "n_layers": 2,
                "n_heads": 2,
                "hidden_dim": 24,
                "dropout": 0.0,
                "attention_dropout": 0.0,
                "max_position_embeddings": POSITIONS,
            },
        ),
        BERT_TOKENS,
        "[CLS] $A [SEP]",
        ("mean", "cls", "last"),
    ),
    "DeBERTa": Family(("DebertaConfig", BERT), BERT_TOKENS, "[CLS] $A [SEP]", ("mean", "cls")),
    "DeBERTa v3": Family(
        (
            "DebertaV2Config",
            {
                **BERT,
                "relative_attention": True,
                "position_buckets": 8,
                "share_att_key": True,
                "pos_att_type": ["p2c", "c2p"],
                "position_biased_input": False,
                "norm_rel_ebd": "layer_norm",
            },
        ),
        BERT_TOKENS,
        "[CLS] $A [SEP]",
        ("mean", "cls"),
    ),
    "ModernBERT": Family(
        (
            "ModernBertConfig",
            {**WIDTH, "max_position_embeddings": 64, "local_attention": 8, "global_attn_every_n_layers": 2},
        ),
        BERT_TOKENS,
        "[CLS] $A [SEP]",
        ("mean", "cls"),
    ),
    "T5 encoder": Family(
        ("T5Config", {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}),
        {"<pad>": "pad", "</s>": "eos", "<unk>": "unk"},
        "$A </s>",
        ("mean", "eos", "last"),
    ),
    "CLIP": Family(
        ("CLIPTextConfig", {**WIDTH, "max_position_embeddings": POSITIONS}),
        {"<unk>": "unk", "<|startoftext|>": "bos", "<|endoftext|>": "eos pad"},
        "<|startoftext|> $A <|endoftext|>",
        ("pooler", "eos", "mean", "last"),
    ),
    "SigLIP": Family(
        ("SiglipTextConfig", {**WIDTH, "max_position_embeddings": POSITIONS, "projection_size": 16}),
        {"<unk>": "unk", "</s>": "eos pad"},
        "$A </s>",
        ("pooler", "mean"),
        fixed=True,
        tokenizer={"model_input_names": ["input_ids"]},
    ),
    "SigLIP 2": Family(
        ("Siglip2TextConfig", {**WIDTH, "max_position_embeddings": POSITIONS, "projection_size": 16}),
        {"<pad>": "pad", "<eos>": "eos", "<bos>": "bos", "<unk>": "unk"},
        "$A <eos>",
        ("pooler", "mean"),
        fixed=True,
        tokenizer={"model_max_length": 10**30},  # and gives a mask
    ),
    "CLAP": Family(("ClapTextConfig", ROBERTA), ROBERTA_TOKENS, "<s> $A </s>", ("pooler", "mean", "cls")),
    "GPT-2": Family(
        (
            "GPT2Config",
            {
                "n_embd": 16,
                "n_layer": 2,
                "n_head": 2,
                "n_positions": POSITIONS,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
            },
        ),
        {"<|endoftext|>": "bos eos unk"},
        "$A",
        ("last", "mean"),
        tokenizer={"model_max_length": 1024},
    ),
    "OPT": Family(
        (
            "OPTConfig",
            {
                "hidden_size": 16,
                "word_embed_proj_dim": 16,
                "ffn_dim": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": POSITIONS,
                "dropout": 0.0,
            },
        ),
        {"<unk>": "unk", "<pad>": "pad", "</s>": "bos eos"},
        "</s> $A",
        ("last", "mean"),
        tokenizer={"model_max_length": 10**30},
    ),
    "Llama": Family(
        ("LlamaConfig", DECODER),
        {"<unk>": "unk", "<|begin|>": "bos", "<|end|>": "eos", "<|eot|>": ""},
        "<|begin|> $A <|eot|>",
        ("last", "eos", "mean"),
        side="left",
        eos_ids=[2, 3],
    ),
    "Qwen 3": Family(
        ("Qwen3Config", DECODER),
        {"<unk>": "unk", "<|endoftext|>": "eos pad"},
        "$A <|endoftext|>",
        ("last", "eos", "mean"),
        side="left",
    ),
    "Gemma 3": Family(
        (
            "Gemma3TextConfig",
            {**DECODER, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
        ),
        {"<pad>": "pad", "<eos>": "eos", "<bos>": "bos", "<unk>": "unk"},
        "<bos> $A <eos>",
        ("mean", "last", "eos"),
        side="left",
    ),
}


@cache
def made_tokenizer(name: str) -> PreTrainedTokenizerFast:
    family = FAMILIES[name]
    vocabulary = {token: index for index, token in enumerate([*family.tokens, *WORDS])}
    unknown = next(token for token, names in family.tokens.items() if "unk" in names.split())
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    used = [token for token in family.template.split() if token != "$A"]
    tokenizer.post_processor = processors.TemplateProcessing(
        family.template, special_tokens=[(token, vocabulary[token]) for token in used]
    )
    named = {f"{each}_token": token for token, names in family.tokens.items() for each in names.split()}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side=family.side,
        **{"model_max_length": POSITIONS, **named, **family.tokenizer},
    )


@cache
def made_tower(name: str) -> PreTrainedModel:
    """A tower whose weights are all random: texts lie well apart in what it returns."""
    family, tokenizer = FAMILIES[name], made_tokenizer(name)
    config_class, fields = family.config
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    config = getattr(transformers, config_class)(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=family.eos_ids or end,
        **copy.deepcopy(fields),
    )
    torch.manual_seed(0)
    tower = build_tower(config)
    for parameter in tower.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return tower.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give `folders(name)`: tower and tokenizer as somebody published them."""
    root = tmp_path_factory.mktemp("families")

    @cache
    def save(name: str) -> Path:
        made_tower(name).save_pretrained(root / name)
        copy.deepcopy(made_tokenizer(name)).save_pretrained(root / name)
        return root / name

    return save


def sentence_encoder(folder: Path, pooling: str) -> tuple[SentenceEncoder, PreTrainedTokenizerBase]:
    """As train_sentence_embedding.py makes them."""
    text = TextModelArguments(text_model=str(folder), pooling=pooling)
    tokenizer = build_tokenizer(text, lambda: [])
    return build_sentence_encoder(text, SentenceArguments(sentences="x"), tokenizer).eval(), tokenizer


def dual_encoder(folder: Path, pooling: str) -> tuple[ImageTextDualEncoder, ImageTextProcessor]:
    """As train_contrastive.py makes them."""
    text = TextModelArguments(text_model=str(folder), pooling=pooling)
    image = '{"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}'
    contrastive = ContrastiveArguments(image_config=image, image_size=16, projection_dim=8)
    processor = build_processor(contrastive, "image", lambda: build_tokenizer(text, lambda: []))
    return build_dual_encoder(text, contrastive, processor).eval(), processor


def pair_batch(processor: ImageTextProcessor) -> dict[str, Any]:
    lengths = text_lengths(processor.tokenizer, TextModelArguments(max_length=16))
    pixels = np.random.default_rng(0).integers(0, 256, (len(TEXTS), 16, 16, 3), dtype=np.uint8)
    rows = [
        {"text": text, "image": Image.fromarray(pixels[row]), "id": str(row), "group_id": row}
        for row, text in enumerate(TEXTS)
    ]
    return PairCollator(processor, **lengths)(rows)


def sentence_batch(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    lengths = text_lengths(tokenizer, TextModelArguments(max_length=16))
    rows = [{"anchor": text, "position": EpochIndex(0, row)} for row, text in enumerate(TEXTS)]
    return SentenceCollator(tokenizer, **lengths)(rows)


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.as_tensor(found).float(), expected.float(), atol=2e-6, rtol=0)


def check_padding(name: str, folder: Path, tmp_path: Path) -> None:
    """A text alone, in a batch, padded on the left and right, packed or in parts: one vector, for every pooling."""
    for pooling in FAMILIES[name].poolings:
        model, tokenizer = sentence_encoder(folder, pooling)
        model.double()
        expected = model.encode(TEXTS, batch_size=1, tokenizer=tokenizer)
        distances = torch.pdist(expected)
        assert distances.min() > 1e-3, f"{pooling} tells no texts apart"
        assert_close(model.encode(TEXTS, tokenizer=tokenizer), expected)
        for side in ("right",) if FAMILIES[name].fixed else ("right", "left"):
            batch = tokenizer(TEXTS, padding=True, padding_side=side, truncation=True, return_tensors="pt")
            batch.pop("token_type_ids", None)
            wide = {key: torch.cat([value] * 2) for key, value in batch.items()}
            for parts in (1, 2):
                assert_close(model(**wide, text_sub_batches=parts).text_embeds[: len(TEXTS)], expected)


def check_own_vectors(name: str, folder: Path, tmp_path: Path) -> None:
    """The tower's own pooled output is that of transformers' model on its own tokenizer's batch."""
    tokenizer, tower = made_tokenizer(name), made_tower(name)
    if "pooler" not in FAMILIES[name].poolings:
        return
    padding = {"padding": "max_length", "max_length": POSITIONS} if FAMILIES[name].fixed else {"padding": True}
    batch = tokenizer(TEXTS, truncation=True, return_tensors="pt", **padding)
    names = ("input_ids",) if FAMILIES[name].fixed else ("input_ids", "attention_mask")
    model, own_tokenizer = sentence_encoder(folder, "pooler")
    with torch.no_grad():
        expected = tower(**{each: batch[each] for each in names}).pooler_output
    assert_close(model.encode(TEXTS, normalize=False, tokenizer=own_tokenizer), expected)


def check_saving(name: str, folder: Path, tmp_path: Path) -> None:
    """Model and tokenizer survive saving and loading, in both kinds of model."""
    pooling = FAMILIES[name].poolings[0]
    model, tokenizer = sentence_encoder(folder, pooling)
    expected = model.encode(TEXTS, tokenizer=tokenizer)
    model.save_pretrained(tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "one")
    assert_close(SentenceEncoder.from_pretrained(tmp_path / "one").encode(TEXTS), expected)
    dual, processor = dual_encoder(tmp_path / "one", pooling)
    batch = processor(text=TEXTS, return_tensors="pt")
    assert_close(torch.nn.functional.normalize(dual(**batch).text_model_output.pooler_output, dim=-1), expected)
    dual.save_pretrained(tmp_path / "two")
    processor.save_pretrained(tmp_path / "two")
    loaded = ImageTextDualEncoder.from_pretrained(tmp_path / "two")
    assert_close(loaded(**processor(text=TEXTS, return_tensors="pt")).text_embeds, dual(**batch).text_embeds)


def check_training(name: str, folder: Path, tmp_path: Path) -> None:
    """Two steps of both phases: every trained weight gets a gradient, and the loss of the batch falls."""
    pooling = FAMILIES[name].poolings[0]
    model, tokenizer = sentence_encoder(folder, pooling)
    dual, processor = dual_encoder(folder, pooling)
    objectives = (SentenceObjective(), CrossModalObjective())
    batches = (sentence_batch(tokenizer), pair_batch(processor))
    for each, objective, batch in zip((model, dual), objectives, batches, strict=True):
        trained = {key: value for key, value in each.named_parameters() if value.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = objective(each, batch).loss
            loss.backward()
            assert not [key for key, value in trained.items() if value.grad is None]
            optimizer.step()
            losses.append(loss.item())
        assert np.isfinite(losses).all() and losses[2] < losses[0]


def check_gradient_caching(name: str, folder: Path, tmp_path: Path) -> None:
    """Micro-batches give the gradients of the whole batch, in parts of similar length too."""
    dual, processor = dual_encoder(folder, FAMILIES[name].poolings[0])
    batch = pair_batch(processor)
    gradients = []
    for cached in (False, True):
        dual.zero_grad()
        if cached:
            cached_backward(Accelerator(cpu=True), CrossModalObjective(text_sub_batches=2), dual, batch, 3)
        else:
            CrossModalObjective()(dual, batch).loss.backward()
        gradients.append({key: value.grad.clone() for key, value in dual.named_parameters() if value.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    scale = max(value.abs().max() for value in gradients[0].values())
    for key, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], value, atol=1e-5 * scale.item(), rtol=1e-3)


def check_lora(name: str, folder: Path, tmp_path: Path) -> None:
    """An adapter on the text tower gets gradients, and the tower none."""
    model, tokenizer = sentence_encoder(folder, FAMILIES[name].poolings[0])
    adapted = add_lora(model, LoraArguments(lora_rank=2))
    SentenceObjective()(adapted, sentence_batch(tokenizer)).loss.backward()
    trained = {key for key, value in adapted.named_parameters() if value.grad is not None}
    assert trained == {key for key, value in adapted.named_parameters() if value.requires_grad}
    # SigLIP's head is not in a block, and is neither adapted nor trained.
    assert trained and all("lora_" in key for key in trained)


def gradients_of(model: torch.nn.Module, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    SentenceObjective()(model, batch).loss.backward()
    return {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}


def with_adapter(model: SentenceEncoder) -> torch.nn.Module:
    """With a LoRA adapter whose matrices are all random."""
    adapted = add_lora(model, LoraArguments(lora_rank=2))
    for key, value in adapted.named_parameters():
        if "lora_" in key:
            value.data += 0.1 * torch.randn_like(value)
    return adapted


def has_gradient_checkpointing(tower: torch.nn.Module) -> bool:
    """Whether layers can be checkpointed, whatever the class says of itself: CLAP's denies it, MPNet's cannot."""
    return any(hasattr(module, "gradient_checkpointing") for module in tower.modules())


def check_gradient_checkpointing(name: str, folder: Path, tmp_path: Path) -> None:
    """Fewer activations and the same gradients, of all weights and of an adapter; or an error that says so."""
    model, tokenizer = sentence_encoder(folder, FAMILIES[name].poolings[0])
    batch = sentence_batch(tokenizer)
    if not has_gradient_checkpointing(model.text_model):
        with pytest.raises(ValueError, match=r"not (compatible with|support) gradient checkpointing"):
            model.gradient_checkpointing_enable()
        return
    for each in (model, with_adapter(model)):
        each.train()
        kept = [_activation_bytes(lambda each=each: SentenceObjective()(each, batch))]
        expected = gradients_of(each, batch)
        each.gradient_checkpointing_enable()
        kept.append(_activation_bytes(lambda each=each: SentenceObjective()(each, batch)))
        found = gradients_of(each, batch)
        each.gradient_checkpointing_disable()
        assert kept[1] < 0.8 * kept[0] and found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)


def check_frozen_weights(name: str, folder: Path, tmp_path: Path) -> None:
    """In bfloat16, under autocast, a frozen tower and one with an adapter compute the same to the bit."""
    if name == "DeBERTa":  # transformers' own masks overflow in bfloat16
        return
    model, tokenizer = sentence_encoder(folder, FAMILIES[name].poolings[0])
    batch = sentence_batch(tokenizer)
    with torch.autocast("cpu", torch.bfloat16):
        model.text_model.requires_grad_(False)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask") if key in batch}
        with torch.no_grad():
            expected = model(**inputs).text_embeds
            saved = halve_frozen_weights(model)
            assert has_halved_weights(model) and torch.equal(model(**inputs).text_embeds, expected)
        assert restore_frozen_weights(model) and not has_halved_weights(model)
        model.text_model.requires_grad_(True)
        adapted = with_adapter(model)
        of_adapter = gradients_of(adapted, batch)
        assert of_adapter and all(value.abs().max() > 0 for value in of_adapter.values())
        assert 0 < halve_frozen_weights(adapted) <= saved
        found = gradients_of(adapted, batch)
        assert all(torch.equal(found[key], value) for key, value in of_adapter.items())


def check_export(name: str, folder: Path, tmp_path: Path) -> None:
    """sentence-transformers gives the same vectors, of our folder and of an export without our code."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from xmodal_hf.hub.sentence_transformers import export_sentence_transformers

    model, tokenizer = sentence_encoder(folder, FAMILIES[name].poolings[0])
    expected = model.encode(TEXTS, tokenizer=tokenizer)
    export_sentence_transformers(model, tokenizer, tmp_path / "export")
    model.save_pretrained(tmp_path / "own")
    tokenizer.save_pretrained(tmp_path / "own")
    for each in ("export", "own"):
        loaded = sentence_transformers.SentenceTransformer(str(tmp_path / each), device="cpu")
        assert_close(loaded.encode(TEXTS), expected)
        assert_close(loaded.encode(TEXTS[:1]), expected[:1])


def check_evaluation(name: str, folder: Path, tmp_path: Path) -> None:
    """Evaluation embeds as the model does: in memory, from a folder, and the plain tower with a pooling."""
    pooling = FAMILIES[name].poolings[0]
    model, tokenizer = sentence_encoder(folder, pooling)
    expected = model.encode(TEXTS, tokenizer=tokenizer)
    assert_close(as_embedder(model, tokenizer).encode_text(TEXTS), expected)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert_close(load_embedder(str(tmp_path), device="cpu").encode_text(TEXTS), expected)
    own = copy.deepcopy(made_tokenizer(name))
    if FAMILIES[name].fixed:
        own.model_input_names = ["input_ids"]
    assert_close(as_embedder(made_tower(name), own, pooling=pooling).encode_text(TEXTS), expected)


CHECKS = {
    "padding": check_padding,
    "own vectors": check_own_vectors,
    "saving": check_saving,
    "training": check_training,
    "gradient caching": check_gradient_caching,
    "LoRA": check_lora,
    "gradient checkpointing": check_gradient_checkpointing,
    "frozen weights": check_frozen_weights,
    "sentence-transformers": check_export,
    "evaluation": check_evaluation,
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", FAMILIES)
def test_family(name: str, check: str, folders: Callable[[str], Path], tmp_path: Path) -> None:
    CHECKS[check](name, folders(name), tmp_path)


def render_table() -> str:
    """Return the table of the families, as docs/towers.md has it."""
    rows = ["| family | model type | a text ends with | padded | poolings | packed |", "|---|---|---|---|---|---|"]
    for name, family in FAMILIES.items():
        tower = made_tower(name)
        last = family.template.split()[-1].replace("|", r"\|")
        end = "its last word" if last == "$A" else f"`{last}`"
        length = "to a fixed length, without a mask" if family.fixed else "to the longest of the batch"
        poolings = ", ".join(f"`{pooling}`" for pooling in family.poolings)
        packed = "yes" if tower.config.model_type in PACKED_TOWERS else "no"
        rows.append(f"| {name} | `{tower.config.model_type}` | {end} | {length} | {poolings} | {packed} |")
    return "\n".join(rows)


def test_the_documented_table_is_that_of_the_test() -> None:
    assert render_table() in DOCUMENT.read_text(encoding="utf-8")
    assert ", ".join(CHECKS) in DOCUMENT.read_text(encoding="utf-8").replace("\n", " ")


if __name__ == "__main__":
    before, _, after = DOCUMENT.read_text(encoding="utf-8").partition("| family |")
    DOCUMENT.write_text(before + render_table() + "\n\n" + after.partition("\n\n")[2], encoding="utf-8")

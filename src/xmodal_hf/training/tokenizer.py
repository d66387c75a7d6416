"""A tokenizer trained on the texts at hand, for towers from scratch."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train a lower-casing byte-level BPE tokenizer in BERT's layout ([CLS] text [SEP]).

    Args:
        texts: Texts of the corpus.
        vocab_size: Maximum number of tokens in the vocabulary, special tokens included.
        max_length: Value of the tokenizer's `model_max_length`.

    Raises:
        ValueError: If the corpus has no text, or the vocabulary is too small for special tokens and bytes.
    """
    texts = sorted({text for text in texts if text.strip()})  # the vocabulary depends only on the set of texts
    if not texts:
        raise ValueError("no text to train a tokenizer on: pass --tokenizer or a data set with captions")
    smallest = len(_SPECIAL_TOKENS) + len(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must be at least {smallest} (special tokens and bytes), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    # This is byte-level BPE and not WordPiece, because tokenizers numbers WordPiece's continuation pieces in the order
    # of a randomly seeded hash table, so that two runs differ.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(_SPECIAL_TOKENS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, **_SPECIAL_TOKENS)

"""Rules by which texts become inputs of a text tower. Every part of the package that tokenises texts uses them.

The rules:

- Texts are padded to the longest of their batch, with a mask, unless the tower reads a fixed position: SigLIP's was
  trained on texts of one length, and reads the last of these positions, which may be padding. Its texts are padded to
  that length, without a mask. The file of any tokenizer can ask for a fixed length with `"padding": "max_length"`.
  There, and where transformers' own SiglipModel is embedded, the tokenizer says whether there is a mask.
- Texts are cut at the tokenizer's `model_max_length` or at the positions that the tower has, whichever is smaller.
- A tokenizer without a padding token gets one that it has already; the mask hides it.
- The file of a tokenizer may have an instruction that comes before each text (`text_prefix`), for decoders that were
  trained with one. Processors of this package put it there too; a plain call of the tokenizer does not.
- The side of the padding makes no difference: models of this package turn left padding right (`text_tower.py`).

`prepare_tokenizer` and `adopt_special_tokens` write these decisions into the tokenizer and the tower's config, so that
they are saved with both, and processors, pipelines and sentence-transformers follow them.

Shapes: B batch, T tokens.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .pooling import end_of_text_index, eos_ids
from .text_tower_config import FIXED_LENGTH_TOWERS, TextTowerConfigMixin

logger = logging.getLogger(__name__)

_POSITION_TABLES = ("position_embeddings", "position_embedding", "wpe", "embed_positions")
# Tokenizers without a limit of their own report a huge number; no text in use is as long as this one.
NO_LIMIT = 100_000
# Any text will do, because only the tokens that a tokenizer adds to it matter.
_EXAMPLE = "a photo of a dog"

Row = dict[str, list[int]]


@dataclass(frozen=True)
class TextFormat:
    """Truncation and padding of the texts of one tower and tokenizer.

    Args:
        tokenizer: Tokenizer of the tower.
        max_length: Maximum number of tokens; longer texts are truncated.
        padded_length: Number of tokens that every text is padded to. If None, that of the longest text in the batch.
        with_mask: Whether the tower gets an attention mask.
        pad_token_id: Id of the token that fills the padding.

    Example:
        >>> text_format = TextFormat.of(model, tokenizer)
        >>> inputs = text_format.collate(text_format.tokenize(["a dog", "a small red bird"]))
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    padded_length: int | None
    with_mask: bool
    pad_token_id: int

    @classmethod
    def of(
        cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None = None
    ) -> "TextFormat":
        """Return the format of a model with a text tower, or of the tower; `max_length` cuts texts earlier."""
        limit = longest_text(model, tokenizer)
        is_fixed = has_fixed_length(model) or pads_to_max_length(tokenizer)
        is_trained_unmasked = has_fixed_length(model) and isinstance(model.config, TextTowerConfigMixin)
        gives_mask = "attention_mask" in tokenizer.model_input_names and not is_trained_unmasked
        return cls(
            tokenizer,
            max_length=min(max_length or limit, limit),
            padded_length=limit if is_fixed else None,
            with_mask=not is_fixed or gives_mask,
            pad_token_id=_padding(tokenizer)[1],
        )

    def tokenize(self, texts: Sequence[str]) -> list[Row]:
        """Return one dictionary of lists for each text, cut and not padded."""
        columns = self.tokenizer(
            with_prefix(self.tokenizer, list(texts)),
            padding=False,
            truncation=True,
            max_length=self.max_length,
            return_attention_mask=self.with_mask,
        )
        return [{name: column[row] for name, column in columns.items()} for row in range(len(texts))]

    def num_cut(self, texts: Sequence[str], rows: Sequence[Row]) -> int:
        """Return how many texts are longer than `max_length`, given their `rows`; full ones are tokenized again."""
        full = [text for text, row in zip(texts, rows, strict=True) if len(row["input_ids"]) >= self.max_length]
        return sum(length > self.max_length for length in uncut_lengths(self.tokenizer, full))

    def lengths(self, rows: Sequence[Row]) -> list[int]:
        """Return the tokens that each row fills in a batch of its own."""
        return [self.padded_length or len(row["input_ids"]) for row in rows]

    def collate(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Return padded tensors (B, T).

        Texts of any length are padded on the right, where every tower counts its positions as it was trained to; texts
        of a fixed length on the tokenizer's side, which is part of how the tower was trained.
        """
        width = self.padded_length or max(len(row["input_ids"]) for row in rows)
        is_left = self.padded_length is not None and self.tokenizer.padding_side == "left"
        filling = {"input_ids": self.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        batch = {}
        for name in rows[0]:
            padded = []
            for row in rows:
                padding = [filling.get(name, 0)] * (width - len(row[name]))
                padded.append([*padding, *row[name]] if is_left else [*row[name], *padding])
            batch[name] = torch.tensor(padded)
        return batch


def text_prefix(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the instruction that a tokenizer's file puts before each text; empty for most."""
    return tokenizer.init_kwargs.get("text_prefix") or ""


def set_text_prefix(tokenizer: PreTrainedTokenizerBase, prefix: str) -> None:
    """Let a tokenizer's file say what comes before each text, such as "query: "; an empty one takes it away."""
    tokenizer.init_kwargs.pop("text_prefix", None)
    if prefix:
        tokenizer.init_kwargs["text_prefix"] = prefix


def with_prefix(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """Return texts with the instruction of a tokenizer before each."""
    prefix = text_prefix(tokenizer)
    return [prefix + text for text in texts]


def uncut_lengths(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Return how many tokens each text has, instruction and special tokens included, before anything is cut."""
    if not texts:
        return []
    columns = tokenizer(
        with_prefix(tokenizer, texts), padding=False, truncation=False, return_attention_mask=False, verbose=False
    )
    return [len(ids) for ids in columns["input_ids"]]


def has_fixed_length(model: PreTrainedModel) -> bool:
    """Tell whether a model's text tower reads the last of a fixed number of positions, as SigLIP's does."""
    return model.config.get_text_config().model_type in FIXED_LENGTH_TOWERS


def pads_to_max_length(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer's file asks for a fixed number of tokens."""
    return tokenizer.init_kwargs.get("padding") == "max_length"


def longest_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens that both the tokenizer and the model's text tower take."""
    return min(tokenizer.model_max_length, num_positions(model))


def num_positions(model: PreTrainedModel) -> int:
    """Return the most tokens that the model's text tower takes."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or NO_LIMIT
    if positions < 1:  # XLNet's value for no limit
        return NO_LIMIT
    for name, module in model.named_modules():
        is_table = name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
        if is_table and module.padding_idx is not None:
            positions -= module.padding_idx + 1  # RoBERTa and similar towers count positions from there
    return positions


def has_position_table(model: PreTrainedModel) -> bool:
    """Tell whether a text tower looks positions up, so that it fails beyond them; relative and rotary ones do not."""
    return any(
        name.rpartition(".")[2] in _POSITION_TABLES and isinstance(module, nn.Embedding)
        for name, module in model.named_modules()
    )


def pad_to_fixed_length(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let a tokenizer pad to its `model_max_length`, without a mask, as SigLIP was trained.

    The tokenizer's file keeps this for processors.
    """
    tokenizer.init_kwargs |= {"padding": "max_length", "model_input_names": ["input_ids"]}
    tokenizer.model_input_names = ["input_ids"]


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, tower: PreTrainedModel) -> None:
    """Write into a tokenizer how the texts of a tower are cut and padded; what was chosen is logged.

    It gets a padding token where it has none, the tower's length where its own `model_max_length` is larger, and for
    SigLIP's towers padding to that length without a mask.
    """
    choose_pad_token(tokenizer)
    pad_as_trained(tokenizer, tower.config)
    positions = num_positions(tower)
    if tokenizer.model_max_length > positions and has_position_table(tower):
        logger.info("the tokenizer cuts texts at the %d positions of the text tower", positions)
        tokenizer.model_max_length = positions


def pad_as_trained(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Let a tokenizer of a tower of fixed length pad to that length without a mask; others stay as they are.

    Args:
        tokenizer: Tokenizer of the tower.
        config: Config of the text tower.
    """
    if config.model_type not in FIXED_LENGTH_TOWERS:
        return
    # SigLIP 2's tokenizer has no limit.
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)
    if not (pads_to_max_length(tokenizer) and tokenizer.model_input_names == ["input_ids"]):
        logger.info("texts are padded to %d tokens, unmasked, as their tower was trained", tokenizer.model_max_length)
        pad_to_fixed_length(tokenizer)


def adopt_special_tokens(tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write into a tower's config the padding id and the end-of-text id of its tokenizer, where it names none.

    What a tower of fixed length attends to in its padding changes its vectors: there the tokenizer's id is the right
    one whatever the config says.
    """
    config, pad_token_id = tower.config, _padding(tokenizer)[1]
    named = getattr(config, "pad_token_id", None)
    if named is None or (has_fixed_length(tower) and named != pad_token_id):
        logger.info("the text tower's config gets the tokenizer's pad_token_id, %d", pad_token_id)
        config.pad_token_id = pad_token_id
    train_padding_that_ends_texts(tower)
    if not eos_ids(getattr(config, "eos_token_id", None)):
        config.eos_token_id = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        logger.info("the text tower's config gets the tokenizer's eos_token_id, %s", config.eos_token_id)


def choose_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give a tokenizer without a padding token one of its own tokens; the attention mask hides what it fills."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _padding(tokenizer)[0]
        logger.warning("the tokenizer has no padding token: texts are padded with %r, masked", tokenizer.pad_token)


def train_padding_that_ends_texts(tower: PreTrainedModel) -> None:
    """Let the token embedding get gradients at the padding id where that is an end-of-text id too (GPT-2, Llama)."""
    config, embeddings = tower.config, tower.get_input_embeddings()
    is_end = getattr(config, "pad_token_id", None) in eos_ids(getattr(config, "eos_token_id", None))
    if is_end and isinstance(embeddings, nn.Embedding):
        embeddings.padding_idx = None


def _padding(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """Return the token that pads texts, and its id: the tokenizer's, else the end of text, else any other it has."""
    for name in ("pad", "eos", "unk", "sep", "bos", "cls"):
        token_id = getattr(tokenizer, f"{name}_token_id")
        if token_id is not None:
            return str(getattr(tokenizer, f"{name}_token")), token_id
    return tokenizer.convert_ids_to_tokens(0), 0


def check_reads_texts(
    pooling: str,
    config: PreTrainedConfig,
    text_format: TextFormat,
    run: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
) -> None:
    """Raise a ValueError for a pooling that reads the same of every text.

    Such are `cls` of a causal tower, which sees the first token alone; `eos` where the tokenizer ends texts with
    another token or none; and a tower's own pooling that looks for another end-of-text token than the tokenizer's.

    Args:
        pooling: Name of the pooling.
        config: Config of the text tower.
        text_format: Text format of the tower and its tokenizer.
        run: Function from inputs (1, T) to pooled vectors (1, H), in evaluation mode and without gradients.
    """
    if pooling in ("mean", "max"):  # all tokens of these towers see each other
        return
    first, second = (text_format.collate([row]) for row in _rows_that_differ(text_format, config))
    if pooling == "eos":
        _check_ends_texts(config, text_format, first)
        return
    if torch.equal(run(first), run(second)):
        ids = eos_ids(getattr(config, "eos_token_id", None))
        raise ValueError(
            f"pooling {pooling!r} gives texts that differ the same vector: it reads a token that the rest of a text "
            f"has no effect on. A causal text tower ({config.model_type}) sees only what comes before a token: use "
            f"'last' or 'mean'; for its own pooling, text_config.eos_token_id ({ids}) must be the id that the "
            f"tokenizer ends texts with ({text_format.tokenize([_EXAMPLE])[0]['input_ids'][-1]} here)"
        )


def _check_ends_texts(config: PreTrainedConfig, text_format: TextFormat, example: Mapping[str, torch.Tensor]) -> None:
    """Raise a ValueError unless the tokenizer ends a text with an end-of-text token of the config."""
    ids, end_ids = example["input_ids"], eos_ids(getattr(config, "eos_token_id", None))
    mask = example.get("attention_mask", torch.ones_like(ids))
    found = ids[0, end_of_text_index(mask, ids, end_ids)].item()
    if found not in end_ids:
        token = text_format.tokenizer.convert_ids_to_tokens(found)
        raise ValueError(
            f"pooling 'eos' reads the end-of-text token, id {' or '.join(map(str, end_ids))}, and the tokenizer ends "
            f"texts without it, with {token!r} (id {found}): use pooling 'last', a tokenizer that appends the "
            "end-of-text token, or set text_config.eos_token_id to the id that it appends"
        )


def _rows_that_differ(text_format: TextFormat, config: PreTrainedConfig) -> tuple[Row, Row]:
    """Return two texts of one length that differ in their last word alone, whatever words the tokenizer knows."""
    (row,), (empty,) = text_format.tokenize([_EXAMPLE]), text_format.tokenize([""])
    ids, added = row["input_ids"], empty["input_ids"]
    start = 0
    while start < len(added) and ids[start] == added[start]:
        start += 1
    special = {*text_format.tokenizer.all_special_ids, *eos_ids(getattr(config, "eos_token_id", None))}
    first, second = [token_id for token_id in range(len(text_format.tokenizer)) if token_id not in special][-2:]
    texts = ([*added[:start], first, first, word, *added[start:]] for word in (first, second))
    return tuple(  # type: ignore[return-value]
        {name: [1] * len(text) if name == "attention_mask" else [0] * len(text) for name in row} | {"input_ids": text}
        for text in texts
    )

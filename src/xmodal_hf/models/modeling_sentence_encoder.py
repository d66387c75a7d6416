"""The sentence encoder: a text tower, a pooling and an optional head.

Shapes: B batch, T tokens, H hidden, D embedding, n sentences.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_dual_encoder import reject_unknown_fields, tower_hidden_size
from .configuration_sentence_encoder import SentenceEncoderConfig
from .hub_files import HubModelMixin
from .pooled_inputs import from_pooled
from .sentence_transformers_files import write_sentence_transformers_files
from .text_format import TextFormat, has_fixed_length
from .text_tower import TextTowerMixin, text_inputs_of, token_batches
from .towers import evaluation_mode, find_tower, load_model, make_tower, output_flags

# The activations of a layer should stay in a CPU's cache: all-MiniLM-L6-v2 embeds 1.4 times as many sentences per
# second with batches of 800 to 1,500 tokens as with 8,192 (measured). A GPU needs more work per launch.
_CPU_TOKENS_PER_BATCH = 1024
_GPU_TOKENS_PER_BATCH = 8192


def default_tokens_per_batch(device: torch.device) -> int:
    """Tokens of a text batch, padding included, that a device embeds fastest."""
    return _CPU_TOKENS_PER_BATCH if device.type == "cpu" else _GPU_TOKENS_PER_BATCH


@dataclass
class SentenceEncoderOutput(ModelOutput):
    """Output of a sentence encoder.

    Args:
        last_hidden_state: Token states of the tower, of shape (B, T, H). None if it ran in sub-batches.
        pooler_output: Pooled vectors of shape (B, D), after the head if it applies, not normalised.
        text_embeds: Unit-norm `pooler_output`, of shape (B, D).
        hidden_states, attentions: Hidden states and attentions of the tower, if requested.
        mlm_loss: Summed negative log-likelihood of each row's masked tokens, of shape (B,), if `mlm_input_ids` were
            given.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from xmodal_hf import SentenceEncoder
        >>> text = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
        >>> out = SentenceEncoder.from_text_pretrained(text)(input_ids=torch.tensor([[2, 5, 3]]))
        >>> out.text_embeds.shape, out.last_hidden_state.shape
        (torch.Size([1, 32]), torch.Size([1, 3, 32]))
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    mlm_loss: torch.Tensor | None = None


def build_head(config: SentenceEncoderConfig, hidden_size: int) -> nn.Module:
    """Return the head that the config names, from `hidden_size` to `head_dim`."""
    if config.head == "none":
        return nn.Identity()
    linear = nn.Linear(hidden_size, config.head_dim or hidden_size)
    return nn.Sequential(linear, nn.Tanh()) if config.head == "mlp" else linear


class MaskedLanguageModelHead(nn.Module):
    """Token states -> logits of the vocabulary (Devlin et al. 2019), the output matrix tied to the token embeddings.

    Without BERT's bias on each token, so that a resized vocabulary needs nothing here.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.LayerNorm(hidden_size))

    def forward(self, hidden: torch.Tensor, token_embeddings: torch.Tensor) -> torch.Tensor:
        """(M, H) states and (vocabulary, H) embeddings -> (M, vocabulary)."""
        return self.transform(hidden) @ token_embeddings.t()


class SentenceEncoder(TextTowerMixin, HubModelMixin, PreTrainedModel):
    """A language encoder whose pooled output is a sentence embedding (SimCSE, Gao et al. 2021).

    Build it from a config (random weights), from any text model with
    [`~SentenceEncoder.from_text_pretrained`], or load one with `from_pretrained`.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from xmodal_hf import SentenceEncoder
        >>> text = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
        >>> encoder = SentenceEncoder.from_text_pretrained(text, pooling="mean")
        >>> ids = torch.ones(2, 5, dtype=torch.long)
        >>> encoder(input_ids=ids, attention_mask=ids).text_embeds.shape
        torch.Size([2, 32])
    """

    config_class = SentenceEncoderConfig
    base_model_prefix = "sentence_encoder"
    main_input_name = "input_ids"
    input_modalities = ("text",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: SentenceEncoderConfig, text_model: PreTrainedModel | None = None):
        super().__init__(config)
        self.text_model = make_tower(config.text_config, text_model, config.pooling, ("input_ids",), "text_model")
        config.text_config = self.text_model.config
        hidden_size = tower_hidden_size(config.text_config, "text_config")
        self.head = build_head(config, hidden_size)
        if config.mlm_head:
            embeddings = self.get_input_embeddings()
            # The output matrix is tied to the embeddings, which in some towers have another width than the states
            # (ALBERT's are narrower).
            if embeddings.embedding_dim != hidden_size:
                raise ValueError(
                    f"mlm_head needs token embeddings as wide as the tower's states, got {embeddings.embedding_dim} "
                    f"and {hidden_size}: set mlm_head=False"
                )
            self.mlm_head = MaskedLanguageModelHead(hidden_size)
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._checked_tokenizer: PreTrainedTokenizerBase | None = None
        self.post_init()

    @classmethod
    def from_text_pretrained(
        cls, text_model: PreTrainedModel | str, *, pooling: str = "mean", **config_kwargs: Any
    ) -> "SentenceEncoder":
        """Make a sentence encoder of a text model (or of the text tower of a two-tower model).

        Args:
            text_model: Model, local folder or Hub id. A model's weights are shared, not copied.
            pooling: Pooling: `cls`, `mean`, `max`, `eos`, `last` or `pooler`.
            config_kwargs: Further fields of [`SentenceEncoderConfig`].

        The tower loses its own pooling layer where it has one that the pooling does not read.

        Raises:
            ValueError: If the source is not a text tower, or if the pooling is `cls` and the tower causal, so that
                every text would have the same vector.
            TypeError: If a name is not a field of the config.
            huggingface_hub.errors.StrictDataclassError: If the pooling or the head is unknown.

        Example:
            >>> from transformers import BertConfig, BertModel
            >>> from xmodal_hf import SentenceEncoder
            >>> text = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
            >>> SentenceEncoder.from_text_pretrained(text, pooling="cls").config.pooling
            'cls'
        """
        reject_unknown_fields(cls.config_class, config_kwargs)
        source = load_model(text_model, "text_model")
        tower = find_tower(source, ("text_model",))
        # The config is copied, because making a composite config resets the attention implementation of its parts.
        config = cls.config_class(text_config=tower.config.to_dict(), pooling=pooling, **config_kwargs)
        model = cls(config, text_model=tower)
        model.pad_as_trained(source)
        model.check_sees_texts()
        return model

    def _write_hub_files(self, folder: Path) -> None:
        """Write what `SentenceTransformer(folder)` needs.

        Without those files sentence-transformers would take the mean of the tokens, whatever the pooling and the head.
        """
        fixed = has_fixed_length(self.text_model)
        write_sentence_transformers_files(folder, {"text": "forward"}, pads_to_max_length=fixed, with_mask=not fixed)

    def poolings(self) -> Iterable[tuple[PreTrainedModel, str]]:
        """Yield the tower with the pooling that reads it."""
        yield self.text_model, self.config.pooling

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings of the tower."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the tower."""
        self.text_model.set_input_embeddings(value)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        text_sub_batches: int = 1,
        mlm_input_ids: torch.Tensor | None = None,
        mlm_labels: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        text_pooler_output: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> SentenceEncoderOutput:
        """Encode texts: (B, T) ids -> (B, D) embeddings.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids: Token ids, masks and positions, each of shape (B,
                T).
            text_sub_batches: Number of sub-batches of texts of similar length in which the tower runs; the embeddings
                are the same.
            mlm_input_ids, mlm_labels: Masked ids and labels of shape (B_mlm, T): ids with some tokens masked, and the
                true ids there, -100 elsewhere. Their padding is where `mlm_input_ids` is the pad token. The model needs
                `mlm_head`.
            text_pooler_output: Pooled vectors of the tower before the head, of shape (B, H), in place of `input_ids`.
            inputs_embeds: Token embeddings of shape (B, T, H) in place of `input_ids`, as peft passes them.

        Raises:
            ValueError: If the ids are missing or not a batch, or masked ids are given to a model without `mlm_head`.
        """
        inputs = text_inputs_of(input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        flags = output_flags(output_attentions, output_hidden_states)
        if text_pooler_output is None:
            outputs = self.encode_text(self.config.pooling, inputs, text_sub_batches, **flags)
        else:
            width = tower_hidden_size(self.config.text_config, "text_config")
            names = ("text_pooler_output", "input_ids")
            outputs = from_pooled(text_pooler_output, input_ids, width, self.text_model.dtype, names)
        pooled = outputs.pooler_output  # (B, H)
        if self.training or self.config.head_at_inference:
            pooled = self.head(pooled)  # (B, D)
        return SentenceEncoderOutput(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=pooled,
            text_embeds=nn.functional.normalize(pooled, dim=-1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            mlm_loss=None if mlm_input_ids is None else self._mlm_loss(mlm_input_ids, mlm_labels),
        )

    def _mlm_loss(self, input_ids: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Summed negative log-likelihood of each row's masked tokens: (B, T), (B, T) -> (B,)."""
        if not self.config.mlm_head or labels is None:
            raise ValueError("mlm_input_ids need mlm_labels and a model with mlm_head=True")
        mask = (input_ids != self.config.text_config.pad_token_id).long()
        # As texts run, so that tokens behind padding have the positions that they have without it.
        hidden = self.encode_text("mean", {"input_ids": input_ids, "attention_mask": mask}).last_hidden_state
        rows, columns = (labels != -100).nonzero(as_tuple=True)  # (M,) masked positions only: the vocabulary is wide
        logits = self.mlm_head(hidden[rows, columns], self.get_input_embeddings().weight)  # (M, vocabulary)
        losses = nn.functional.cross_entropy(logits.float(), labels[rows, columns], reduction="none")
        return losses.new_zeros(len(labels)).index_add(0, rows, losses)

    def encode(
        self,
        sentences: Sequence[str],
        batch_size: int | None = None,
        normalize: bool = True,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
        max_tokens_per_batch: int | None = None,
        show_progress: bool = False,
    ) -> torch.Tensor:
        """Embed sentences in evaluation mode, those of similar length together so that batches hold little padding.

        Args:
            sentences: List of n strings.
            batch_size: Maximum number of sentences per batch. If None, `max_tokens_per_batch` decides.
            normalize: Whether to return unit-norm rows.
            tokenizer: Tokenizer. If None, the one that was saved beside the model.
            max_length: Maximum number of tokens per sentence. If None, the tokenizer's or the tower's limit.
            max_tokens_per_batch: Maximum number of tokens per batch, padding included; a longer sentence is a batch of
                its own. If None, 1,024 on a CPU, whose cache then holds the activations, and 8,192 elsewhere.
            show_progress: Whether to show a progress bar with rate and remaining time.

        Returns:
            Tensor of shape (n, D), fp32, on the CPU, in the order of `sentences`. The model runs in the precision of
            its weights, or in that of a `torch.autocast` context around the call.

        Raises:
            TypeError: If `sentences` is a single string.
            ValueError: If there are no sentences, the model has no tokenizer, a limit is below 1, or the pooling reads
                the same of every text of this tokenizer.

        Example:
            >>> from transformers import BertConfig, BertModel
            >>> from xmodal_hf import SentenceEncoder
            >>> text = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
            >>> encoder = SentenceEncoder.from_text_pretrained(text)
            >>> encoder.encode(["a dog", "rain falls"], tokenizer=tokenizer).shape
            torch.Size([2, 32])
        """
        if isinstance(sentences, str):
            raise TypeError("encode takes a list of sentences: pass [sentence]")
        if len(sentences) == 0:
            raise ValueError("encode needs at least one sentence, got none")
        if max_tokens_per_batch is None:
            max_tokens_per_batch = default_tokens_per_batch(self.device)
        if max_tokens_per_batch < 1 or (batch_size is not None and batch_size < 1):
            raise ValueError(
                f"batch_size and max_tokens_per_batch must be at least 1, got {batch_size} and {max_tokens_per_batch}"
            )
        tokenizer = tokenizer or self._own_tokenizer()
        if tokenizer is not self._checked_tokenizer:
            self.check_tokenizer(tokenizer)
            self._checked_tokenizer = tokenizer
        text_format = TextFormat.of(self, tokenizer, max_length)
        texts = text_format.tokenize(sentences)
        batches = token_batches(text_format.lengths(texts), max_tokens_per_batch, batch_size)
        in_batches = self._encode_batches(text_format, texts, batches, show_progress)
        embeds = torch.empty_like(in_batches)
        embeds[[row for rows in batches for row in rows]] = in_batches
        return nn.functional.normalize(embeds, dim=-1) if normalize else embeds

    def _encode_batches(
        self, text_format: TextFormat, texts: list[dict[str, list[int]]], batches: list[list[int]], show_progress: bool
    ) -> torch.Tensor:
        """Return the vectors (n, D) of tokenized texts on the CPU, in the order of the batches."""
        pooled = []
        silent = {} if show_progress else {"disable": True}  # TQDM_DISABLE=1 holds too
        with evaluation_mode(self), tqdm(total=len(texts), desc="encode", **silent) as bar:
            for rows in batches:
                batch = text_format.collate([texts[row] for row in rows])
                inputs = {
                    name: batch[name].to(self.device) for name in ("input_ids", "attention_mask") if name in batch
                }
                pooled.append(self(**inputs).pooler_output.float().cpu())
                bar.update(len(rows))
        return torch.cat(pooled)  # outside inference mode, so that the result may be used in training

    def _own_tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer saved beside the model, once."""
        if self._tokenizer is None:
            folder = self.config._name_or_path
            if not folder:
                raise ValueError("this model was not loaded from a folder: pass encode(..., tokenizer=...)")
            # With the config, AutoTokenizer does not ask whether the code of a published folder may run.
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, config=self.config.text_config)
        return self._tokenizer


__all__ = ["SentenceEncoder", "SentenceEncoderOutput"]

"""Configuration of the sentence encoder: the language encoder alone."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .pooling import TEXT_POOLINGS, check_eos, check_pooling
from .text_tower_config import TextTowerConfigMixin

HEADS = ("none", "linear", "mlp")


@strict
class SentenceEncoderConfig(TextTowerConfigMixin, PreTrainedConfig):
    r"""Configuration of [`SentenceEncoder`].

    Args:
        text_config: Config, or dict with `model_type`, of the text tower (any `AutoModel` encoder).
        pooling: Pooling of the text tower: `cls`, `mean`, `max`, `eos`, `last` or `pooler` (the tower's own pooled
            output).
        text_length: Number of tokens of every text, for towers that were trained on texts of one length (SigLIP): the
            model itself pads shorter texts to it, with the text tower's `pad_token_id`, and leaves out the mask. If
            None, texts are not padded.
        head: Head above the pooled vector: `none`, `linear`, or `mlp` (Linear and tanh, SimCSE's; Gao et al. 2021,
            section 6.3).
        head_dim: Width of the head's output. If None, the width of the tower.
        mlm_head: Whether to build a head for the auxiliary masked-language-modelling loss (SimCSE, Gao et al. 2021,
            section 3.2); only training uses it.
        head_at_inference: Whether the head is also used outside training: False for unsupervised SimCSE, True for
            supervised.

    Example:
        >>> from transformers import BertConfig
        >>> from xmodal_hf import SentenceEncoderConfig
        >>> SentenceEncoderConfig(text_config=BertConfig(hidden_size=128), pooling="cls").text_config.hidden_size
        128
    """

    model_type = "xmodal_sentence_encoder"
    sub_configs_defaults = {"text_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}

    text_config: PreTrainedConfig | dict | None = None
    pooling: str = "mean"
    text_length: int | None = None
    head: str = "none"
    head_dim: int | None = None
    head_at_inference: bool = True
    mlm_head: bool = False

    def validate_pooling(self) -> None:
        """Reject an unknown pooling, and `eos` without an end-of-text id."""
        check_pooling("pooling", self.pooling, TEXT_POOLINGS)
        check_eos("pooling", self.pooling, getattr(self.text_config, "eos_token_id", None))

    def validate_head(self) -> None:
        """Reject an unknown head or a non-positive width."""
        if self.head not in HEADS:
            raise ValueError(f"unknown head {self.head!r}: pass one of {', '.join(HEADS)}")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim must be positive, got {self.head_dim}")


__all__ = ["SentenceEncoderConfig"]

"""LoRA adapters as models: a folder that names its base is loaded with it, wherever a model is asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from transformers import PreTrainedModel
from transformers.utils import cached_file

import xmodal_hf  # noqa: F401  (registers our models with the Auto classes)
from xmodal_hf.models.conversion import load_dual_encoder, load_two_tower_model
from xmodal_hf.models.modeling_sentence_encoder import SentenceEncoder
from xmodal_hf.models.towers import freeze_unused

if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_CONFIG_NAME = "adapter_config.json"
# Files of the tokenizer or processor that a training script saves beside an adapter.
_PROCESSOR_FILES = ("processor_config.json", "tokenizer_config.json")
_MAX_DEPTH = 8


def is_adapter(source: str | os.PathLike) -> bool:
    """Tell whether a folder or Hub repository holds an adapter and not a whole model."""
    return _has_file(source, ADAPTER_CONFIG_NAME) and not _has_file(source, "config.json")


def adapter_base(source: str | os.PathLike) -> str:
    """Return the folder or Hub id of the model that an adapter belongs to.

    Raises:
        ValueError: If the adapter does not name its model.
    """
    from peft import PeftConfig

    base = PeftConfig.from_pretrained(source).base_model_name_or_path
    if not base:
        raise ValueError(
            f"the adapter {source} does not say which model it belongs to: write its folder or Hub id into "
            f"base_model_name_or_path of {ADAPTER_CONFIG_NAME}"
        )
    return base


def load_adapted(source: str | os.PathLike, *, merge: bool = False) -> PeftModel | PreTrainedModel:
    """Load an adapter on its base, which may be ours or a CLIPModel, SiglipModel or ClapModel, or another adapter.

    What was trained whole, a tower, projections, scalars, is in the adapter's file too. Where the base is ours,
    `from_pretrained` of our classes loads an adapter too.

    Args:
        source: Folder or Hub id of the adapter; its config names the base model.
        merge: Whether to add the adapter to the weights and return a plain model, which is faster and can be saved
            whole.

    Raises:
        ValueError: If the base is a model of another kind, or the adapter does not name it.
        OSError: If the adapter or its base does not exist.
    """
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(_load_base(source), source)
    return _trainable(adapted.merge_and_unload()) if merge else adapted


def processor_source(source: str | os.PathLike) -> str | os.PathLike:
    """Return where the processor or tokenizer of a model or adapter is: in an adapter's own folder, or its base's."""
    for _ in range(_MAX_DEPTH):
        if not is_adapter(source) or any(_has_file(source, name) for name in _PROCESSOR_FILES):
            return source
        source = adapter_base(source)
    raise ValueError(f"{source} is an adapter of an adapter, more than {_MAX_DEPTH} deep")


def _load_base(source: str | os.PathLike) -> PreTrainedModel:
    base = adapter_base(source)
    try:
        if is_adapter(base):
            return load_adapted(base, merge=True)
        model = load_two_tower_model(base)
    except OSError as error:
        raise OSError(
            f"the adapter {source} belongs to the model {base}, which cannot be loaded: {error}. Put that model there, "
            f"or write where it is into base_model_name_or_path of {ADAPTER_CONFIG_NAME}"
        ) from error
    return model if isinstance(model, SentenceEncoder) else load_dual_encoder(model)


def _trainable(model: PreTrainedModel) -> PreTrainedModel:
    """Undo what peft froze, so that a merged model can be trained as any other; what no pooling reads stays frozen."""
    model.requires_grad_(True)
    for tower, pooling in model.poolings():
        freeze_unused(tower, pooling)
    return model


def _has_file(source: str | os.PathLike, name: str) -> bool:
    return cached_file(os.fspath(source), name, _raise_exceptions_for_missing_entries=False) is not None

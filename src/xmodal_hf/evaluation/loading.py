"""From a path or Hub id to an embedder, for our checkpoints and for their peers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.utils import cached_file
from transformers.utils.hub import extract_commit_hash

import xmodal_hf  # noqa: F401  (registers our models with the Auto classes)
from xmodal_hf.models.towers import tower_class

from ..messages import missing_package
from .adapters import ADAPTER_CONFIG_NAME, adapter_base, is_adapter, load_adapted, processor_source
from .embed import Embedder, EmbedOptions, as_embedder, load_processor
from .provenance import files_checksum

# Beginning of the model types of this package. Its sentence encoders and published models look like models of
# sentence-transformers too.
_OWN_MODELS = "xmodal_"
# Files of a checkpoint that change its embeddings: weights, configs, vocabularies, code.
_MODEL_SUFFIXES = (".safetensors", ".bin", ".json", ".txt", ".model", ".py")
_RESULTS_NAME = "results.json"


def load_embedder(
    model: str,
    *,
    pooling: str = "mean",
    device: str | None = None,
    options: EmbedOptions | None = None,
    trust_remote_code: bool = False,
) -> Embedder:
    """Load any supported model and give it the `Embedder` interface.

    Args:
        model: Path or Hub id of a checkpoint of this package, of an adapter, whose base is loaded with it, of a
            CLIPModel, SiglipModel or ClapModel, of a sentence-transformers model, or of any Auto text model.
        pooling: Pooling of an Auto text model: cls, mean, max, eos, last or pooler. Other models have their own.
        device: Device, such as "cpu" or "cuda:1". None takes a GPU if there is one.
        options: Batch sizes, precision and progress bar.
        trust_remote_code: Whether to run the code that comes with a checkpoint.

    Raises:
        ImportError: If the model needs sentence-transformers, and that package is not installed.
        OSError: If there is no such model.

    Example:
        >>> model.save_pretrained("clip")
        >>> _ = processor.save_pretrained("clip")
        >>> load_embedder("clip").encode_text(["a dog", "rain"]).shape
        (2, 16)
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if is_adapter(model):
        loaded = load_adapted(model, merge=True).to(device)
        processor = load_processor(loaded, str(processor_source(model)), trust_remote_code=trust_remote_code)
        return as_embedder(loaded, processor, options=options)
    if _needs_sentence_transformers(model):
        return as_embedder(_sentence_transformer(model, device, trust_remote_code, options), options=options)
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    model_class = tower_class(config) if config.is_encoder_decoder else AutoModel  # for T5, this is the encoder
    loaded = model_class.from_pretrained(model, trust_remote_code=trust_remote_code).to(device)
    processor = load_processor(loaded, model, trust_remote_code=trust_remote_code)
    return as_embedder(loaded, processor, pooling=pooling, options=options)


def model_identity(model: str) -> str:
    """Text that identifies a model: the checksum of its files, without cards and results, or its Hub commit.

    For an adapter, that of its base is added.
    """
    if is_adapter(model):
        return f"{_own_identity(model)} on {model_identity(adapter_base(model))}"
    return _own_identity(model)


def _own_identity(model: str) -> str:
    folder = Path(model)
    if folder.is_dir():
        files = (file for file in folder.rglob("*") if file.suffix in _MODEL_SUFFIXES and file.name != _RESULTS_NAME)
        return f"sha256:{files_checksum(files, folder)}"
    if is_adapter(model):
        return f"{model}@{extract_commit_hash(cached_file(model, ADAPTER_CONFIG_NAME), None)}"
    config, _ = PreTrainedConfig.get_config_dict(model)
    return f"{model}@{config.get('_commit_hash')}"


def _needs_sentence_transformers(model: str) -> bool:
    """Whether the checkpoint is in sentence-transformers' format and not one of ours, which only looks like it."""
    if not _has_file(model, "modules.json"):
        return False
    if not _has_file(model, "config.json"):
        return True  # an old release wrote the folder, with the transformer in a subfolder
    config, _ = PreTrainedConfig.get_config_dict(model)
    return not str(config.get("model_type")).startswith(_OWN_MODELS)


def _has_file(model: str, name: str) -> bool:
    return cached_file(model, name, _raise_exceptions_for_missing_entries=False) is not None


def _sentence_transformer(model: str, device: str, trust_remote_code: bool, options: EmbedOptions | None) -> object:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise missing_package(f"the model {model}", "sentence-transformers", "sentence-transformers") from error
    loaded = SentenceTransformer(model, device=device, trust_remote_code=trust_remote_code)
    if options is not None and options.max_length is not None:
        loaded.max_seq_length = options.max_length
    return loaded

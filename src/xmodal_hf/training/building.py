"""Models, tokenizers and processors, built from options."""

from __future__ import annotations

import difflib
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    SequenceFeatureExtractor,
    ViTImageProcessor,
)

from ..data.formats import Modality
from ..data.modalities import MODALITIES, find_address, modality_of_processor
from ..evaluation.adapters import adapter_base, is_adapter, load_adapted, processor_source
from ..losses.registry import LOSSES, join_choices
from ..models.attention_direction import attend_in_both_directions
from ..models.configuration_sentence_encoder import SentenceEncoderConfig
from ..models.conversion import load_dual_encoder, load_dual_processor
from ..models.feature_extraction_log_mel import LogMelFeatureExtractor
from ..models.modeling_dual_encoder import DualEncoder, trained_pooling
from ..models.modeling_sentence_encoder import SentenceEncoder
from ..models.position_stretching import KEPT_POSITIONS, can_stretch, stretch_positions
from ..models.text_format import (
    adopt_special_tokens,
    choose_pad_token,
    has_position_table,
    num_positions,
    pad_as_trained,
    pads_to_max_length,
    text_prefix,
)
from ..models.towers import build_tower, find_tower, load_model
from .adapters import add_lora
from .arguments import (
    NEW_TOWER_LENGTH,
    NEW_TOWER_SECONDS,
    ContrastiveArguments,
    LoraArguments,
    SentenceArguments,
    TextModelArguments,
    check_trains_new_tower,
)
from .clip_lengths import check_new_audio_tower
from .tokenizer import train_tokenizer
from .towers import freeze_towers

logger = logging.getLogger(__name__)

# Configs of towers from scratch when none is given. They are small enough for two cores; those of the demo are in its
# recipes.
_DEFAULT_CONFIGS: dict[str, dict[str, Any]] = {
    "text": {
        "model_type": "bert",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
    "image": {
        "model_type": "resnet",
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 128, 256],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
    },
    "audio": {
        "model_type": "audio-spectrogram-transformer",
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "intermediate_size": 768,
    },
}
_AST_FRAMES_PER_SECOND = 100  # a hop of 10 ms (Gong et al. 2021, section 2.1)


def config_from_json(kind: Literal["text", "image", "audio"], config: str | None, **known: Any) -> PreTrainedConfig:
    """Return a tower config from JSON, or the small default; `known` fills fields that it leaves open.

    A warning names fields that the config class does not know, since transformers ignores them.

    Raises:
        ValueError: If the JSON is not an object with a `model_type` that transformers knows, or has a wrong value.
    """
    fields = _DEFAULT_CONFIGS[kind] if config is None else config_fields(kind, config)
    try:
        default = AutoConfig.for_model(fields["model_type"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--{kind}_config {config!r} is no JSON object with a known model_type: {error}") from error
    _warn_of_unknown_fields(kind, fields, default)
    try:
        return AutoConfig.for_model(**{**known, **fields})
    except Exception as error:  # each field has a check that raises its own errors
        raise ValueError(f"--{kind}_config {config!r} has a wrong value: {error}") from error


def config_fields(kind: Literal["text", "image", "audio"], config: str) -> dict[str, Any]:
    """Return the fields of a tower config in JSON.

    Raises:
        ValueError: If the text is not a JSON object.
    """
    try:
        fields = json.loads(config)
    except json.JSONDecodeError as error:
        raise ValueError(f"--{kind}_config {config!r} is no JSON object with a known model_type: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"--{kind}_config {config!r} is no JSON object with a known model_type")
    return fields


def new_tower(kind: Literal["text", "image", "audio"], config: PreTrainedConfig) -> PreTrainedModel:
    """Return a tower with random weights from the config that an option describes.

    Raises:
        ValueError: If no tower can be built from the config; the message names the option.
    """
    try:
        return build_tower(config)
    except Exception as error:  # each architecture raises its own errors
        raise ValueError(
            f"--{kind}_config: no tower of the type {config.model_type} can be built with these values "
            f"({type(error).__name__}: {error})"
        ) from error


def _warn_of_unknown_fields(kind: str, fields: dict[str, Any], default: PreTrainedConfig) -> None:
    known = [*default.to_dict(), *default.attribute_map]
    for name in fields:
        if name not in known and not hasattr(default, name):
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean {nearest[0]}?" if nearest else ""
            warnings.warn(f"--{kind}_config: {type(default).__name__} has no field {name}{hint}", stacklevel=3)


def build_tokenizer(text: TextModelArguments, corpus: Callable[[], Iterable[str]]) -> PreTrainedTokenizerBase:
    """Load the tokenizer that is named, or the text model's; train one on `corpus()` for a tower from scratch.

    It pads as the text model was trained, and gets a padding token where it has none.
    """
    source = text.tokenizer or text.text_model
    if source is None:
        return train_tokenizer(corpus(), vocab_size=text.vocab_size, max_length=text.max_length or NEW_TOWER_LENGTH)
    tokenizer = AutoTokenizer.from_pretrained(processor_source(source))
    choose_pad_token(tokenizer)
    if text.text_model is not None:
        pad_as_trained(tokenizer, AutoConfig.from_pretrained(processor_source(text.text_model)).get_text_config())
    return tokenizer


def build_text_model(text: TextModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load or initialise the text tower (or a whole model that has one), and let it and the tokenizer agree.

    `text_format.adopt_special_tokens` says what changes of the tower's config.

    Raises:
        ValueError: If the tokenizer has ids beyond the tower's embeddings.
    """
    choose_pad_token(tokenizer)
    if text.text_model is not None:
        source = load_adapted(text.text_model, merge=True) if is_adapter(text.text_model) else text.text_model
        model = load_model(source, "--text_model")
    else:
        eos_token_id = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        known = {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": eos_token_id,
            # RoBERTa-like towers number positions from pad_token_id + 1 on.
            "max_position_embeddings": (text.max_length or NEW_TOWER_LENGTH) + tokenizer.pad_token_id + 2,
        }
        model = new_tower("text", config_from_json("text", text.text_config, **known))
    tower = find_tower(model, ("text_model",))
    rows = len(tower.get_input_embeddings().weight)
    if len(tokenizer) > rows:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the text tower embeds {rows}: pass the --tokenizer that "
            "belongs to the --text_model"
        )
    if text.text_model is not None:
        stretch_to_length(tower, tokenizer, text)
    if text.bidirectional_attention:
        attend_in_both_directions(tower)
    adopt_special_tokens(tower, tokenizer)
    return model


def stretch_to_length(tower: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: TextModelArguments) -> None:
    """Give CLIP's text tower, and its tokenizer, as many positions as `--max_length` asks for, where it has fewer."""
    if not _must_stretch(tower, text):
        return
    assert text.max_length is not None
    positions = num_positions(tower)
    stretch_positions(tower, text.max_length)
    tokenizer.model_max_length = text.max_length
    logger.info(
        "--max_length %d: the %d positions of the text tower are stretched; the first %d stay as they are",
        *(text.max_length, positions, KEPT_POSITIONS),
    )


def _must_stretch(tower: PreTrainedModel, text: TextModelArguments) -> bool:
    """Tell whether a tower that can be stretched has fewer positions than `--max_length` asks for."""
    return can_stretch(tower) and text.max_length is not None and text.max_length > num_positions(tower)


def build_sentence_encoder(
    text: TextModelArguments, sentence: SentenceArguments, tokenizer: PreTrainedTokenizerBase
) -> SentenceEncoder:
    """Return the model of phase 1; pooling and heads are those that the loaded model has, unless the options differ."""
    source = build_text_model(text, tokenizer)
    trained = source if isinstance(source, SentenceEncoder) else None
    kept = trained if trained is not None and sentence.head in (None, trained.config.head) else None
    # This is the rule of SimCSE, and a head that is used stays in use.
    at_inference = sentence.sentences is None or (kept is not None and kept.config.head_at_inference)
    model = SentenceEncoder.from_text_pretrained(
        source,
        pooling=text.pooling or trained_pooling(source, find_tower(source, ("text_model",)), "text_pooling"),
        head=kept.config.head if kept else sentence.head or "none",
        head_dim=kept.config.head_dim if kept else None,
        mlm_head=sentence.mlm_weight > 0 or (trained is not None and trained.config.mlm_head),
        head_at_inference=at_inference if sentence.head_at_inference is None else sentence.head_at_inference,
    )
    if kept is not None:
        model.head.load_state_dict(kept.head.state_dict())
    if trained is not None and trained.config.mlm_head:
        model.mlm_head.load_state_dict(trained.mlm_head.state_dict())
        if not sentence.mlm_weight:  # it gets no gradient, which stops distributed training
            model.mlm_head.requires_grad_(False)
    model.follow_tokenizer(tokenizer)
    return model


def build_trained_sentence_encoder(
    text: TextModelArguments,
    sentence: SentenceArguments,
    lora: LoraArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_dry_run: bool = False,
) -> SentenceEncoder | PeftModel:
    """Return `build_sentence_encoder`'s model, with an adapter added as the options say.

    Args:
        text, sentence, lora: Options of the text tower, of phase 1 and of the adapter.
        tokenizer: Tokenizer of the text tower.
        is_dry_run: Whether another tower may stand in for that of `--text_model`.

    Raises:
        ValueError: If the adapter would belong to another model than `--text_model` names, without `lora_merge`.
    """
    model = build_sentence_encoder(text, sentence, tokenizer)
    if lora.lora_rank is None:
        return model
    if text.text_model is not None and not lora.lora_merge:
        _check_is_base(text.text_model, model)
    elif not is_dry_run and text.text_model is None:
        raise ValueError("--lora_rank adapts a pretrained text tower: pass --text_model, or drop it")
    return add_lora(model, lora)


def _check_is_base(source: str, model: SentenceEncoder) -> None:
    """Raise a ValueError unless `source` is a `SentenceEncoder` that differs from the model in no setting."""
    while is_adapter(source):
        source = adapter_base(source)
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, SentenceEncoderConfig):
        raise ValueError(
            f"an adapter needs the model that it belongs to, and --text_model {source} is no SentenceEncoder: pass "
            "--lora_merge"
        )
    names = ["pooling", "head", "mlm_head", *(() if config.head == "none" else ("head_dim", "head_at_inference"))]
    changed = [name for name in names if getattr(config, name) != getattr(model.config, name)]
    towers = config.text_config, model.config.text_config
    for name in ("max_position_embeddings", "is_causal"):
        changed += [name] if getattr(towers[0], name, None) != getattr(towers[1], name, None) else []
    if changed:
        raise ValueError(
            f"the options change {', '.join(changed)} of --text_model, which no adapter holds: pass --lora_merge, or "
            "drop them"
        )


def check_max_length(model: nn.Module, tokenizer: PreTrainedTokenizerBase, text: TextModelArguments) -> None:
    """Raise a ValueError when texts would be longer than the text tower takes."""
    whole = model.get_base_model() if isinstance(model, PeftModel) else model
    positions = num_positions(whole.text_model)
    has_limit = has_position_table(whole.text_model) and not pads_to_max_length(tokenizer)
    if has_limit and text.max_length is not None and positions < text.max_length:
        raise ValueError(f"--max_length {text.max_length}: the text tower takes {positions} tokens at most")


def check_prefix(tokenizer: PreTrainedTokenizerBase, text: TextModelArguments) -> None:
    """Raise a ValueError when special tokens, or the instruction before each text, fill it: all texts are the same."""
    prefix = text_prefix(tokenizer)
    own_length = tokenizer.model_max_length
    length = own_length if pads_to_max_length(tokenizer) else text.max_length or own_length
    if not prefix and len(tokenizer("")["input_ids"]) >= length:
        raise ValueError(
            f"the tokens that the tokenizer adds to a text fill the {length} tokens that texts are cut at: pass a "
            "larger --max_length"
        )
    if prefix and len(tokenizer(prefix)["input_ids"]) >= length:
        raise ValueError(
            f"the instruction before each text, {prefix!r}, fills the {length} tokens that texts are cut at: pass a "
            "shorter --text_prefix or a larger --max_length"
        )


def build_dual_encoder(
    text: TextModelArguments,
    contrastive: ContrastiveArguments,
    processor: ProcessorMixin,
    *,
    may_stretch: bool = True,
) -> DualEncoder:
    """Return the model of phase 2 for a processor: `--model`, or two towers, loaded or new, with new projections.

    Args:
        text, contrastive: Options of the text tower and of the model.
        processor: Processor of the model.
        may_stretch: Whether the positions of `--model` may be stretched to `--max_length`.

    Raises:
        ValueError: If `--model` is of the other modality, has no `logit_bias` although the objective needs one, or has
            too few positions where they may not be stretched.
    """
    if contrastive.model is not None:
        return _load_dual_encoder(contrastive, processor, text, may_stretch)
    text_model = build_text_model(text, processor.tokenizer)
    modality = modality_of_processor(processor)
    source = getattr(contrastive, f"{modality}_model")
    if source is None:
        config_text = getattr(contrastive, f"{modality}_config")
        known = _INPUT_SIZES[modality](contrastive, processor)
        config = config_from_json(modality, config_text, **known)
        if MODALITIES[modality].is_sampled:
            check_new_audio_tower(config, processor.feature_extractor, contrastive.max_seconds or NEW_TOWER_SECONDS)
        source = new_tower(modality, config)
    options: dict[str, Any] = {
        "projection_dim": contrastive.projection_dim,
        "projection_type": contrastive.projection_type,
        "text_projection_type": contrastive.text_projection_type,
        "projection_hidden_size": contrastive.projection_hidden_size,
        "projection_num_layers": contrastive.projection_num_layers,
        "projection_dropout": contrastive.projection_dropout,
        "pooling": text.pooling,
        f"{modality}_pooling": contrastive.modality_pooling,
    }
    loss = LOSSES[contrastive.objective]
    if loss.initial_scale is not None:
        options["logit_scale_init_value"] = math.log(loss.initial_scale)
    if loss.initial_bias is not None:
        options["logit_bias_init_value"] = loss.initial_bias
    model_class = find_address(MODALITIES[modality].model_class)
    model: DualEncoder = getattr(model_class, f"from_text_{modality}_pretrained")(text_model, source, **options)
    model.follow_tokenizer(processor.tokenizer)
    return model


def build_processor(
    contrastive: ContrastiveArguments,
    modality: Modality,
    build_tokenizer: Callable[[], PreTrainedTokenizerBase],
) -> ProcessorMixin:
    """Return the processor: that of `--model`, the pretrained tower's own, or one for a tower from scratch."""
    if contrastive.model is not None:
        return load_dual_processor(processor_source(contrastive.model))
    processor_class = find_address(MODALITIES[modality].processor_class)
    return processor_class(_BUILD_PREPARATION[modality](contrastive), build_tokenizer())


def build_trained_dual_encoder(
    text: TextModelArguments, contrastive: ContrastiveArguments, lora: LoraArguments, processor: ProcessorMixin
) -> PreTrainedModel | PeftModel:
    """Return `build_dual_encoder`'s model with towers frozen and an adapter added as the options say.

    Raises:
        ValueError: If there is an adapter without `lora_merge` and its text tower has stretched positions, or an
            adapter and an image or audio tower from scratch, which would keep its random weights.
    """
    modality = modality_of_processor(processor)
    check_trains_new_tower(contrastive, lora, modality)
    is_whole = lora.lora_rank is None or lora.lora_merge
    model = build_dual_encoder(text, contrastive, processor, may_stretch=is_whole)
    for tower in _new_towers(text, contrastive, modality) & set(contrastive.freeze):
        logger.warning(
            "The %s tower starts from random weights, and --freeze %s keeps them: give a pretrained one by --%s_model.",
            *(tower,) * 3,
        )
    freeze_towers(model, contrastive.freeze)
    return model if lora.lora_rank is None else add_lora(model, lora)


def _new_towers(text: TextModelArguments, contrastive: ContrastiveArguments, modality: Modality) -> set[str]:
    """Return the names of the towers that start from random weights."""
    if contrastive.model is not None:
        return set()
    sources = {"text": text.text_model, modality: getattr(contrastive, f"{modality}_model")}
    return {tower for tower, source in sources.items() if source is None}


def _load_dual_encoder(
    contrastive: ContrastiveArguments, processor: ProcessorMixin, text: TextModelArguments, may_stretch: bool
) -> DualEncoder:
    source = contrastive.model
    model = load_adapted(source, merge=True) if is_adapter(source) else load_dual_encoder(source)  # type: ignore[arg-type]
    wanted = find_address(MODALITIES[modality_of_processor(processor)].model_class)
    if not isinstance(model, wanted):
        raise ValueError(f"--model {contrastive.model} is a {type(model).__name__}, not an {wanted.__name__}")
    rows = len(model.get_input_embeddings().weight)
    if len(processor.tokenizer) > rows:
        raise ValueError(
            f"the tokenizer of --model {contrastive.model} has {len(processor.tokenizer)} tokens, its text tower "
            f"embeds {rows}: save the tokenizer that belongs to it in that folder"
        )
    if LOSSES[contrastive.objective].needs_bias and getattr(model, "logit_bias", None) is None:
        others = join_choices(name for name, loss in LOSSES.items() if not loss.needs_bias)
        raise ValueError(
            f"--objective {contrastive.objective} needs a logit_bias, which --model does not have: pass {others}"
        )
    if not may_stretch and _must_stretch(model.text_model, text):
        raise ValueError(
            f"--max_length {text.max_length} stretches the positions of the text tower, which no adapter holds: pass "
            "--lora_merge, or a smaller --max_length"
        )
    stretch_to_length(model.text_model, processor.tokenizer, text)
    if text.bidirectional_attention:
        attend_in_both_directions(model.text_model)
    model.adopt_tokenizer(processor.tokenizer)
    return model


def _image_sizes(contrastive: ContrastiveArguments, processor: ProcessorMixin) -> dict[str, int]:
    return {"image_size": contrastive.image_size}


def _spectrogram_sizes(contrastive: ContrastiveArguments, processor: ProcessorMixin) -> dict[str, int]:
    extractor = processor.feature_extractor
    frames = extractor.num_frames or round(extractor.max_length_s * extractor.sampling_rate / extractor.hop_length)
    return {"num_mel_bins": extractor.feature_size, "max_length": frames}


def _build_image_processor(contrastive: ContrastiveArguments) -> BaseImageProcessor:
    if contrastive.image_model is not None:
        return AutoImageProcessor.from_pretrained(contrastive.image_model)
    return ViTImageProcessor(size={"height": contrastive.image_size, "width": contrastive.image_size})


def _build_feature_extractor(contrastive: ContrastiveArguments) -> SequenceFeatureExtractor:
    if contrastive.audio_model is not None:
        return AutoFeatureExtractor.from_pretrained(contrastive.audio_model)
    preset, seconds = contrastive.audio_preset, contrastive.max_seconds or NEW_TOWER_SECONDS
    if preset == "ast":
        num_frames = round(seconds * _AST_FRAMES_PER_SECOND)
        return LogMelFeatureExtractor.from_preset(preset, num_frames=num_frames)
    return LogMelFeatureExtractor.from_preset(preset, max_length_s=seconds)


# For each modality, the function that builds what prepares its items, and the config fields of a tower from scratch
# that the inputs determine.
_BUILD_PREPARATION: dict[Modality, Callable[[ContrastiveArguments], Any]] = {
    "image": _build_image_processor,
    "audio": _build_feature_extractor,
}
_INPUT_SIZES: dict[Modality, Callable[[ContrastiveArguments, ProcessorMixin], dict[str, int]]] = {
    "image": _image_sizes,
    "audio": _spectrogram_sizes,
}

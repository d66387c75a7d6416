"""Convert a checkpoint of another library into one of ours, or one of ours into a CLIPModel or ClapModel.

    python training_scripts/convert_checkpoint.py --model openai/clip-vit-base-patch32 --output_dir outputs/clip
    python training_scripts/convert_checkpoint.py --model cyclip.pt --format cyclip --tokenizer FOLDER --output_dir ...
    python training_scripts/convert_checkpoint.py --model outputs/better_clip --to clip --output_dir outputs/clip_again

Before anything is written, source and result run on the same random inputs, and a result that differs is refused.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from xmodal_hf.commands import check_sources, is_user_error, run_command
from xmodal_hf.options import option, parse_arguments

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel, ProcessorMixin

    from xmodal_hf.models.modeling_dual_encoder import DualEncoder

# Maximum differences: of embeddings, which have unit norm, and of logits, relative to the largest one.
TOLERANCE = 1e-5
# Formats of state dicts -> activation of their towers, if it is always the same.
ACTIVATIONS = {"open_clip": None, "openai": "quick_gelu", "cyclip": "quick_gelu", "laion_clap": None}
# Number of random inputs, and of tokens where any number will do.
BATCH, TOKENS = 4, 16
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass
class ConversionArguments:
    """Source and target of a conversion."""

    model: str = option("", "Folder, Hub id, or file of weights (.safetensors, .pt, .bin) to convert. Required.")
    output_dir: str = option("", "Folder for the converted model and its processor. Required.")
    format: Literal["auto", "transformers", "open_clip", "openai", "cyclip", "laion_clap"] = option(
        "auto",
        "Format of the source. transformers: a model of this package, CLIPModel, SiglipModel, ClapModel or "
        "VisionTextDualEncoderModel, or an adapter, which is merged into its base. auto recognises a folder by its "
        "config, and tells weights of LAION-CLAP from those of open_clip; weights of OpenAI and CyCLIP must be named.",
    )
    to: Literal["xmodal_hf", "clip", "clap"] = option(
        "xmodal_hf", "Type of the result: xmodal_hf, clip (a CLIPModel) or clap (a ClapModel)."
    )
    tokenizer: str | None = option(
        None, "Folder or Hub id of the tokenizer for a file of weights; without one, no processor is written."
    )
    hidden_act: Literal["gelu", "quick_gelu"] | None = option(
        None,
        "Activation of open_clip's weights without an open_clip_config.json: quick_gelu for its *-quickgelu models.",
    )
    verify: bool = option(True, "Compare the model with its source on random inputs, and write it only if they agree.")

    def __post_init__(self) -> None:
        for name in ("model", "output_dir"):
            if not getattr(self, name):
                raise ValueError(f"--{name} is required")


class Source(NamedTuple):
    """Loaded source: the model if its library is installed, the converted model, and the processor, if any."""

    model: nn.Module | None
    ours: DualEncoder
    processor: ProcessorMixin | None


def main(args: Sequence[str] | None = None) -> None:
    """Convert, check, write, tell."""
    (arguments,) = parse_arguments((ConversionArguments,), __doc__, args)
    check_sources([("--model", "model", arguments.model), ("--tokenizer", "model", arguments.tokenizer)])

    # After parsing: --help and a wrong option answer without torch.
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    try:
        path, open_clip_config = find_weights(arguments.model)
        source = read_transformers(arguments) if path is None else read_weights(arguments, path, open_clip_config)
        result = convert_to(source.ours, arguments.to)
        if arguments.verify:
            verify(source, result)
        write(Path(arguments.output_dir), result, source.processor)
    except Exception as error:
        if is_user_error(error):
            sys.exit(f"cannot convert {arguments.model}: {error}")
        raise
    count = sum(parameter.numel() for parameter in result.parameters())
    print(f"{arguments.model} -> {type(result).__name__}, {count:,} parameters, in {arguments.output_dir}")


def find_weights(model: str) -> tuple[Path | None, dict[str, Any]]:
    """Return the file of a state dict and what open_clip wrote beside it; no file where there is a config.json."""
    from transformers.utils import cached_file

    from xmodal_hf.evaluation.adapters import is_adapter

    if Path(model).is_file():
        beside = Path(model).with_name(OPEN_CLIP_CONFIG)
        return Path(model), json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    if is_adapter(model):
        return None, {}
    names = ("config.json", OPEN_CLIP_CONFIG, *OPEN_CLIP_WEIGHTS)
    found = {name: cached_file(model, name, _raise_exceptions_for_missing_entries=False) for name in names}
    if found["config.json"] is not None:
        return None, {}
    config = found[OPEN_CLIP_CONFIG]
    weights = next((found[name] for name in OPEN_CLIP_WEIGHTS if found[name] is not None), None)
    if config is None or weights is None:
        raise ValueError(f"there is neither a config.json nor {OPEN_CLIP_CONFIG} with {' or '.join(OPEN_CLIP_WEIGHTS)}")
    return Path(weights), json.loads(Path(config).read_text(encoding="utf-8"))


def read_transformers(arguments: ConversionArguments) -> Source:
    """Read a model of transformers, one of ours that is to become one, or an adapter with its base, merged.

    Raises:
        ValueError: If `--format` does not go with a folder that has a config.json, or the source is a checkpoint of
            this package and `--to` is not given.
    """
    from xmodal_hf.evaluation.adapters import is_adapter, load_adapted, processor_source
    from xmodal_hf.models.conversion import load_dual_encoder, load_dual_processor, load_two_tower_model

    if arguments.format not in ("auto", "transformers"):
        raise ValueError(f"--format {arguments.format} needs a file of weights, or {OPEN_CLIP_CONFIG} beside them")
    is_merged = is_adapter(arguments.model)
    model: Any = load_adapted(arguments.model, merge=True) if is_merged else load_two_tower_model(arguments.model)
    ours = load_dual_encoder(model)
    if ours is model and arguments.to == "xmodal_hf" and not is_merged:
        raise ValueError("the model is one of ours already: pass --to clip or --to clap")
    try:
        processor = load_dual_processor(processor_source(arguments.model))
    except (OSError, ValueError) as error:
        print(f"no processor is written: {error}")
        return Source(model, ours, None)
    return Source(model, ours, processor)


def read_weights(arguments: ConversionArguments, path: Path, open_clip_config: Mapping[str, Any]) -> Source:
    """Read a state dict.

    Raises:
        ValueError: If `--format` is not a format of state dicts.
    """
    from transformers import AutoTokenizer

    from xmodal_hf.models.conversion import make_processor
    from xmodal_hf.models.conversion_laion_clap import from_laion_clap
    from xmodal_hf.models.conversion_open_clip import from_open_clip
    from xmodal_hf.models.weight_mapping import read_state_dict

    weights = read_state_dict(path)
    is_clap = any(name.startswith("audio_branch.") for name in weights)
    layout = ("laion_clap" if is_clap else "open_clip") if arguments.format == "auto" else arguments.format
    if layout not in ACTIVATIONS:
        raise ValueError(f"--format {layout} needs a folder or Hub id with a config.json")
    model, ours = None, None
    if layout == "laion_clap":
        ours = from_laion_clap(weights)
    else:
        hidden_act = arguments.hidden_act or ACTIVATIONS[layout]
        ours = from_open_clip(weights, open_clip_config.get("model_cfg"), hidden_act)
        if arguments.verify:
            model = open_clip_model(weights, open_clip_config.get("model_cfg"), hidden_act)
    if arguments.tokenizer is None:
        print("no processor is written: weights come without a tokenizer, pass --tokenizer")
        return Source(model, ours, None)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    return Source(model, ours, make_processor(ours, tokenizer, open_clip_config.get("preprocess_cfg")))


def open_clip_model(
    weights: Mapping[str, torch.Tensor], model_config: Mapping[str, Any] | None, hidden_act: str | None
) -> nn.Module | None:
    """Return open_clip's model of these weights, None where it is not installed."""
    if importlib.util.find_spec("open_clip") is None:
        return None
    import open_clip
    import torch

    weights = {name: value for name, value in weights.items() if value.ndim or name.startswith("logit_")}
    if model_config is None:
        build = open_clip.model.build_model_from_openai_state_dict
        is_quick = hidden_act == "quick_gelu"
        model = build(dict(weights), quick_gelu=is_quick, cast_dtype=torch.float32).float()
        # The weights are loaded again, because it makes them half precision, as OpenAI's are.
        model.load_state_dict(weights)
        return model.eval()
    settings = {name: value for name, value in model_config.items() if name != "custom_text"}
    model = (open_clip.CustomTextCLIP if model_config.get("custom_text") else open_clip.CLIP)(**settings)
    model.load_state_dict(weights)
    return model.eval()


def convert_to(ours: DualEncoder, target: str) -> PreTrainedModel:
    """Return our model as what is asked for."""
    from xmodal_hf.models.conversion import to_clap, to_clip

    if target == "xmodal_hf":
        return ours
    return to_clip(ours) if target == "clip" else to_clap(ours)


def verify(source: Source, result: PreTrainedModel) -> None:
    """Exit unless source and result agree on random inputs."""
    model = source.model
    if model is None:
        print("not compared with the source itself, whose library is not here; every weight found its place")
        model = source.ours
    inputs = random_inputs(source.ours)
    expected, found = run(model, inputs), run(result, inputs)
    differences = {
        name: ((values - found[name]).abs().max() / values.abs().max().clamp(min=1)).item()
        for name, values in expected.items()
    }
    report = ", ".join(f"{name} {difference:.1e}" for name, difference in differences.items())
    # Written in this way, a NaN is refused too.
    if not all(difference <= TOLERANCE for difference in differences.values()):
        sys.exit(f"nothing is written: source and result differ on random inputs, {report}")
    print(f"largest differences on random inputs: {report}")


def random_inputs(ours: DualEncoder) -> dict[str, torch.Tensor]:
    """Return texts (B, T), and images (B, C, S, S) or spectrograms (B, C, frames, bands) where a model takes those."""
    import torch

    text = ours.config.text_config
    is_fixed = text.model_type in ("clip_text_model", "siglip_text_model")  # open_clip takes only texts of full length
    tokens = text.max_position_embeddings if is_fixed else min(TOKENS, text.max_position_embeddings - 2)
    inputs = {"input_ids": torch.randint(4, text.vocab_size - 2, (BATCH, tokens))}
    if isinstance(text.eos_token_id, int):
        inputs["input_ids"][:, -1] = text.eos_token_id
    return inputs | _RANDOM_INPUTS[ours.config.modality](ours)


def random_images(ours: DualEncoder) -> dict[str, torch.Tensor]:
    """Return images (B, C, S, S)."""
    import torch

    from xmodal_hf.models.conversion import image_size

    channels = getattr(ours.config.image_config, "num_channels", 3)
    return {"pixel_values": torch.randn(BATCH, channels, image_size(ours), image_size(ours))}


def random_spectrograms(ours: DualEncoder) -> dict[str, torch.Tensor]:
    """Return spectrograms (B, C, frames, bands) and, of a fused CLAP, which are of longer clips."""
    import torch

    audio = ours.config.audio_config
    # HTSAT stacks the bands of consecutive stretches of time to make a square.
    frames = audio.spec_size * (audio.spec_size // audio.num_mel_bins)
    is_longer = {"is_longer": torch.arange(BATCH).remainder(2)[:, None].bool()} if audio.enable_fusion else {}
    channels = 4 if audio.enable_fusion else 1
    return {"input_features": torch.randn(BATCH, channels, frames, audio.num_mel_bins), **is_longer}


_RANDOM_INPUTS = {"image": random_images, "audio": random_spectrograms}


def run(model: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the embeddings and logits of a model of transformers, ours or open_clip's, by our names."""
    import torch
    from transformers import PreTrainedModel

    with torch.no_grad():
        if isinstance(model, PreTrainedModel):
            outputs = model(**inputs)
            return {
                name: outputs[name] for name in outputs if name.endswith("_embeds") or name.startswith("logits_per")
            }
        image_embeds = model.encode_image(inputs["pixel_values"], normalize=True)
        text_embeds = model.encode_text(inputs["input_ids"], normalize=True)
        logits = model.logit_scale.exp() * image_embeds @ text_embeds.T
        if model.logit_bias is not None:
            logits = logits + model.logit_bias
        return {"image_embeds": image_embeds, "text_embeds": text_embeds, "logits_per_image": logits}


def write(folder: Path, result: PreTrainedModel, processor: ProcessorMixin | None) -> None:
    """Save the model, and the processor of its kind."""
    from transformers import ClapModel, ClapProcessor, CLIPModel, CLIPProcessor

    from xmodal_hf.models.modeling_dual_encoder import DualEncoder

    if isinstance(result, DualEncoder) and processor is not None:
        try:
            result.adopt_tokenizer(processor.tokenizer)
        except ValueError as error:  # the weights are right even if the tokenizer is missing
            print(f"WARNING: the tokenizer does not fit the model: {error}", file=sys.stderr)
    result.save_pretrained(folder)
    if processor is None:
        return
    if isinstance(result, CLIPModel):
        processor = CLIPProcessor(processor.image_processor, processor.tokenizer)
    elif isinstance(result, ClapModel):
        processor = ClapProcessor(processor.feature_extractor, processor.tokenizer)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    run_command(main)

"""Options of `training_scripts/extract_features.py`, each documented once, on its field."""

from dataclasses import dataclass
from typing import Literal

from ..options import option, warn_of_unused
from .arguments import PairArguments

# Options of training on pairs without effect here: the help does not list them, and other values give a warning.
NOT_IN_EXTRACTION = ("features", "dataset_weights", "shuffle_buffer", "negative_text_column")
# Poolings that look for a certain token of a text.
_TEXT_ONLY_POOLINGS = ("eos", "last")


@dataclass
class FeatureArguments:
    """Tower that embeds the items, and folder of its vectors."""

    model: str | None = option(
        None,
        "Two-tower model, as a folder or Hub id: of this package, a CLIPModel, SiglipModel or ClapModel, or an "
        "adapter.",
    )
    image_model: str | None = option(None, "Image tower alone, as a folder or Hub id.")
    audio_model: str | None = option(None, "Audio tower alone, as a folder or Hub id.")
    text_model: str | None = option(
        None, "Text tower alone, as a folder or Hub id: a SentenceEncoder or any text model."
    )
    side: Literal["image", "audio", "text"] | None = option(
        None, "Side that is embedded. Default: text with --text_model, else the images or audio clips (--modality)."
    )
    output_dir: str | None = option(
        None, "Folder of the vectors. Default: outputs/features/<side>-<checksum>, where training looks for them too."
    )
    tokenizer: str | None = option(None, "Folder or Hub id of the tokenizer. Default: that of the text model.")
    pooling: Literal["cls", "mean", "max", "eos", "last", "pooler"] | None = option(
        None, "Pooling of a tower alone. Default: the one that it was trained with, else mean."
    )
    max_length: int | None = option(None, "Maximum number of tokens per text. Default: that of train_contrastive.py.")
    batch_size: int = option(64, "Number of images or audio clips per batch; texts are batched by their tokens.")
    num_workers: int = option(0, "Number of worker processes that decode, for each process that embeds.")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "Precision of autocast for the tower.")

    def __post_init__(self) -> None:
        given = [name for name in ("model", "image_model", "audio_model", "text_model") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError("pass one of --model, --image_model, --audio_model and --text_model")
        alone = given[0].removesuffix("_model") if given[0] != "model" else None
        if alone is not None and self.side not in (None, alone):
            raise ValueError(f"--{given[0]} has no {self.side} tower: drop --side {self.side}")
        if alone in ("image", "audio") and self.pooling in _TEXT_ONLY_POOLINGS:
            raise ValueError(f"--pooling {self.pooling} is of texts: an {alone} tower takes cls, mean, max or pooler")
        if self.model is not None and (self.pooling or self.tokenizer):
            raise ValueError("--model brings its own poolings and tokenizer: drop --pooling and --tokenizer")
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")


def check_extraction(features: FeatureArguments, pairs: PairArguments) -> None:
    """Raise a ValueError for options that do not go together."""
    if pairs.features != "auto":
        raise ValueError("the folder of the vectors is --output_dir; --features belongs to train_contrastive.py")
    warn_of_unused(dict.fromkeys(NOT_IN_EXTRACTION, "belongs to train_contrastive.py"), pairs)
    sides = {"image": features.image_model, "audio": features.audio_model}
    for side, model in sides.items():
        if (model or features.side == side) and pairs.modality != side:
            raise ValueError(f"the {side} side needs --modality {side}")

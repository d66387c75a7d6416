"""Options of `training_scripts/extract_features.py`, each documented once, on its field."""

from dataclasses import dataclass
from typing import Literal

from ..options import option
from .arguments import PairArguments


@dataclass
class FeatureArguments:
    """Which tower embeds the items, and where its vectors go."""

    model: str | None = option(
        None, "Two-tower model, a folder or Hub id: one of ours, a CLIPModel, SiglipModel or ClapModel, or an adapter."
    )
    image_model: str | None = option(None, "Image tower alone: a folder or Hub id.")
    audio_model: str | None = option(None, "Audio tower alone: a folder or Hub id.")
    text_model: str | None = option(None, "Text tower alone: a SentenceEncoder or any text model, a folder or Hub id.")
    side: Literal["image", "audio", "text"] | None = option(
        None, "What is embedded. Default: text with --text_model, else the images or sounds (--modality)."
    )
    output_dir: str | None = option(
        None, "Folder of the vectors. Default: outputs/features/<side>-<checksum>, where training looks for them too."
    )
    tokenizer: str | None = option(None, "Folder or Hub id of the tokenizer. Default: the text model's.")
    pooling: Literal["cls", "mean", "max", "eos", "pooler"] | None = option(
        None, "Pooling of a tower alone. Default: the one it was trained with, else mean."
    )
    max_length: int | None = option(None, "Tokens a text at most. Default: that of train_contrastive.py.")
    batch_size: int = option(64, "Pictures or sounds a batch; texts are batched by their tokens.")
    num_workers: int = option(0, "Worker processes that decode, for each process that embeds.")
    mixed_precision: Literal["no", "bf16", "fp16"] = option("no", "Autocast precision of the tower.")

    def __post_init__(self) -> None:
        given = [name for name in ("model", "image_model", "audio_model", "text_model") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError("pass one of --model, --image_model, --audio_model and --text_model")
        alone = given[0].removesuffix("_model") if given[0] != "model" else None
        if alone is not None and self.side not in (None, alone):
            raise ValueError(f"--{given[0]} has no {self.side} tower: drop --side {self.side}")
        if self.model is not None and (self.pooling or self.tokenizer):
            raise ValueError("--model brings its own poolings and tokenizer: drop --pooling and --tokenizer")
        for name, least in (("batch_size", 1), ("num_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")


def check_extraction(features: FeatureArguments, pairs: PairArguments) -> None:
    """Raise a ValueError for options that do not go together."""
    if pairs.features != "auto":
        raise ValueError("the folder of the vectors is --output_dir; --features belongs to train_contrastive.py")
    sides = {"image": features.image_model, "audio": features.audio_model}
    for side, model in sides.items():
        if (model or features.side == side) and pairs.modality != side:
            raise ValueError(f"the {side} side needs --modality {side}")

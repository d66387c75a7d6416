"""ViT-B/32 with CLIP's text tower in three packages: the same weights, pairs and optimizer. Not a benchmark by itself.

Shapes: B batch, T tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import (
    CLIPImageProcessor,
    CLIPTokenizer,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor
from xmodal_hf.models.conversion_open_clip import from_open_clip
from xmodal_hf.objectives import CrossModalObjective
from xmodal_hf.training.arguments import TrainingArguments
from xmodal_hf.training.loop import TrainingStep, text_sub_batches
from xmodal_hf.training.optimization import build_optimizer

ARCHITECTURE = "ViT-B-32"  # text tower: 12 layers, 512 wide, 8 heads, 77 tokens, 49,408 ids
CONTEXT = 77
IMAGE_SIZE = 224
EXAMPLE_CONTEXT = 128  # tokens to which the example of VisionTextDualEncoderModel pads by default
OURS, OPEN_CLIP = "xmodal_hf", "open_clip"
# Name of the method -> tokens of its captions.
TRANSFORMERS = {
    f"VisionTextDualEncoder, {EXAMPLE_CONTEXT} tokens": EXAMPLE_CONTEXT,
    f"VisionTextDualEncoder, {CONTEXT} tokens": CONTEXT,
}

Step = Callable[[], float]  # one optimizer step on the next batch; returns the loss


@dataclass(frozen=True)
class Pairs:
    """Batches of the same pairs, as each package takes them."""

    source: str
    ours: list[dict[str, Any]]  # padded to the longest caption of the batch

    def padded(self, context: int) -> list[dict[str, Tensor]]:
        """The batches at `context` tokens; pads are end-of-text."""
        return [_padded(batch, context) for batch in self.ours]

    def plain(self) -> list[tuple[Tensor, Tensor]]:
        """pixel_values, and ids (B, 77) with pads of 0: open_clip's."""
        return [(batch["pixel_values"], batch["input_ids"] * batch["attention_mask"]) for batch in self.padded(CONTEXT)]

    @property
    def mean_tokens(self) -> float:
        """Real tokens a caption."""
        masks = [batch["attention_mask"] for batch in self.ours]
        return sum(int(mask.sum()) for mask in masks) / sum(len(mask) for mask in masks)


def load_batches(data_dir: Path, batch_size: int, count: int, device: str) -> Pairs:
    """Seeded batches of Flickr8k's training pairs, of the built-in emoji where it is absent."""
    # Here, so that made batches need no package of data.
    from xmodal_hf.data.collators import PairCollator
    from xmodal_hf.data.sampling import PairDataset
    from xmodal_hf.data.sources import load_pairs

    captions = data_dir / "flickr8k" / "captions.jsonl.gz"
    source = str(captions) if captions.exists() else "openmoji"
    items = PairDataset(load_pairs(source), seed=0, min_image_size=IMAGE_SIZE)
    processor = ImageTextProcessor(CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}), clip_tokenizer())
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(0)).tolist()
    order = order * math.ceil(batch_size * count / len(items))  # a batch larger than the data repeats it
    rows = [order[start : start + batch_size] for start in range(0, batch_size * count, batch_size)]
    collate = PairCollator(processor, max_length=CONTEXT)
    ours = [_on(batch, device) for batch in DataLoader(items, batch_sampler=rows, collate_fn=collate)]
    return Pairs("Flickr8k" if captions.exists() else source, ours)


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, from the vocabulary that open_clip ships."""
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {ends.get(token, token): index for token, index in tokenizer.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=list(tokenizer.bpe_ranks))


def _on(batch: dict[str, Any], device: str) -> dict[str, Any]:
    # Every pair is its own item for all: the peers know no ids.
    names = ("input_ids", "attention_mask", "pixel_values")
    return {name: batch[name].to(device) for name in names}


def _padded(batch: dict[str, Tensor], context: int) -> dict[str, Tensor]:
    ids, mask = batch["input_ids"], batch["attention_mask"]
    missing = (0, context - ids.shape[1])
    end = int(ids.max())  # the end of text is the last of the vocabulary, and the pad
    padded = {
        "input_ids": nn.functional.pad(ids, missing, value=end),
        "attention_mask": nn.functional.pad(mask, missing),
    }
    return {**padded, "pixel_values": batch["pixel_values"]}


def build_open_clip(device: str) -> nn.Module:
    """The peer's model with seeded random weights, which the others copy."""
    import open_clip

    torch.manual_seed(0)
    return open_clip.create_model(ARCHITECTURE, output_dict=True).to(device).train()


def build_ours(peer: nn.Module) -> ImageTextDualEncoder:
    """Our model with the peer's weights."""
    weights = {name: value.detach().cpu() for name, value in peer.state_dict().items()}
    return from_open_clip(weights, hidden_act="gelu")


def build_transformers(ours: ImageTextDualEncoder, context: int, device: str) -> VisionTextDualEncoderModel:
    """transformers' model with the same weights, and positions for `context` tokens.

    Positions after the end of a caption, which the pooling reads and whose attention is causal, change no loss.
    """
    text_config = copy.deepcopy(ours.config.text_config)
    text_config.max_position_embeddings = context
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        ours.config.image_config, text_config, projection_dim=ours.config.projection_dim
    )
    model = VisionTextDualEncoderModel(config)
    # Loaded afterwards: making the model draws the weights of its towers anew.
    parts = {"vision_model": "image_model", "text_model": "text_model"}
    parts |= {"visual_projection": "image_projection", "text_projection": "text_projection"}
    for theirs, own in parts.items():
        weights = ours.get_submodule(own).state_dict()
        for name in weights:
            if own == "text_model" and name.endswith("position_embedding.weight"):
                weights[name] = nn.functional.pad(weights[name], (0, 0, 0, context - len(weights[name])))
        model.get_submodule(theirs).load_state_dict(weights)
    model.logit_scale.data.copy_(ours.logit_scale.data)
    return model.to(device).train()


def endless(batches: list[Any]) -> Iterator[Any]:
    """The batches again and again."""
    while True:
        yield from batches


def our_step(accelerator: Accelerator, model: nn.Module, batches: list[Any], training: TrainingArguments) -> Step:
    """The step of our loop, checks and logs included."""
    objective = CrossModalObjective(text_sub_batches=text_sub_batches(training, accelerator))
    take_step = TrainingStep(accelerator, model, objective, training, total_steps=10**9)
    following = endless(batches)
    return lambda: take_step(next(following))[0].loss.item()


def open_clip_step(model: nn.Module, batches: list[Any], training: TrainingArguments, device: str) -> Step:
    """The step of open_clip_train, with `--accum-freq` where a batch is cut."""
    from open_clip.loss import ClipLoss

    loss, optimizer, following = ClipLoss(), build_optimizer(model, training), endless(batches)
    autocast = _autocast(training, device)

    def step() -> float:
        images, texts = next(following)
        optimizer.zero_grad()
        if training.micro_batch_size is None:
            with autocast():
                total = loss(**model(images, texts))
            total.backward()
        else:
            total = _accumulate(model, loss, images, texts, training.micro_batch_size, autocast)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, math.log(100))  # type: ignore[operator]  # as open_clip does
        return total.item()

    return step


def _accumulate(
    model: nn.Module, loss: nn.Module, images: Tensor, texts: Tensor, size: int, autocast: Callable[[], Any]
) -> Tensor:
    """open_clip's accumulation: all parts without graph, then each again, with the whole loss for each."""
    parts = list(zip(images.split(size), texts.split(size), strict=True))
    sides = ("image_features", "text_features")
    with torch.no_grad(), autocast():
        cached = [model(*part) for part in parts]
    for index, part in enumerate(parts):
        with autocast():
            fresh = model(*part)
            outputs = [*cached[:index], fresh, *cached[index + 1 :]]
            features = {side: torch.cat([output[side] for output in outputs]) for side in sides}
            total = loss(**features, logit_scale=fresh["logit_scale"])
        total.backward()
    return total.detach()


def transformers_step(model: nn.Module, batches: list[Any], training: TrainingArguments, device: str) -> Step:
    """A plain loop over VisionTextDualEncoderModel with captions of one length, as its example pads them."""
    optimizer, following = build_optimizer(model, training), endless(batches)
    autocast = _autocast(training, device)

    def step() -> float:
        optimizer.zero_grad()
        with autocast():
            loss = model(**next(following), return_loss=True).loss
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _autocast(training: TrainingArguments, device: str) -> Callable[[], Any]:
    return lambda: torch.autocast(device, torch.bfloat16, enabled=training.mixed_precision == "bf16")

"""Part 3 of gpu_check.py: pairs a second of a whole contrastive step, ours and open_clip's.

ViT-B/32 with CLIP's text tower in bf16 as in contrastive_step.py, on pictures of noise and texts of random ids, whose
lengths are drawn as those of Flickr8k's captions are distributed: nothing but torch, transformers and the peer is
needed. Ours caches gradients, open_clip accumulates (`--accum-freq`), both in parts of one size.

At the first batch size also: texts packed and not (`--text_sub_batches`), a frozen image tower against its vectors as a
feature store gives them, and the kernels of a step. Utilisation is the share of the matrix rate measured beside it; the
recomputation of gradient caching counts as work in `utilisation_of_peak` and does not in `without_recomputation`.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import CLIPTextConfig, CLIPVisionConfig

from common import PeakMemory, Seconds, is_installed, matmul_peak, median_ratio, take_turns
from contrastive_step import LOSS_TOLERANCE, count_operations, largest_difference
from gpu_check import Record, seconds_left
from gpu_correctness import fresh_accelerator
from gpu_losses import profiled
from image_text import CONTEXT, OPEN_CLIP, OURS, Pairs, Step, build_open_clip, build_ours, open_clip_step, our_step
from xmodal_hf import ImageTextConfig, ImageTextDualEncoder
from xmodal_hf.training.arguments import TrainingArguments
from xmodal_hf.training.towers import freeze_towers

PACKED = f"{OURS}, texts packed"
PACKED_PARTS = 4  # the default on a CPU
GOALS = {"rate_over_open_clip": 1.3, "utilisation_of_peak": 0.45}
FIRST_STEPS = 2  # whose losses are kept; they are the warm-up as well
# Tokens of Flickr8k's captions, start and end included: mean and deviation, counted as words and signs.
CAPTION_TOKENS, CAPTION_DEVIATION = 13.8, 3.9
# Forward without a graph, forward again, and backward, which is twice a forward.
RECOMPUTED_SHARE = 1 / 4


@dataclass(frozen=True)
class Sizes:
    """Batches in the order of their measurement, with the rounds of each: a part that is cut keeps the first ones."""

    rounds: dict[int, int]
    micro_batch: int
    image: int
    width: int  # of both towers; 0: ViT-B/32
    vocabulary: int
    seconds: dict[int, float]  # below so many seconds left a batch size is not begun


FULL = Sizes(
    rounds={4096: 3, 32_768: 1, 8192: 2, 16_384: 1},
    micro_batch=1024,
    image=224,
    width=0,
    vocabulary=49_408,
    seconds={4096: 20, 32_768: 70, 8192: 25, 16_384: 40},
)
TINY = Sizes(rounds={16: 1, 24: 1}, micro_batch=8, image=32, width=64, vocabulary=99, seconds={16: 0, 24: 0})


def run(record: Record, options: argparse.Namespace) -> None:
    """Measure batch after batch, as long as there is time."""
    sizes = TINY if options.tiny else FULL
    if not is_installed("open_clip_torch"):
        record.measure("without open_clip", partial(dict, skipped="open_clip_torch is not installed"))
    bench = StepBench(sizes, options.device)
    record.measure("peak", partial(dict, operations_per_second=bench.peak, goals=GOALS))
    first, *others = sizes.rounds
    record.measure(f"batch {first}", partial(bench.compare, first, packed=True))
    record.measure(f"batch {first}, frozen image tower", partial(bench.compare_frozen, first))
    record.measure(f"batch {first}, profile", partial(bench.profile, first))
    for batch_size in others:
        if seconds_left(options) < sizes.seconds[batch_size]:
            record.measure(f"batch {batch_size}", partial(dict, skipped="no time was left"))
        else:
            record.measure(f"batch {batch_size}", partial(bench.compare, batch_size))


class StepBench:
    """The models of all methods, with equal weights, and what is measured on them."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        self.sizes, self.device = sizes, device
        edge = 64 if sizes is TINY else None
        self.peak = matmul_peak(device, torch.bfloat16, edge)
        self.peer = build_peer(sizes, device) if is_installed("open_clip_torch") else None
        ours = build_ours(self.peer) if self.peer is not None else build_alone(sizes)
        self.ours = ours.to(device)
        self.operations: dict[str, float] = {}  # of a pair, by method; the same at every batch size

    def compare(self, batch_size: int, packed: bool = False) -> dict[str, Any]:
        """All methods at one batch size: losses, pairs a second, utilisation, memory."""
        pairs = made_pairs(self.sizes, batch_size, self.device)
        steps = {OURS: self._our_step(pairs)}
        if packed:
            steps[PACKED] = self._our_step(pairs, text_sub_batches=PACKED_PARTS)
        if self.peer is not None:
            peer = copy.deepcopy(self.peer)
            steps[OPEN_CLIP] = open_clip_step(peer, pairs.plain(), self._arguments(batch_size), self.device)
        return self._measure(steps, batch_size) | {"tokens_per_caption": pairs.mean_tokens}

    def compare_frozen(self, batch_size: int) -> dict[str, Any]:
        """A frozen image tower that runs in every step, and its vectors in the place of the pictures."""
        pairs = made_pairs(self.sizes, batch_size, self.device)
        vectors = [self._with_vectors(batch) for batch in pairs.ours]
        steps = {
            "vectors": self._our_step(Pairs("made", vectors), frozen=True),
            "pictures": self._our_step(pairs, frozen=True),
        }
        return self._measure(steps, batch_size)

    def profile(self, batch_size: int) -> dict[str, Any]:
        """Where the time of our step goes."""
        return profiled(self._our_step(made_pairs(self.sizes, batch_size, self.device)), self.device)

    def _arguments(self, batch_size: int, **options: Any) -> TrainingArguments:
        return TrainingArguments(
            batch_size=batch_size,
            micro_batch_size=self.sizes.micro_batch,
            learning_rate=5e-4,
            warmup_steps=0.0,
            max_grad_norm=0,  # the peer does not clip
            lr_schedule="constant_with_warmup",
            mixed_precision="bf16",
            **options,
        )

    def _our_step(self, pairs: Pairs, frozen: bool = False, text_sub_batches: int = 1) -> Step:
        model = copy.deepcopy(self.ours)
        if frozen:
            freeze_towers(model, ["image"])
        arguments = self._arguments(len(pairs.ours[0]["input_ids"]), text_sub_batches=text_sub_batches)
        # Of its own: one Accelerator would keep the models of all measurements.
        accelerator: Accelerator = fresh_accelerator(arguments, self.device)
        return our_step(accelerator, model, pairs.ours, arguments)

    @torch.no_grad()
    def _with_vectors(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with the tower's pooled vectors (B, H) in the place of its pictures."""
        vectors = []
        with torch.autocast(self.device, torch.bfloat16):
            for pixels in batch["pixel_values"].split(self.sizes.micro_batch):
                output = self.ours.eval()(pixel_values=pixels).image_model_output
                vectors.append(output.pooler_output.float())
        texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return {**texts, "image_pooler_output": torch.cat(vectors)}

    def _measure(self, steps: dict[str, Step], batch_size: int) -> dict[str, Any]:
        """Losses, memory, operations and time of every method that fits; what differs or does not fit is said."""
        try:
            losses, memory = first_steps(steps, self.device)
            for name in losses:
                if name not in self.operations:
                    self.operations[name] = count_operations(steps[name]) / batch_size
            fitting = {name: steps[name] for name in losses}
            seconds = take_turns(fitting, self.sizes.rounds[batch_size], self.device, warm_up=0)
        finally:
            steps.clear()
            free_memory(self.device)
        methods = {
            name: self._summary(name, taken, batch_size) | {"losses": losses[name], "peak_bytes": memory[name]}
            for name, taken in seconds.items()
        }
        first, *_ = losses.values()
        # Of the first steps: after them every rounding has moved the weights.
        difference = max(largest_difference(first[:1], values[:1]) for values in losses.values())
        return {
            "ok": difference <= LOSS_TOLERANCE["bf16"],
            "methods": methods,
            "rates_of_the_first_over": ratios(seconds),
            "largest_difference_of_first_losses": difference,
            "does_not_fit": [name for name in memory if name not in losses],
        }

    def _summary(self, name: str, seconds: list[float], batch_size: int) -> dict[str, Any]:
        rate = batch_size / statistics.median(seconds)
        utilisation = self.operations[name] * rate / self.peak
        return {
            "pairs_per_second": rate,
            "seconds_of_rounds": seconds,
            "operations_a_pair": self.operations[name],
            "utilisation_of_peak": utilisation,
            # Of a frozen tower nothing is computed again.
            "without_recomputation": utilisation * (1 - RECOMPUTED_SHARE if name in (OURS, PACKED, OPEN_CLIP) else 1),
        }


def first_steps(steps: dict[str, Step], device: str) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Losses of the first steps of every method that fits, and the peak of the memory that each takes for them."""
    losses, memory = {}, {}
    for name, step in steps.items():
        with PeakMemory(device) as peak, suppress(torch.OutOfMemoryError):
            losses[name] = [step() for _ in range(FIRST_STEPS)]
        memory[name] = peak.bytes
        free_memory(device)
    return losses, memory


def free_memory(device: str) -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def ratios(seconds: Seconds) -> dict[str, float]:
    """Pairs a second of the first method over those of each other."""
    first, *others = seconds
    return {name: median_ratio(seconds[first], seconds[name]) for name in others}


def made_pairs(sizes: Sizes, batch_size: int, device: str) -> Pairs:
    """One batch of noise: pixel_values (B, 3, H, W), and texts between CLIP's start and end, the end as padding."""
    generator = torch.Generator(device).manual_seed(0)
    lengths = torch.empty(batch_size, device=device).normal_(CAPTION_TOKENS, CAPTION_DEVIATION, generator=generator)
    lengths = lengths.round().long().clamp_(3, CONTEXT)  # (B,)
    positions = torch.arange(int(lengths.max()), device=device)  # (T,)
    end = sizes.vocabulary - 1
    ids = torch.randint(1, end - 1, (batch_size, len(positions)), device=device, generator=generator)
    ids[:, 0] = end - 1
    ids = torch.where(positions < lengths[:, None] - 1, ids, end)
    # In bf16, as autocast hands them to the first layer of both: 32,768 pictures are 9 GiB and not 18.
    shape = (batch_size, 3, sizes.image, sizes.image)
    pixels = torch.randn(shape, device=device, generator=generator, dtype=torch.bfloat16)
    mask = (positions < lengths[:, None]).long()
    return Pairs("made", [{"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}])


def build_peer(sizes: Sizes, device: str) -> nn.Module:
    """open_clip's ViT-B/32, or a tiny one."""
    if not sizes.width:
        return build_open_clip(device)
    from open_clip.model import CLIP

    torch.manual_seed(0)
    vision = {"layers": 1, "width": sizes.width, "patch_size": 16, "image_size": sizes.image}
    text = {"context_length": CONTEXT, "vocab_size": sizes.vocabulary, "width": sizes.width, "heads": 1, "layers": 1}
    return CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text, output_dict=True).to(device).train()


def build_alone(sizes: Sizes) -> ImageTextDualEncoder:
    """Our model of the same shape where the peer, which gives the weights, is missing."""
    torch.manual_seed(0)
    tiny = sizes.width
    text = CLIPTextConfig(
        vocab_size=sizes.vocabulary,
        bos_token_id=sizes.vocabulary - 2,
        eos_token_id=sizes.vocabulary - 1,
        **tower_shape(tiny or 512, layers=1 if tiny else 12),
    )
    image = CLIPVisionConfig(
        image_size=sizes.image, patch_size=16 if tiny else 32, **tower_shape(tiny or 768, layers=1 if tiny else 12)
    )
    poolings = {"text_pooling": "pooler", "image_pooling": "pooler"}
    dimensions = 16 if tiny else 512
    return ImageTextDualEncoder(
        ImageTextConfig(text_config=text, image_config=image, projection_dim=dimensions, **poolings)
    )


def tower_shape(width: int, layers: int) -> dict[str, int]:
    """Of a transformer whose heads are 64 wide."""
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
    }

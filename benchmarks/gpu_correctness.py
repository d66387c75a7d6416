"""Part 1 of gpu_check.py: is what a GPU computes right?

Losses against dense float64 formulas, training steps of every objective against the same step in fp32 on the CPU, a
training that is killed and resumed against one that is left alone, and the log-mel extractor against itself on the CPU.

Legend: N pairs, D embedding size, T tokens.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import signal
import statistics
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import log_softmax, logsigmoid, normalize
from transformers import BertConfig, ViTConfig, ViTImageProcessor

from common import seconds_of
from gpu_check import Record
from xmodal_hf import ImageTextConfig, ImageTextDualEncoder, LogMelFeatureExtractor, SentenceEncoder
from xmodal_hf.losses import clip_loss, cyclic_losses, info_nce, sigmoid_loss, simcse_loss
from xmodal_hf.models.configuration_sentence_encoder import SentenceEncoderConfig
from xmodal_hf.objectives import Batch, CrossModalObjective, JointObjective, Objective, SentenceObjective
from xmodal_hf.training.adapters import add_lora
from xmodal_hf.training.arguments import LoraArguments, TrainingArguments
from xmodal_hf.training.checkpoint import find_resumed
from xmodal_hf.training.log import LOG_NAME
from xmodal_hf.training.loop import TrainingStep, build_accelerator, run_phase
from xmodal_hf.training.towers import compile_towers, freeze_towers

SCALE = 1 / 0.07  # CLIP's first logit_scale
HARD_NEGATIVE_WEIGHT = 0.5
# Largest relative errors. Losses add up in fp32 whatever the embeddings are. Gradients have the embeddings' type:
# 2^-9 and 2^-12 of rounding in bf16 and fp16, and again in the factors of the products that make them.
LOSS_TOLERANCE = 1e-5
GRADIENT_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# Of the loss and the norm of the gradients of a step, against fp32 on the CPU.
STEP_TOLERANCES = {"no": 1e-3, "bf16": 5e-2, "fp16": 1e-2}
# Two spectrograms, each within 0.001 dB of the truth.
LOG_MEL_TOLERANCE_DB = 2e-3
VOCABULARY = 1000
SIDES: tuple[Literal["image", "text"], ...] = ("image", "text")
MOST_OVERFLOWS = 20  # of fp16's scale, each of which halves it


@dataclass(frozen=True)
class Sizes:
    """How large everything is."""

    pairs: int  # N of the losses
    dimensions: int
    tile: int  # edge of a second tiling, which divides nothing
    batch: int  # of the training steps
    micro_batch: int
    hidden: int
    layers: int
    image: int
    steps: int  # of the training that is killed
    clips: int


FULL = Sizes(4096, 512, 1500, 64, 24, 256, 4, 64, 12, 32)
TINY = Sizes(64, 16, 27, 8, 3, 16, 1, 16, 6, 2)


def run(record: Record, options: argparse.Namespace) -> None:
    """Measure everything; what takes long comes last."""
    sizes, device = (TINY if options.tiny else FULL), options.device
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        for loss in LOSSES:
            record.measure(f"loss {loss}, {name}", partial(compare_loss, loss, dtype, sizes, device))
    known = trials(sizes, device)
    with exact_convolutions():
        for name, trial in known.items():
            record.measure(f"step {name}", partial(compare_step, trial, sizes, options))
        for side in SIDES:
            record.measure(f"feature store, {side} tower", partial(compare_store, side, sizes, device))
    record.measure("log-mel", partial(compare_log_mel, sizes, device))
    record.measure("resumed after a kill", partial(compare_resumed, sizes, device))
    with exact_convolutions():
        compiled = replace(known["clip"], compiled=True)
        record.measure("step clip, torch.compile", partial(compare_step, compiled, sizes, options))


def exact_convolutions() -> AbstractContextManager[None]:
    """cuDNN convolves fp32 in TF32 by default, whose 10 bits would hide what is to be compared."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


# ---- losses ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LossInputs:
    """Unit-norm embeddings (N, D) that resemble each other in pairs, learned scalars, and constants."""

    items: Tensor
    texts: Tensor
    negatives: Tensor
    scale: Tensor
    bias: Tensor
    groups: Tensor  # (N,) ids; some items have several pairs
    tile: int

    def tensors(self) -> list[Tensor]:
        """What gets a gradient."""
        return [self.items, self.texts, self.negatives, self.scale, self.bias]

    def exact(self) -> LossInputs:
        """The same numbers in float64, as leaves."""
        names = ("items", "texts", "negatives", "scale", "bias")
        return replace(self, **{name: getattr(self, name).detach().double().requires_grad_() for name in names})


def loss_inputs(sizes: Sizes, dtype: torch.dtype, device: str) -> LossInputs:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(sizes.pairs, sizes.dimensions, generator=generator) for _ in range(3)]
    sides = [rows[0], rows[0] + rows[1], rows[0] + 2 * rows[2]]
    groups = torch.randint(sizes.pairs // 2, (sizes.pairs,), generator=generator)
    items, texts, negatives = (normalize(side).to(device, dtype).requires_grad_() for side in sides)
    scale, bias = (torch.tensor(value, device=device, requires_grad=True) for value in (SCALE, -10.0))
    return LossInputs(items, texts, negatives, scale, bias, groups.to(device), sizes.tile)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over the rows of logits (n, M), with targets (n, M) that are normalised here."""
    weights = targets.double() / targets.sum(dim=1, keepdim=True)
    return -(weights * log_softmax(logits, dim=1)).sum() / len(logits)


def same_item(x: LossInputs) -> Tensor:
    return x.groups[:, None] == x.groups


def dense_clip(x: LossInputs, targets: Tensor) -> Tensor:
    logits = x.scale * x.items @ x.texts.T
    return (cross_entropy(logits, targets) + cross_entropy(logits.T, targets.T)) / 2


def dense_cyclic(x: LossInputs) -> Tensor:
    cross = x.items @ x.texts.T
    in_modal = (x.items @ x.items.T - x.texts @ x.texts.T).square().sum()
    return (in_modal + (cross - cross.T).square().sum()) / len(cross)


def dense_sigmoid(x: LossInputs) -> Tensor:
    logits = x.scale * x.items @ x.texts.T + x.bias
    signs = 2 * same_item(x).double() - 1
    return -logsigmoid(signs * logits).sum() / len(logits)


def dense_simcse(x: LossInputs) -> Tensor:
    own = HARD_NEGATIVE_WEIGHT * identity(x)
    logits = torch.cat([x.items @ x.texts.T / 0.05, x.items @ x.negatives.T / 0.05 + own], dim=1)
    return cross_entropy(logits, torch.cat([identity(x), torch.zeros_like(own)], dim=1))


def identity(x: LossInputs) -> Tensor:
    return torch.eye(len(x.items), dtype=torch.float64, device=x.items.device)


def streamed_simcse(x: LossInputs) -> Tensor:
    return simcse_loss(x.items, x.texts, x.negatives, temperature=0.05, hard_negative_weight=HARD_NEGATIVE_WEIGHT)


# Name -> ours, and the formula over the whole matrix.
LOSSES: dict[str, tuple[Callable[[LossInputs], Tensor], Callable[[LossInputs], Tensor]]] = {
    "clip": (lambda x: clip_loss(x.items, x.texts, x.scale), lambda x: dense_clip(x, identity(x))),
    "clip, several tiles": (
        lambda x: clip_loss(x.items, x.texts, x.scale, chunk_size=x.tile),
        lambda x: dense_clip(x, identity(x)),
    ),
    "clip, groups": (
        lambda x: clip_loss(x.items, x.texts, x.scale, group_ids=x.groups),
        lambda x: dense_clip(x, same_item(x)),
    ),
    "cyclic": (lambda x: torch.stack(cyclic_losses(x.items, x.texts)).sum(), dense_cyclic),
    "sigmoid": (
        lambda x: sigmoid_loss(x.items, x.texts, x.scale, x.bias, group_ids=x.groups, chunk_size=x.tile),
        dense_sigmoid,
    ),
    "simcse": (streamed_simcse, dense_simcse),
    "info_nce, mask": (
        lambda x: info_nce(x.items, x.texts, x.scale, positives=same_item(x), chunk_size=x.tile),
        lambda x: cross_entropy(x.scale * x.items @ x.texts.T, same_item(x)),
    ),
}


def compare_loss(name: str, dtype: torch.dtype, sizes: Sizes, device: str) -> dict[str, Any]:
    """Relative errors of the value and of every gradient, each over the largest entry."""
    ours, formula = LOSSES[name]
    x = loss_inputs(sizes, dtype, device)
    exact = x.exact()
    value, expected = ours(x), formula(exact)
    value.backward()
    expected.backward()
    loss_error = abs(value.item() / expected.item() - 1)
    gradient_error = max(
        relative_error(tensor.grad, wanted.grad)
        for tensor, wanted in zip(x.tensors(), exact.tensors(), strict=True)
        if wanted.grad is not None
    )
    tolerance = GRADIENT_TOLERANCES[dtype]
    return {
        "ok": loss_error <= LOSS_TOLERANCE and gradient_error <= tolerance,
        "loss": value.item(),
        "loss_error": loss_error,
        "gradient_error": gradient_error,
        "gradient_tolerance": tolerance,
    }


def relative_error(actual: Tensor | None, expected: Tensor) -> float:
    """Largest difference over the largest expected entry; infinite where there is nothing or no number."""
    if actual is None:
        return float("inf")
    error = ((actual.double() - expected).abs().max() / expected.abs().max()).item()
    return error if error == error else float("inf")


# ---- training steps -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A training step and how it is computed on the device."""

    objective: Objective
    model: Callable[[], nn.Module]
    batch: Batch  # on the CPU
    options: Mapping[str, Any]
    compiled: bool = False


def trials(sizes: Sizes, device: str) -> dict[str, Trial]:
    """A step of every objective, and of every way to run one."""
    pairs, sentences = pair_batch(sizes, seed=0), text_batch(3 * sizes.batch, sizes, seed=1)
    dual = partial(build_dual_encoder, sizes)
    clip = CrossModalObjective()
    joint = JointObjective(CrossModalObjective("cyclip"), SentenceObjective(num_views=3), sentence_weight=0.5)
    siglip = partial(build_dual_encoder, sizes, logit_bias_init_value=-10.0)
    supervised = SentenceObjective(num_views=3, hard_negative_weight=HARD_NEGATIVE_WEIGHT)
    sentence_model = partial(build_sentence_encoder, sizes)
    cached = {"micro_batch_size": sizes.micro_batch}
    both = {"pairs": pairs, "sentences": sentences}
    steps = {
        "clip": Trial(clip, dual, pairs, {}),
        "cyclip": Trial(CrossModalObjective("cyclip"), dual, pairs, {}),
        "siglip": Trial(CrossModalObjective("siglip"), siglip, pairs, {}),
        "simcse, unsupervised": Trial(SentenceObjective(), sentence_model, text_batch(sizes.batch, sizes, 2), {}),
        "simcse, supervised": Trial(supervised, sentence_model, sentences, {}),
        "joint": Trial(joint, dual, both, {}),
        "clip, packed texts": Trial(CrossModalObjective(text_sub_batches=4), dual, pairs, {}),
        "clip, gradient caching": Trial(clip, dual, pairs, cached),
        "joint, gradient caching": Trial(joint, dual, both, cached),
        "clip, gradient checkpointing": Trial(clip, dual, pairs, {"gradient_checkpointing": True}),
        "clip, averaged weights": Trial(clip, dual, pairs, {"ema_decay": 0.9}),
        "clip, frozen image tower": Trial(clip, partial(build_frozen, sizes), pairs, {}),
        "clip, LoRA": Trial(clip, partial(build_lora, sizes), pairs, {}),
        "clip, bf16": Trial(clip, dual, pairs, {"mixed_precision": "bf16"}),
        "joint, bf16, gradient caching": Trial(joint, dual, both, {"mixed_precision": "bf16", **cached}),
    }
    if device == "cuda":  # a CPU has no fp16
        fp16 = {"mixed_precision": "fp16"}
        steps["clip, fp16 with its scaler"] = Trial(clip, dual, pairs, fp16)
        steps["joint, fp16, gradient caching"] = Trial(joint, dual, both, {**fp16, **cached})
    return steps


def text_batch(rows: int, sizes: Sizes, seed: int) -> Batch:
    """Right-padded texts of 3 to 12 tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 13, (rows,), generator=generator)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()  # (B, T)
    ids = torch.randint(1, VOCABULARY, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


def pair_batch(sizes: Sizes, seed: int) -> Batch:
    """Texts and pictures of noise; the last two rows are one item's."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(sizes.batch, 3, sizes.image, sizes.image, generator=generator)
    groups = torch.arange(sizes.batch)
    groups[-1] = groups[-2]
    ids = [str(number) for number in range(sizes.batch)]
    return {**text_batch(sizes.batch, sizes, seed), "pixel_values": pixels, "group_ids": groups, "ids": ids}


def tower_shape(sizes: Sizes, dropout: float) -> dict[str, Any]:
    return {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * sizes.hidden,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }


def build_dual_encoder(sizes: Sizes, dropout: float = 0.0, **fields: Any) -> ImageTextDualEncoder:
    """The same weights each time; without dropout steps on two devices can be compared."""
    torch.manual_seed(0)
    shape = tower_shape(sizes, dropout)
    text, image = BertConfig(vocab_size=VOCABULARY, **shape), ViTConfig(image_size=sizes.image, patch_size=8, **shape)
    fields = {"projection_dim": sizes.hidden, **fields}
    return ImageTextDualEncoder(ImageTextConfig(text_config=text, image_config=image, **fields))


def build_sentence_encoder(sizes: Sizes) -> SentenceEncoder:
    torch.manual_seed(0)
    text = BertConfig(vocab_size=VOCABULARY, **tower_shape(sizes, 0.0))
    return SentenceEncoder(SentenceEncoderConfig(text_config=text))


def build_frozen(sizes: Sizes) -> ImageTextDualEncoder:
    model = build_dual_encoder(sizes)
    freeze_towers(model, ["image"])
    return model


def build_lora(sizes: Sizes) -> nn.Module:
    model = build_dual_encoder(sizes)
    torch.manual_seed(0)
    return add_lora(model, LoraArguments(lora_rank=4))


def compare_step(trial: Trial, sizes: Sizes, options: argparse.Namespace) -> dict[str, Any]:
    """Loss and gradient norm of a step against fp32 on the CPU, and whether it moved what is trained."""
    expected_loss, expected_norm = cpu_step(trial)
    arguments = training_arguments(sizes, "", **trial.options)
    accelerator = fresh_accelerator(arguments, options.device)
    model = trial.model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    if arguments.gradient_checkpointing:
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    if trial.compiled:
        compile_towers(model)
    take_step = TrainingStep(accelerator, model, trial.objective, arguments, total_steps=10)
    batch = on_device(trial.batch, options.device)
    # The smoke test does not compile, which would take longer than all other parts.
    with torch.compiler.set_stance("force_eager") if trial.compiled and options.tiny else nullcontext():
        output, extra, good = take_step(batch)
        overflowed = 0
        # fp16's first steps may overflow: nothing moves then, and the scaler tries a smaller scale.
        while accelerator.scaler is not None and not math.isfinite(extra["grad_norm"]) and overflowed < MOST_OVERFLOWS:
            overflowed += 1
            output, extra, good = take_step(batch)
    loss_error = abs(output.loss.item() / expected_loss - 1)
    norm_error = abs(float(extra["grad_norm"]) / expected_norm - 1)
    tolerance = STEP_TOLERANCES[arguments.mixed_precision]
    unmoved = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and torch.equal(parameter.detach().cpu(), before[name])
    ]
    return {
        "ok": bool(good) and loss_error <= tolerance and norm_error <= tolerance and len(unmoved) < len(before) // 2,
        "loss": output.loss.item(),
        "loss_error": loss_error,
        "gradient_norm_error": norm_error,
        "tolerance": tolerance,
        "unmoved_parameters": unmoved,
        "overflowed_steps": overflowed,
    }


def cpu_step(trial: Trial) -> tuple[float, float]:
    """Loss and norm of all gradients in fp32 on the CPU, without the training loop."""
    model = trial.model().train()
    loss = trial.objective(model, trial.batch).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), torch.nn.utils.get_total_norm(gradients).item()


def training_arguments(sizes: Sizes, folder: str, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder, batch_size=sizes.batch, learning_rate=1e-3, report_to="none", warmup_steps=0.0, **options
    )


def fresh_accelerator(arguments: TrainingArguments, device: str) -> Accelerator:
    """An Accelerator of its own precision and device: those of a process share a state otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(mixed_precision=arguments.mixed_precision, cpu=device == "cpu")


def on_device(batch: Batch, device: str) -> Batch:
    if "pairs" in batch:
        return {name: on_device(part, device) for name, part in batch.items()}
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


# ---- vectors of a feature store -------------------------------------------------------------------------------------


def compare_store(side: Literal["image", "text"], sizes: Sizes, device: str) -> dict[str, Any]:
    """Vectors that a store gives back against those of the tower itself, here and in fp32 on the CPU."""
    # Here, since data need the packages that are carried.
    from gpu_study import make_pictures
    from xmodal_hf import ImageTextProcessor
    from xmodal_hf.data.collators import PairCollator
    from xmodal_hf.data.sampling import PairDataset
    from xmodal_hf.data.sources import load_pairs
    from xmodal_hf.features import ExtractionOptions, extract
    from xmodal_hf.features.frozen import FrozenSide
    from xmodal_hf.training.tokenizer import train_tokenizer

    AcceleratorState._reset_state(reset_partial_state=True)
    model = build_dual_encoder(sizes).eval()
    with tempfile.TemporaryDirectory() as temporary:
        table = load_pairs(str(make_pictures(Path(temporary))), split="train")
        texts = [text for captions in table["text"] for text in captions]
        tokenizer = train_tokenizer(texts, vocab_size=VOCABULARY // 2, max_length=16)
        images = ViTImageProcessor(size={"height": sizes.image, "width": sizes.image})
        collator = PairCollator(ImageTextProcessor(images, tokenizer), max_length=16)
        rows = PairDataset(table, seed=0, min_image_size=sizes.image)
        frozen = FrozenSide(side, model.to(device), rows, collator)
        options = ExtractionOptions(dtype="float32", batch_size=5, show_progress=False)
        store = extract(Path(temporary) / "store", frozen, options)
        stored = store.vectors(range(len(store)))
        if side == "image":
            inputs = collator([rows[number] for number in range(len(rows))])
            direct = {"pixel_values": inputs["pixel_values"]}
        else:
            direct = tokenizer(texts, padding=True, return_tensors="pt")
    pooled = {place: pooled_vectors(model.to(place), side, direct) for place in (device, "cpu")}
    errors = {place: relative_error(stored, vectors.double()) for place, vectors in pooled.items()}
    return {
        "ok": len(stored) == len(pooled["cpu"]) and max(errors.values()) <= GRADIENT_TOLERANCES[torch.float32],
        "vectors": len(stored),
        "error_beside_the_tower": errors[device],
        "error_beside_the_tower_on_a_cpu": errors["cpu"],
        "equal_to_the_bit": torch.equal(stored, pooled[device]),
    }


@torch.no_grad()
def pooled_vectors(model: ImageTextDualEncoder, side: str, inputs: Mapping[str, Tensor]) -> Tensor:
    """(n, H) of a tower, all rows at once."""
    moved = {name: tensor.to(model.device) for name, tensor in inputs.items()}
    return model(**moved)[f"{side}_model_output"].pooler_output.cpu()


# ---- a training that is killed --------------------------------------------------------------------------------------


class KilledLoader:
    """Batches by their number; the process is killed when it asks for batch `kill_at`. A `StatefulLoader`."""

    def __init__(self, sizes: Sizes, device: str, kill_at: int | None) -> None:
        self.sizes, self.device, self.kill_at = sizes, device, kill_at
        self.number = 0

    @property
    def epoch(self) -> int:
        return 0

    def __len__(self) -> int:
        return self.sizes.steps

    def __iter__(self) -> Generator[Batch]:
        while True:
            if self.number == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            batch = pair_batch(self.sizes, seed=self.number)
            self.number += 1
            yield on_device(batch, self.device)

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number = state["number"]


def train(folder: Path, sizes: Sizes, device: str, kill_at: int | None = None) -> None:
    """Train with dropout, bf16, gradient caching and averaged weights, from the newest state; write the weights."""
    arguments = training_arguments(
        *(sizes, str(folder)),
        micro_batch_size=sizes.micro_batch,
        mixed_precision="bf16",
        ema_decay=0.9,
        checkpoint_steps=2,
        resume="auto",
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = build_accelerator(arguments)
    model = build_dual_encoder(sizes, dropout=0.1)
    run_phase(
        *(accelerator, model, CrossModalObjective("cyclip"), KilledLoader(sizes, device, kill_at), arguments, "resume"),
        resume_from=find_resumed(folder, arguments.resume),
    )
    save_file({name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}, weights_of(folder))


def weights_of(folder: Path) -> Path:
    return folder / "weights.safetensors"


def compare_resumed(sizes: Sizes, device: str) -> dict[str, Any]:
    """How equal a training that was killed and resumed is to one left alone, and two left alone to each other."""
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in ("alone", "again", "killed")}
        for name in ("alone", "again"):
            train(folders[name], sizes, device)
        # A process that uses a GPU or several threads cannot be forked: OpenMP's threads are missing in the copy.
        can_fork = device == "cpu" and torch.get_num_threads() == 1
        context = multiprocessing.get_context("fork" if can_fork else "spawn")
        kill_at = sizes.steps // 2 + 1  # one step after a state was saved
        process = context.Process(  # type: ignore[attr-defined]
            target=train, args=(folders["killed"], sizes, device, kill_at)
        )
        process.start()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"the training ended with {process.exitcode} and was to be killed")
        train(folders["killed"], sizes, device)
        weights = {name: load_file(weights_of(folder)) for name, folder in folders.items()}
        logs = {name: (folder / LOG_NAME).read_text(encoding="utf-8") for name, folder in folders.items()}
    resumed, control = (largest_difference(weights["alone"], weights[name]) for name in ("killed", "again"))
    return {
        # What two equal runs differ by, a resumed one may: some GPU kernels add up in any order.
        "ok": resumed <= 2 * control,
        "weights_equal_to_the_bit": resumed == 0,
        "logs_equal": logs["alone"] == logs["killed"],
        "largest_difference_of_weights": resumed,
        "of_two_runs_left_alone": control,
        "logs_of_two_runs_left_alone_equal": logs["alone"] == logs["again"],
    }


def largest_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


# ---- log-mel --------------------------------------------------------------------------------------------------------


def compare_log_mel(sizes: Sizes, device: str) -> dict[str, Any]:
    """Largest difference in decibels from the extractor on the CPU, and the time of a clip."""
    extractor = LogMelFeatureExtractor.from_preset("clap", **({"max_length_s": 1.0} if sizes is TINY else {}))
    clips = make_clips(sizes.clips, extractor.num_samples, extractor.sampling_rate)
    options = {"sampling_rate": extractor.sampling_rate, "return_tensors": "pt"}
    expected = extractor(clips, **options)["input_features"]
    features = extractor(clips, device=device, **options)["input_features"]
    seconds = [seconds_of(lambda: extractor(clips, device=device, **options), device) for _ in range(3)]
    difference = (features.cpu() - expected).abs().max().item()
    return {
        "ok": features.device.type == device and difference <= LOG_MEL_TOLERANCE_DB,
        "largest_difference_db": difference,
        "tolerance_db": LOG_MEL_TOLERANCE_DB,
        "seconds_a_clip": statistics.median(seconds) / len(clips),
        "seconds_of_audio_a_clip": extractor.num_samples / extractor.sampling_rate,
    }


def make_clips(count: int, samples: int, rate: int) -> list[Tensor]:
    """Noise, and tones, whose quiet bands take double precision."""
    generator = torch.Generator().manual_seed(0)
    times = torch.arange(samples) / rate
    noise = [torch.randn(samples, generator=generator) / 10 for _ in range(count // 2)]
    return [*noise, *(torch.sin(2 * torch.pi * 220.0 * (number + 1) * times) for number in range(count - count // 2))]

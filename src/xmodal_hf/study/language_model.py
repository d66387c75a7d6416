"""A small language model of the study's own: a text tower trained by masked language modelling, before any sentence.

Shapes: B sentences, T tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import set_seed
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from ..data.collators import SentenceCollator
from ..data.seeding import EpochIndex
from ..data.sentences import load_sentences
from ..messages import progress_bar
from ..training.tokenizer import train_tokenizer

TRAINING_NAME = "training.json"
# BERT's optimizer (Devlin et al. 2019, appendix A.2), with the warm-up over a tenth of the steps.
_WEIGHT_DECAY, _WARMUP, _MASKED = 0.01, 0.1, 0.15
# Number of steps at the beginning and at the end whose mean loss is reported.
_REPORTED_STEPS = 20


def make_language_model(
    folder: Path,
    *,
    sentences: Sequence[str],
    config: Mapping[str, Any],
    vocab_size: int,
    max_length: int,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> None:
    """Train tokenizer and tower from scratch by masked language modelling (Devlin et al. 2019, section 3.1).

    Args:
        folder: Folder for the tower, the tokenizer and `training.json` (sentences, steps, seconds, and the loss at both
            ends).
        sentences: Sources for `load_sentences`.
        config: Config of the tower, with `model_type`.
        vocab_size, max_length: Vocabulary size and maximum length of the tokenizer.
        steps, batch_size, learning_rate: Number of steps, batch size and peak learning rate of AdamW; the rate falls to
            zero after a warm-up.
        seed: Seed of weights, order and masks.

    Raises:
        ValueError: If there are fewer sentences than a batch has.
    """
    texts = sorted({text for source in sentences for text in load_sentences(source)["anchor"]})
    if len(texts) < batch_size:
        raise ValueError(f"a language model needs at least {batch_size} sentences, a batch, got {len(texts)}")
    tokenizer = train_tokenizer(texts, vocab_size=vocab_size, max_length=max_length)
    set_seed(seed)
    known = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": max_length,
    }
    model = AutoModelForMaskedLM.from_config(AutoConfig.for_model(**{**known, **config}))
    started = time.perf_counter()
    losses = _train(model, _batches(texts, tokenizer, batch_size, max_length, seed), steps, learning_rate)
    trained = {
        "sentences": len(texts),
        "steps": steps,
        "batch_size": batch_size,
        "seconds": round(time.perf_counter() - started, 1),
        "first_loss": round(fmean(losses[:_REPORTED_STEPS]), 4),
        "last_loss": round(fmean(losses[-_REPORTED_STEPS:]), 4),
    }
    model.base_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / TRAINING_NAME).write_text(json.dumps(trained, indent=1) + "\n", encoding="utf-8")


def _batches(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, batch_size: int, max_length: int, seed: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Masked batches without end, in a new order each epoch."""
    collator = SentenceCollator(tokenizer, max_length=max_length, mlm_probability=_MASKED, seed=seed)
    epoch = 0
    while True:
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        for start in range(0, len(order) - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            batch = collator([{"anchor": texts[row], "position": EpochIndex(epoch, row)} for row in chosen])
            yield {
                "input_ids": batch["mlm_input_ids"],
                "attention_mask": batch["attention_mask"],
                "labels": batch["mlm_labels"],
            }
        epoch += 1


def _train(
    model: PreTrainedModel, batches: Iterator[dict[str, torch.Tensor]], steps: int, learning_rate: float
) -> list[float]:
    """Return the loss of each step."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, round(_WARMUP * steps), steps)
    losses = []
    model.train()
    for _ in progress_bar(range(steps), desc="masked language modelling", unit="step"):
        loss = model(**next(batches)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return losses

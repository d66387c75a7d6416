"""A small language model of the study's own: a text tower trained by masked language modelling, before any sentence.

Shapes: B sentences, T tokens, M masked tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import set_seed
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
)

from ..data.collators import SentenceCollator
from ..data.seeding import EpochIndex
from ..data.sentences import load_sentences
from ..messages import progress_bar
from ..models.attention_direction import sees_later_tokens
from ..models.modeling_sentence_encoder import SentenceEncoder
from ..training.tokenizer import train_tokenizer

logger = logging.getLogger(__name__)

TRAINING_NAME = "training.json"
# BERT's weight decay (Devlin et al. 2019, appendix A.2), with the warm-up over a tenth of the steps.
_WEIGHT_DECAY, _WARMUP = 0.01, 0.1
# Number of steps at the beginning and at the end whose mean loss is reported.
_REPORTED_STEPS = 20
# Number of batches that are cut from the same sentences, sorted by length.
_BATCHES_SORTED = 64
# Number of steps after which the state is saved.
_CHECKPOINT_STEPS = 1000


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
    mask_probability: float = 0.15,
    seed: int = 0,
) -> None:
    """Train tokenizer and tower from scratch by masked language modelling (Devlin et al. 2019, section 3.1).

    The tower trains without dropout, which slows a model down that sees each sentence a few times (Geiping & Goldstein
    2023, "Cramming", section 4.3); its config keeps the dropout, for the trainings that follow. A training that was
    interrupted goes on from its last state, which lies beside the folder until the end.

    Args:
        folder: Folder for the tower, the tokenizer and `training.json` (sentences, steps, seconds, and the loss at both
            ends).
        sentences: Sources for `load_sentences`.
        config: Config of the tower, with `model_type`.
        vocab_size, max_length: Vocabulary size and maximum length of the tokenizer.
        steps, batch_size, learning_rate: Number of steps, batch size and peak learning rate of AdamW; the rate falls to
            zero after a warm-up.
        mask_probability: Probability that a token is masked, between 0 and 1; BERT's is 0.15.
        seed: Seed of weights, order and masks.

    Raises:
        ValueError: If there are fewer sentences than a batch has, the probability is not between 0 and 1, or the tower
            is causal or has embeddings of another width than its states.
    """
    if not 0 < mask_probability < 1:
        raise ValueError(f"mask_probability must lie between 0 and 1, got {mask_probability}")
    texts = sorted({text for source in sentences for text in load_sentences(source)["anchor"]})
    if len(texts) < batch_size:
        raise ValueError(f"a language model needs at least {batch_size} sentences, a batch, got {len(texts)}")
    tokenizer = train_tokenizer(texts, vocab_size=vocab_size, max_length=max_length)
    set_seed(seed)
    encoder = _new_encoder(config, tokenizer, max_length)
    collator = SentenceCollator(tokenizer, max_length=max_length, mlm_probability=mask_probability, seed=seed)
    training = _Training(encoder, _Batches(texts, collator, batch_size, seed), steps, learning_rate)
    options = [encoder.config.to_json_string(), steps, batch_size, learning_rate, mask_probability, seed]
    trained_on = json.dumps([texts, tokenizer.get_vocab(), options], sort_keys=True)
    known_by = hashlib.sha256(trained_on.encode()).hexdigest()
    state_path = folder.with_name(f"{folder.name}.state.pt")
    training.run(state_path, known_by)
    trained = {
        "sentences": len(texts),
        "steps": steps,
        "batch_size": batch_size,
        "mask_probability": mask_probability,
        "seconds": round(training.seconds, 1),
        "first_loss": round(fmean(training.losses[:_REPORTED_STEPS]), 4),
        "last_loss": round(fmean(training.losses[-_REPORTED_STEPS:]), 4),
    }
    encoder.text_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / TRAINING_NAME).write_text(json.dumps(trained, indent=1) + "\n", encoding="utf-8")
    state_path.unlink(missing_ok=True)


def _new_encoder(config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, max_length: int) -> SentenceEncoder:
    """Build a tower with random weights and the head of masked language modelling."""
    known = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": max_length,
    }
    tower = AutoModel.from_config(AutoConfig.for_model(**{**known, **config}))
    if not sees_later_tokens(tower):
        raise ValueError(
            f"{tower.config.model_type} is causal: masked language modelling needs the tokens on both sides"
        )
    return SentenceEncoder.from_text_pretrained(tower, pooling="mean", mlm_head=True)


class _Batches:
    """Masked batches without end, in a new order each epoch, of sentences of similar length.

    Args:
        texts: Sentences.
        collator: Collator that masks tokens.
        batch_size: Number of sentences per batch.
        seed: Seed of the order.
    """

    def __init__(self, texts: Sequence[str], collator: SentenceCollator, batch_size: int, seed: int) -> None:
        self.texts, self.collator, self.batch_size, self.seed = texts, collator, batch_size, seed

    def starting_at(self, step: int) -> Iterator[dict[str, Any]]:
        """Yield the batches from a step on."""
        for epoch, rows in islice(self._rows(), step, None):
            yield self.collator([{"anchor": self.texts[row], "position": EpochIndex(epoch, row)} for row in rows])

    def _rows(self) -> Iterator[tuple[int, list[int]]]:
        """Yield (epoch, rows of a batch)."""
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(len(self.texts), generator=generator).tolist()
            for start in range(0, len(order), _BATCHES_SORTED * self.batch_size):
                part = order[start : start + _BATCHES_SORTED * self.batch_size]
                part.sort(key=lambda row: len(self.texts[row]))  # batches then hold little padding
                full = [part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size)]
                full = [rows for rows in full if len(rows) == self.batch_size]
                for chosen in torch.randperm(len(full), generator=generator).tolist():
                    yield epoch, full[chosen]
            epoch += 1


class _Training:
    """Masked language modelling of a tower.

    Args:
        encoder: Tower to train, with the head of masked language modelling.
        batches: Masked batches.
        steps: Number of steps.
        learning_rate: Peak learning rate.

    Attributes:
        losses: Loss of each step so far.
        seconds: Seconds of all steps so far, those before an interruption among them.
    """

    def __init__(self, encoder: SentenceEncoder, batches: _Batches, steps: int, learning_rate: float) -> None:
        self.encoder, self.batches, self.steps = encoder, batches, steps
        self.parameters = list(encoder.parameters())
        groups = [
            {"params": [one for one in self.parameters if one.ndim > 1], "weight_decay": _WEIGHT_DECAY},
            {"params": [one for one in self.parameters if one.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate)
        self.schedule = get_linear_schedule_with_warmup(self.optimizer, round(_WARMUP * steps), steps)
        self.losses: list[float] = []
        self.seconds = 0.0

    def run(self, state_path: Path, known_by: str) -> None:
        """Take all steps, after those of a state that was saved for the same training."""
        self._restore(state_path, known_by)
        done, before, started = len(self.losses), self.seconds, time.perf_counter()
        self.encoder.eval()  # without dropout
        bar = progress_bar(total=self.steps, desc="masked language modelling", unit="step", initial=done)
        for batch in islice(self.batches.starting_at(done), self.steps - done):
            self.losses.append(self._step(batch))
            self.seconds = before + time.perf_counter() - started
            bar.set_postfix_str(f"loss={fmean(self.losses[-_REPORTED_STEPS:]):.3f}", refresh=False)
            bar.update()
            if len(self.losses) % _CHECKPOINT_STEPS == 0:
                self._save(state_path, known_by)
        bar.close()

    def _step(self, batch: Mapping[str, torch.Tensor]) -> float:
        """Take a step; return the mean negative log-likelihood of the masked tokens."""
        ids, labels = batch["mlm_input_ids"], batch["mlm_labels"]  # (B, T)
        hidden = self.encoder.text_model(input_ids=ids, attention_mask=batch["attention_mask"]).last_hidden_state
        rows, columns = (labels != -100).nonzero(as_tuple=True)  # (M,) masked tokens only: the vocabulary is wide
        logits = self.encoder.mlm_head(
            hidden[rows, columns], self.encoder.get_input_embeddings().weight
        )  # (M, vocabulary)
        # Not the mean: of a few short sentences no token may be masked.
        loss = nn.functional.cross_entropy(logits, labels[rows, columns], reduction="sum") / max(1, len(rows))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        return loss.item()

    def _parts(self) -> dict[str, Any]:
        """The parts whose state is saved."""
        return {"encoder": self.encoder, "optimizer": self.optimizer, "schedule": self.schedule}

    def _save(self, path: Path, known_by: str) -> None:
        """Save the state, at once or not at all."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self._parts().items()}
        partial = path.with_name(f"{path.name}.partial")
        torch.save({**state, "losses": self.losses, "seconds": self.seconds, "known_by": known_by}, partial)
        os.replace(partial, path)

    def _restore(self, path: Path, known_by: str) -> None:
        """Restore the state of a file, if there is one that can be read and is of this training."""
        if not path.is_file():
            return
        try:
            state = torch.load(path, weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            logger.warning("%s cannot be read: a new training begins (%s)", path, error)
            return
        if state["known_by"] != known_by:
            logger.info("%s is of other sentences or options: a new training begins", path)
            return
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.losses, self.seconds = state["losses"], state["seconds"]
        logger.info("masked language modelling goes on after step %d", len(self.losses))

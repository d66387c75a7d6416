"""Objectives of training: (model, batch) -> loss and logs.

An objective does three things, so that gradient caching (`training/grad_cache.py`) can come between them:
`split` a batch into micro-batches, `encode` one with the model, take the `loss` of embeddings. Calling the objective is
`loss(encode(model, batch))`. The losses see the batch of all processes; the logs describe this process's shard, but for
the losses and the accuracy.

Shapes: B batch, T tokens, D embedding, V views of a sentence batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .distributed import all_reduce_sum
from .losses.registry import LOSSES, find_loss, find_sentence_loss, join_choices

Batch = dict[str, Any]
# Row-wise tensors (their rows concatenate over micro-batches) and the scalars `logit_scale` and `logit_bias`.
Embeddings = dict[str, Tensor]

# Entries that collators add for bookkeeping, which no model takes.
_NOT_MODEL_INPUTS = ("group_ids", "text_ids", "ids")
# Names of the ids of the texts of the views. They are row-wise as the embeddings, so that micro-batches concatenate.
_TEXT_ID_NAMES = ("anchor_ids", "positive_ids", "negative_ids")
# Maximum number of rows over which the logged uniformity is computed, because its cost is quadratic.
_UNIFORMITY_ROWS = 256


@dataclass
class ObjectiveOutput:
    """The loss of the global batch (0-dim, with gradient) and named detached scalars to log."""

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """The parts of a training objective."""

    @property
    def scale_bounds(self) -> tuple[float, float] | None:
        """Bounds of the model's exponentiated `logit_scale`; None: it is not bounded, or there is none."""

    def micro_batches(self, batch: Batch, micro_batch_size: int) -> list[Batch]:
        """Cut a batch into micro-batches of at most `micro_batch_size` items each."""

    def encode(self, model: nn.Module, batch: Batch) -> Embeddings:
        """Run the model on a batch or micro-batch."""

    def loss(self, embeds: Embeddings) -> ObjectiveOutput:
        """Return the loss of a whole local batch's embeddings."""

    def __call__(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        """Return the loss of a batch."""


class CrossModalObjective:
    """Contrastive loss of image-text or audio-text pairs.

    Args:
        loss_type: Name of an entry of `losses.LOSSES`: `clip` (Radford et al. 2021; CLAP's is the same), `cyclip` (Goel
            et al. 2022), `siglip` (Zhai et al. 2023; the model needs a `logit_bias`) or one that was added.
        text_sub_batches: Number of sub-batches of texts of similar length in which the text tower runs; the result is
            the same.
        captions_per_item: Number k of captions of each item in a batch, in neighbouring rows of texts.
        has_negative_texts: Whether a negative caption follows the captions of each item: (k + 1) B rows of texts.
        negative_text_weight: Constant that is added to the logit of each item's own negative caption.
        weights: Weights of the loss by name, such as CyCLIP's `in_modal_weight`. Default: those of its entry.

    Raises:
        ValueError: If there is no such loss, it has no weight of a given name, or it takes only one caption per item.

    Example:
        >>> objective = CrossModalObjective("clip")
        >>> ids = torch.tensor([[2, 5, 3], [2, 6, 3]])
        >>> batch = {"input_ids": ids, "attention_mask": ids > 0, "pixel_values": torch.zeros(2, 3, 16, 16)}
        >>> out = objective(model, batch)
        >>> out.loss.shape, "accuracy" in out.logs
        (torch.Size([]), True)
    """

    def __init__(
        self,
        loss_type: str = "clip",
        *,
        text_sub_batches: int = 1,
        captions_per_item: int = 1,
        has_negative_texts: bool = False,
        negative_text_weight: float = 0.0,
        **weights: float,
    ) -> None:
        self.loss_type = loss_type
        self.text_sub_batches = text_sub_batches
        self.captions_per_item = captions_per_item
        self.has_negative_texts = has_negative_texts
        self.negative_text_weight = negative_text_weight
        self._entry = find_loss(loss_type)
        self._function = self._entry.load()
        self.weights = self._entry.fill_weights(weights)
        if (captions_per_item > 1 or has_negative_texts) and not self._entry.takes_several_texts:
            others = join_choices(name for name, loss in LOSSES.items() if loss.takes_several_texts)
            raise ValueError(f"loss_type {loss_type!r} takes one caption an item, and no negative ones: pass {others}")

    @property
    def scale_bounds(self) -> tuple[float, float] | None:
        return self._entry.scale_bounds

    @property
    def texts_per_item(self) -> int:
        """Rows of texts of each item in a batch, negative captions included."""
        return self.captions_per_item + self.has_negative_texts

    @property
    def uses_logit_bias(self) -> bool:
        """Whether the model's `logit_bias` takes part in the loss."""
        return self._entry.needs_bias

    def micro_batches(self, batch: Batch, micro_batch_size: int) -> list[Batch]:
        items = _num_texts(batch) // self.texts_per_item
        return _split_rows(batch, _count_micro_batches(items, micro_batch_size), rows_per_item=self.texts_per_item)

    def encode(self, model: nn.Module, batch: Batch) -> Embeddings:
        output = model(**_model_inputs(batch), text_sub_batches=self.text_sub_batches, return_logits=False)
        modality_embeds = output.get("image_embeds", output.get("audio_embeds"))  # (B, D)
        if output.get("text_embeds") is None or modality_embeds is None:
            raise ValueError(f"pairs need inputs of both modalities, and the batch has {', '.join(batch)}")
        embeds = {
            **self._texts("embeds", output.text_embeds),
            "modality_embeds": modality_embeds,
            "logit_scale": output.logit_scale,
        }
        if self.has_negative_texts:
            embeds |= self._texts("ids", batch["text_ids"])
        if self.uses_logit_bias:
            if output.get("logit_bias") is None:
                raise ValueError(
                    f"loss_type {self.loss_type!r} needs a logit_bias: build the model with "
                    f"logit_bias_init_value={self._entry.initial_bias:g}"
                )
            embeds["logit_bias"] = output.logit_bias
        if "group_ids" in batch:
            embeds["group_ids"] = batch["group_ids"]
        return embeds

    def _texts(self, name: str, rows: Tensor) -> Embeddings:
        """Rows of texts ((k + 1) B, ...) as those of captions (k B, ...) and of negative captions (B, ...)."""
        if not self.has_negative_texts:
            return {f"text_{name}": rows}
        of_items = rows.unflatten(0, (-1, self.texts_per_item))  # (B, k + 1, ...)
        return {f"text_{name}": of_items[:, :-1].flatten(0, 1), f"negative_text_{name}": of_items[:, -1]}

    def loss(self, embeds: Embeddings) -> ObjectiveOutput:
        modality_embeds, text_embeds = embeds["modality_embeds"], embeds["text_embeds"]
        scale = embeds["logit_scale"]
        options: dict[str, Any] = {"logit_bias": embeds["logit_bias"]} if self.uses_logit_bias else {}
        if self.has_negative_texts:
            options |= {"extra_texts": embeds["negative_text_embeds"], "extra_text_weight": self.negative_text_weight}
            options |= {"text_ids": embeds["text_ids"], "extra_text_ids": embeds["negative_text_ids"]}
        loss, own_logs = self._function(
            modality_embeds, text_embeds, scale, group_ids=embeds.get("group_ids"), **options, **self.weights
        )
        logs = {"loss": loss.detach(), "logit_scale": scale.detach()}
        logs |= _geometry_logs(modality=modality_embeds, text=text_embeds[:: self.captions_per_item])
        return ObjectiveOutput(loss, logs | own_logs)

    def __call__(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        return self.loss(self.encode(model, batch))


class SentenceObjective:
    """Contrastive loss of sentences on the text tower of a `SentenceEncoder` or a dual encoder.

    Args:
        num_views: Number of views: 1 for unsupervised, each sentence twice under two dropout masks (SimCSE, Gao et al.
            2021, eq. 1); 2 for anchors with positives; 3 with hard negatives too (eq. 5). Batches are view-major: V*B
            rows, all anchors first. Their `text_ids` mark equal texts, which are not negatives of each other, and rows
            without a hard negative.
        loss_type: Name of an entry of `losses.SENTENCE_LOSSES`.
        mlm_weight: Weight of the auxiliary masked-language-modelling loss (section 3.2; 0.1 where the authors use it).
            Batches then hold `mlm_input_ids` and `mlm_labels`, and the model is a `SentenceEncoder` with `mlm_head`.
        text_sub_batches: Number of sub-batches of texts of similar length in which the text tower runs; the result is
            the same.
        weights: Weights of the loss by name, such as SimCSE's `temperature` and `hard_negative_weight`. Default: those
            of its entry.

    Raises:
        ValueError: If there is no such loss, it has no weight of a given name, or `num_views` is not 1, 2 or 3.

    Example:
        >>> objective = SentenceObjective(num_views=2, temperature=0.1)
        >>> ids = torch.tensor([[2, 5, 3], [2, 6, 3], [2, 7, 3], [2, 8, 3]])  # two anchors, then their positives
        >>> out = objective(model, {"input_ids": ids, "attention_mask": ids > 0})
        >>> out.loss.shape, "accuracy" in out.logs
        (torch.Size([]), True)
    """

    def __init__(
        self,
        num_views: int = 1,
        *,
        loss_type: str = "simcse",
        mlm_weight: float = 0.0,
        text_sub_batches: int = 1,
        **weights: float,
    ) -> None:
        if num_views not in (1, 2, 3):
            raise ValueError(f"num_views must be 1, 2 or 3, got {num_views}")
        self.num_views = num_views
        self.loss_type = loss_type
        self.mlm_weight = mlm_weight
        self.text_sub_batches = text_sub_batches
        self._entry = find_sentence_loss(loss_type)
        self._function = self._entry.load()
        self.weights = self._entry.fill_weights(weights)

    @property
    def scale_bounds(self) -> None:
        return None  # the model has no loss of masked tokens

    def micro_batches(self, batch: Batch, micro_batch_size: int) -> list[Batch]:
        items = len(batch["input_ids"]) // self.num_views
        return _split_rows(batch, _count_micro_batches(items, micro_batch_size), self.num_views)

    def encode(self, model: nn.Module, batch: Batch) -> Embeddings:
        inputs = _model_inputs(batch)
        masked = {name: inputs.pop(name) for name in ("mlm_input_ids", "mlm_labels") if name in inputs}
        if bool(masked) != (self.mlm_weight > 0):
            raise ValueError("mlm_weight above 0 and a collator with mlm_probability above 0 go together")
        rows = len(inputs["input_ids"])
        if rows % self.num_views:
            raise ValueError(f"a batch of {self.num_views} views has {rows} rows, which is not a multiple of it")
        if self.num_views == 1:
            inputs = {name: torch.cat([tensor, tensor]) for name, tensor in inputs.items()}  # (2B, T)
        output = model(**inputs, **masked, text_sub_batches=self.text_sub_batches)
        names = ("anchor_embeds", "positive_embeds", "negative_embeds")
        views = output.text_embeds.chunk(max(self.num_views, 2))  # each (B, D)
        embeds = dict(zip(names, views, strict=False))
        if "text_ids" in batch:
            ids = batch["text_ids"].view(self.num_views, -1).expand(max(self.num_views, 2), -1)  # (V, B)
            embeds |= dict(zip(_TEXT_ID_NAMES, ids, strict=False))
        if masked:
            embeds["mlm_loss"] = output.mlm_loss  # (V*B,)
            embeds["mlm_tokens"] = (masked["mlm_labels"] != -100).sum(dim=1)  # (V*B,)
        return embeds

    def loss(self, embeds: Embeddings) -> ObjectiveOutput:
        views = embeds["anchor_embeds"], embeds["positive_embeds"], embeds.get("negative_embeds")
        text_ids = {"text_ids": _text_ids(embeds)} if self._entry.takes_text_ids else {}
        if not text_ids and views[2] is not None and "negative_ids" in embeds and (embeds["negative_ids"] < 0).any():
            raise ValueError(f"loss_type {self.loss_type!r} needs a hard negative in each row or in none")
        loss, logs = self._function(*views, **text_ids, **self.weights)
        if "mlm_loss" in embeds:
            # This is the mean over the masked tokens of all processes; a batch may have none.
            tokens = all_reduce_sum(embeds["mlm_tokens"].sum().float()).clamp(min=1)
            mlm_loss = all_reduce_sum(embeds["mlm_loss"].sum()) / tokens
            loss = loss + self.mlm_weight * mlm_loss
            logs = {**logs, "mlm_loss": mlm_loss.detach()}
        logs = {"loss": loss.detach(), **logs}
        return ObjectiveOutput(
            loss, logs | _geometry_logs(anchor=embeds["anchor_embeds"], positive=embeds["positive_embeds"])
        )

    def __call__(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        return self.loss(self.encode(model, batch))


@dataclass
class JointObjective:
    """Weighted sum of a contrastive and a sentence objective that share the language encoder.

    Batches are {"pairs": ..., "sentences": ...}, one of each objective.

    Args:
        cross_modal, sentence: Objectives of the pairs and of the sentences.
        sentence_weight: Weight of the sentence loss; the contrastive loss has weight 1.

    Example:
        >>> objective = JointObjective(CrossModalObjective("clip"), SentenceObjective(), sentence_weight=0.5)
        >>> ids = torch.tensor([[2, 5, 3], [2, 6, 3]])
        >>> sentences = {"input_ids": ids, "attention_mask": ids > 0}
        >>> pairs = {**sentences, "pixel_values": torch.zeros(2, 3, 16, 16)}
        >>> out = objective(model, {"pairs": pairs, "sentences": sentences})
        >>> bool(torch.isclose(out.loss, out.logs["pairs/loss"] + 0.5 * out.logs["sentences/loss"]))
        True
    """

    cross_modal: CrossModalObjective
    sentence: SentenceObjective
    sentence_weight: float = 1.0

    @property
    def scale_bounds(self) -> tuple[float, float] | None:
        return self.cross_modal.scale_bounds

    def micro_batches(self, batch: Batch, micro_batch_size: int) -> list[Batch]:
        # Both are cut into the same number of micro-batches: each then uses every parameter, which distributed training
        # requires of the last one.
        sentences = len(batch["sentences"]["input_ids"]) // self.sentence.num_views
        texts_per_item = self.cross_modal.texts_per_item
        items = _num_texts(batch["pairs"]) // texts_per_item
        count = _count_micro_batches(max(items, sentences), micro_batch_size)
        pairs = _split_rows(batch["pairs"], count, rows_per_item=texts_per_item)
        texts = _split_rows(batch["sentences"], count, self.sentence.num_views)
        return [{"pairs": pair, "sentences": text} for pair, text in zip(pairs, texts, strict=True)]

    def encode(self, model: nn.Module, batch: Batch) -> Embeddings:
        return {
            **self.cross_modal.encode(model, batch["pairs"]),
            **self.sentence.encode(model, batch["sentences"]),
        }

    def loss(self, embeds: Embeddings) -> ObjectiveOutput:
        pairs, sentences = self.cross_modal.loss(embeds), self.sentence.loss(embeds)
        loss = pairs.loss + self.sentence_weight * sentences.loss
        logs = {"loss": loss.detach(), "logit_scale": pairs.logs.pop("logit_scale")}
        logs |= {f"pairs/{name}": value for name, value in pairs.logs.items()}
        logs |= {f"sentences/{name}": value for name, value in sentences.logs.items()}
        return ObjectiveOutput(loss, logs)

    def __call__(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        return self.loss(self.encode(model, batch))


class MatryoshkaObjective:
    """Another objective at nested prefixes of the embeddings (Kusupati et al. 2022, eq. 1), whose losses are added.

    Each prefix is scaled to length one again. The terms of an objective that do not depend on embeddings, such as
    masked language modelling, are counted once.

    Args:
        objective: Objective of pairs, sentences or both.
        dims: Widths of the prefixes; the whole width is always among them.

    Raises:
        ValueError: If there is no width or one below 1, or, when the loss is computed, one above that of the
            embeddings.

    Example:
        >>> objective = MatryoshkaObjective(CrossModalObjective("clip"), [256, 128, 64])
    """

    def __init__(self, objective: Any, dims: Sequence[int]) -> None:
        if not dims or min(dims) < 1:
            raise ValueError(f"dims must be widths of at least 1, got {list(dims)}")
        self.objective = objective
        self.dims = sorted(set(dims), reverse=True)

    @property
    def scale_bounds(self) -> tuple[float, float] | None:
        return self.objective.scale_bounds

    def micro_batches(self, batch: Batch, micro_batch_size: int) -> list[Batch]:
        return self.objective.micro_batches(batch, micro_batch_size)

    def encode(self, model: nn.Module, batch: Batch) -> Embeddings:
        return self.objective.encode(model, batch)

    def loss(self, embeds: Embeddings) -> ObjectiveOutput:
        whole = self.objective.loss(embeds)
        total, logs = whole.loss, dict(whole.logs)
        for dim in self.dims:
            widths = {len(rows.T) for name, rows in embeds.items() if name.endswith("_embeds")}
            if dim > min(widths):
                raise ValueError(
                    f"a prefix of {dim} dimensions needs embeddings of at least as many, got {min(widths)}"
                )
            if widths == {dim}:
                continue
            part = self.objective.loss(_prefixes(embeds, dim)).loss
            total, logs[f"loss@{dim}"] = total + part, part.detach()
        return ObjectiveOutput(total, logs | {"loss": total.detach()})

    def __call__(self, model: nn.Module, batch: Batch) -> ObjectiveOutput:
        return self.loss(self.encode(model, batch))


def _prefixes(embeds: Embeddings, dim: int) -> Embeddings:
    """The first dimensions of all embeddings, of length one; without what does not depend on them."""
    return {
        name: nn.functional.normalize(rows[:, :dim], dim=1) if name.endswith("_embeds") else rows
        for name, rows in embeds.items()
        if not name.startswith("mlm_")
    }


def _text_ids(embeds: Embeddings) -> Tensor | None:
    """(V, B) ids of the texts of each view, where batches have them."""
    found = [embeds[name] for name in _TEXT_ID_NAMES if name in embeds]
    return torch.stack(found) if found else None


def _model_inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name not in _NOT_MODEL_INPUTS}


def _num_texts(batch: Mapping[str, Any]) -> int:
    """Return the rows of the text side: token ids, or the pooled vectors of a frozen tower."""
    return len(batch["input_ids"] if "input_ids" in batch else batch["text_pooler_output"])


def _count_micro_batches(items: int, micro_batch_size: int) -> int:
    """Return into how many micro-batches of at most `micro_batch_size` to cut `items`."""
    if micro_batch_size < 1:
        raise ValueError(f"micro_batch_size must be positive, got {micro_batch_size}")
    return max(1, -(-items // micro_batch_size))


def _split_rows(batch: Mapping[str, Any], count: int, num_views: int = 1, *, rows_per_item: int = 1) -> list[Batch]:
    """Cut the items of a view-major batch into `count` micro-batches, each view-major again, padded to its own longest.

    With one view the micro-batches are views of the batch's tensors: pictures of a large batch lie on a GPU once. Texts
    may then have several neighbouring rows an item, `rows_per_item`.
    """
    items = _num_texts(batch) // (num_views * rows_per_item)
    if items < count:
        raise ValueError(
            f"{items} items cannot be cut into {count} micro-batches: raise micro_batch_size or the batch size"
        )
    ends = _token_ends(batch)
    micro_batches, start = [], 0
    for numbers in torch.arange(items).tensor_split(count):
        chosen = slice(start, start := start + len(numbers))
        rows = {name: _take(value, chosen, num_views, items) for name, value in batch.items()}
        micro_batches.append(rows if ends is None else _cut_text(rows, max(_take(ends, chosen, num_views, items))))
    return micro_batches


def _take(value: Any, items: slice, num_views: int, num_items: int) -> Any:
    """Return the rows of neighbouring items, of which there are `num_items`, in all views of a tensor or list."""
    if num_views == 1:
        rows_per_item = len(value) // num_items
        return value[items.start * rows_per_item : items.stop * rows_per_item]
    if isinstance(value, Tensor):
        return value.unflatten(0, (num_views, -1))[:, items].flatten(0, 1)
    rows = len(value) // num_views
    return [row for start in range(0, len(value), rows) for row in value[start : start + rows][items]]


def _token_ends(batch: Mapping[str, Any]) -> list[int] | None:
    """Return the column after the last token of each text, at least 1, in one transfer from the device."""
    mask = batch.get("attention_mask")
    if mask is None:
        return None
    columns = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return (mask.bool() * columns).amax(dim=1).clamp(min=1).tolist()


def _cut_text(batch: Batch, width: int) -> Batch:
    """Drop the columns of right padding that no row of the batch needs."""
    text = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "mlm_input_ids", "mlm_labels")
    return {name: value[:, :width] if name in text else value for name, value in batch.items()}


@torch.no_grad()
def _geometry_logs(**sides: Tensor) -> dict[str, Tensor]:
    """Alignment of pairs and uniformity of each side (Wang and Isola 2020, alpha = t = 2), on this process's rows."""
    first, second = (embeds.detach().float() for embeds in sides.values())  # (B, D)
    logs = {"alignment": (first - second).square().sum(dim=1).mean()}
    for name, embeds in zip(sides, (first, second), strict=True):
        if len(embeds) > 1:
            squared = torch.pdist(embeds[:_UNIFORMITY_ROWS]).square()
            logs[f"uniformity_{name}"] = squared.mul(-2).exp().mean().log()
    return logs

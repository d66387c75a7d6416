"""Embedding texts, images and audio with our models and with their peers, behind one small interface.

Legend: n items, B batch, T tokens, D embedding size. Every `encode_*` gives (n, D) float32 rows of length one, in the
order of its input.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from operator import length_hint
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    ClapFeatureExtractor,
    ClapModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from xmodal_hf.data.audio import load_waveform
from xmodal_hf.data.bad_items import BadItem, path_of
from xmodal_hf.data.clips import clap_features, clip_seconds, group_by_length, split_windows, to_clip_length
from xmodal_hf.data.errors import BadItemError, naming
from xmodal_hf.data.identity import item_key
from xmodal_hf.data.images import load_image
from xmodal_hf.data.mixing import undecoded
from xmodal_hf.data.modalities import MODALITIES, MODALITY_NAMES, find_address
from xmodal_hf.data.sampling import usable_captions
from xmodal_hf.models.modeling_dual_encoder import DualEncoder
from xmodal_hf.models.modeling_sentence_encoder import SentenceEncoder, default_tokens_per_batch
from xmodal_hf.models.pooling import pool
from xmodal_hf.models.text_format import TextFormat, check_reads_texts
from xmodal_hf.models.text_tower import TextTowerMixin, token_batches
from xmodal_hf.models.towers import evaluation_mode, own_pooled_output

from ..messages import progress_bar
from .checks import as_embeds

logger = logging.getLogger(__name__)

Modality = Literal["image", "audio"]
# Treatment of an item that cannot be used: leave it out and count it, or stop.
OnBadItem = Literal["skip", "error"]

_SECONDS_BEFORE_BAR = 2.0
_TOKENIZED_AT_ONCE = 10_000
_FUSION_SEED = 0


@dataclass(frozen=True)
class EmbedOptions:
    """Options that determine how an embedder runs its model.

    Attributes:
        max_tokens_per_batch: Number of tokens per batch of texts, padding included; texts are sorted by length first.
            None is 1,024 on a CPU, whose cache then holds the activations, and 8,192 elsewhere.
        batch_size: Number of images or clips per batch.
        max_length: Number of tokens to which texts are cut; None is the model's own limit.
        long_clips: Part that is embedded of clips longer than the model takes: the `first` window, or the `mean` of the
            unit embeddings of as many windows as cover the clip. Fused CLAP takes clips whole in either case.
        dtype: Data type of `torch.autocast`; None keeps the precision of the weights. bfloat16 changes cosines by about
            1e-3.
        show_progress: Whether to show a progress bar for work that takes longer than two seconds.

    Example:
        >>> EmbedOptions(batch_size=64).long_clips
        'first'
    """

    max_tokens_per_batch: int | None = None
    batch_size: int = 32
    max_length: int | None = None
    long_clips: Literal["first", "mean"] = "first"
    dtype: torch.dtype | None = None
    show_progress: bool = True


class Embedder:
    """Interface of the task functions to a model. Subclasses implement the methods that their model supports.

    Example:
        >>> class Letters(Embedder):
        ...     def encode_text(self, texts, normalize=True):
        ...         counts = np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float32)
        ...         return counts / np.linalg.norm(counts, axis=1, keepdims=True) if normalize else counts
        >>> Letters().encode_text(["a", "ba"], normalize=False).tolist()
        [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    """

    @property
    def modality(self) -> Modality | None:
        """Modality that the model takes beside text: "image", "audio" or None."""
        return None

    @property
    def logit_scale(self) -> float | None:
        """The learned multiplier of cosines, where the model has one."""
        return None

    @property
    def sampling_rate(self) -> int | None:
        """The rate of the clips that the model takes, in Hz."""
        return None

    @property
    def max_seconds(self) -> float | None:
        """Maximum length of a clip in seconds that the model takes; no more is decoded. None is the whole clip."""
        return None

    @property
    def text_tower(self) -> Embedder:
        """The language encoder alone, whose texts are not projected to the space shared with the other modality."""
        return self

    def encode_text(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        """(n, D) float32 embeddings of `texts`, of unit norm unless `normalize` is False."""
        raise ValueError(f"{type(self).__name__} has no text encoder: this task needs one")

    def encode_image(self, images: Iterable[Any]) -> np.ndarray:
        """(n, D) unit-norm float32 embeddings of pictures, in any form that `data.images.load_image` takes."""
        raise ValueError(f"{type(self).__name__} has no image encoder: this task needs one")

    def encode_audio(self, clips: Iterable[Any]) -> np.ndarray:
        """(n, D) unit-norm float32 embeddings of clips, in any form that `data.audio.load_waveform` takes: (samples,)
        arrays are at the model's sampling rate."""
        raise ValueError(f"{type(self).__name__} has no audio encoder: this task needs one")

    def encode_items(self, modality: str, items: Iterable[Any]) -> np.ndarray:
        """`encode_image(items)` or `encode_audio(items)`."""
        if modality not in MODALITIES:
            raise ValueError(f"unknown modality {modality!r}: one of {', '.join(MODALITIES)}")
        return getattr(self, f"encode_{modality}")(items)


class WrappedEmbedder(Embedder):
    """Base class of embedders that wrap another one: facts about its model are passed on.

    Args:
        embedder: Embedder that this one wraps.
    """

    def __init__(self, embedder: Embedder):
        self._embedder = embedder

    @property
    def modality(self) -> Modality | None:
        return self._embedder.modality

    @property
    def logit_scale(self) -> float | None:
        return self._embedder.logit_scale

    @property
    def sampling_rate(self) -> int | None:
        return self._embedder.sampling_rate

    @property
    def max_seconds(self) -> float | None:
        return self._embedder.max_seconds

    def encode_image(self, images: Iterable[Any]) -> np.ndarray:
        return self._encode_media("image", images)

    def encode_audio(self, clips: Iterable[Any]) -> np.ndarray:
        return self._encode_media("audio", clips)

    def _encode_media(self, modality: Modality, items: Iterable[Any]) -> np.ndarray:
        """(n, D) embeddings of pictures or clips."""
        return self._embedder.encode_items(modality, items)


class FunctionEmbedder(Embedder):
    """Any function from a list of sentences to (n, D) embeddings, such as the `encode` of another library's model."""

    def __init__(self, encode_sentences: Callable[[list[str]], Any]):
        self._encode_sentences = encode_sentences

    def encode_text(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        return _float32(self._encode_sentences(_checked_texts(texts)), normalize)


class TruncatedEmbedder(WrappedEmbedder):
    """The first dimensions of another embedder's vectors, of length one again.

    Args:
        embedder: Embedder whose vectors have at least that many dimensions.
        dim: Number of leading dimensions that are kept.
    """

    def __init__(self, embedder: Embedder, dim: int):
        super().__init__(embedder)
        self._dim = dim

    @property
    def text_tower(self) -> Embedder:
        return TruncatedEmbedder(self._embedder.text_tower, self._dim)

    def encode_text(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        return self._cut(self._embedder.encode_text(texts, normalize=False), normalize)

    def _encode_media(self, modality: Modality, items: Iterable[Any]) -> np.ndarray:
        return self._cut(super()._encode_media(modality, items))

    def _cut(self, embeds: np.ndarray, normalize: bool = True) -> np.ndarray:
        if embeds.shape[1] < self._dim:
            raise ValueError(
                f"--matryoshka_dims {self._dim}: the model's vectors have only {embeds.shape[1]} dimensions"
            )
        return _float32(np.ascontiguousarray(embeds[:, : self._dim]), normalize)


class TextModelEmbedder(Embedder):
    """A text model: a `SentenceEncoder`, or any Auto text model with a pooling over its last hidden state."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: str = "mean",
        options: EmbedOptions | None = None,
    ):
        self.model, self.tokenizer, self.pooling = model, tokenizer, pooling
        self.options = options or EmbedOptions()

    def encode_text(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        if not isinstance(self.model, SentenceEncoder):
            text_format = TextFormat.of(self.model, self.tokenizer)
            with evaluation_mode(self.model):
                check_reads_texts(self.pooling, self.model.config, text_format, self._forward_on_device)
        embeds = _encode_texts(_checked_texts(texts), self.model, self.tokenizer, self._forward, self.options)
        return _float32(embeds, normalize)

    def _forward_on_device(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self._forward({name: value.to(self.model.device) for name, value in inputs.items()})

    def _forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if isinstance(self.model, SentenceEncoder):
            return self.model(**inputs).pooler_output  # (B, D)
        outputs = self.model(**inputs)
        if self.pooling == "pooler":
            return own_pooled_output(outputs, self.model, "pooling")  # (B, D)
        hidden = outputs.last_hidden_state  # (B, T, D)
        eos_token_id = self.model.config.eos_token_id if self.pooling == "eos" else None
        mask = inputs.get("attention_mask")
        return pool(hidden, self.pooling, mask, inputs["input_ids"], eos_token_id)  # (B, D)


class DualEncoderEmbedder(Embedder):
    """A model with `get_text_features` and `get_image_features` or `get_audio_features` in transformers' convention.

    Covers our dual encoders, CLIPModel, SiglipModel and ClapModel. Nothing is cropped or fused at random: clips that
    the processor would crop at random are cut to their beginning, and fused CLAP draws its crops from a fixed seed.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, options: EmbedOptions | None = None):
        self.model, self.processor = model, processor
        self.options = options or EmbedOptions()

    @property
    def modality(self) -> Modality | None:
        parts = self.processor.get_attributes()
        return next((name for name in MODALITY_NAMES if MODALITIES[name].processor_part in parts), None)

    @property
    def _is_sampled(self) -> bool:
        return self.modality is not None and MODALITIES[self.modality].is_sampled

    @property
    def sampling_rate(self) -> int | None:
        return self.processor.feature_extractor.sampling_rate if self._is_sampled else None

    @property
    def max_seconds(self) -> float | None:
        if not self._is_sampled or self.options.long_clips == "mean":
            return None
        return clip_seconds(self.processor.feature_extractor)

    @property
    def logit_scale(self) -> float | None:
        # CLAP has a scale for each direction; that of audio multiplies logits_per_audio.
        scale = self.model.logit_scale_a if isinstance(self.model, ClapModel) else self.model.logit_scale
        return float(scale.detach().exp())

    @property
    def text_tower(self) -> Embedder:
        return _TextTowerEmbedder(self.model, self._part("tokenizer"), self.options)

    def encode_text(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        embeds = _encode_texts(
            _checked_texts(texts),
            self.model,
            self._part("tokenizer"),
            lambda inputs: self.model.get_text_features(**inputs).pooler_output,
            self.options,
        )
        return _float32(embeds, normalize)

    def encode_image(self, images: Iterable[Any]) -> np.ndarray:
        return _float32(self._run("image", images, self._projected), normalize=True)

    def encode_audio(self, clips: Iterable[Any]) -> np.ndarray:
        return _float32(self._run("audio", clips, self._projected), normalize=True)

    def pooled_items(self, modality: Modality, items: Iterable[Any]) -> np.ndarray:
        """(n, H) float32 vectors of pictures or clips as one of our models pools them, before the projection."""
        return self._run(modality, items, self._pooled)

    def pooled_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, H) float32 vectors of texts as one of our models pools them, before the projection."""
        return self.text_tower.encode_text(texts, normalize=False)

    def _run(
        self, modality: Modality, items: Iterable[Any], forward: Callable[[Modality, Any], torch.Tensor]
    ) -> np.ndarray:
        """Run the image or audio tower: items -> (n, D or H) float32 rows."""
        run, unit = {"image": (self._on_pictures, "image"), "audio": (self._on_clips, "clip")}[modality]
        return _encode_items(items, self.model, run(lambda inputs: forward(modality, inputs)), unit, self.options)

    def _projected(self, modality: Modality, inputs: Any) -> torch.Tensor:
        return getattr(self.model, f"get_{modality}_features")(**inputs).pooler_output  # (B, D)

    def _pooled(self, modality: Modality, inputs: Any) -> torch.Tensor:
        return self.model(**inputs, return_logits=False)[f"{modality}_model_output"].pooler_output  # (B, H)

    def _on_pictures(self, forward: Callable[[Any], torch.Tensor]) -> Callable[[list[Any]], torch.Tensor]:
        """Return the function from pictures to the output of `forward` for the inputs of the model."""
        image_processor = self._part("image_processor")

        def run(batch: list[Any]) -> torch.Tensor:
            pixels = image_processor(images=[load_image(image) for image in batch], return_tensors="pt")
            return forward(pixels.to(self.model.device, self.model.dtype))

        return run

    def _on_clips(self, forward: Callable[[Any], torch.Tensor]) -> Callable[[list[Any]], torch.Tensor]:
        """Return the function from clips to the output of `forward` for the inputs of the model."""
        extractor = self._part("feature_extractor")

        def embed(waveforms: list[np.ndarray]) -> torch.Tensor:
            clips = to_clip_length(extractor, waveforms)
            groups = group_by_length(extractor, clips)
            embeds = []
            for group in groups:
                features = _audio_features(extractor, [clips[number] for number in group])
                embeds.append(forward(features.to(self.model.device, self.model.dtype)))
            order = torch.tensor([number for group in groups for number in group])
            return torch.cat(embeds)[order.argsort()]  # (B, D)

        rate, max_seconds = extractor.sampling_rate, self.max_seconds

        def run(batch: list[Any]) -> torch.Tensor:
            waveforms = (load_waveform(clip, rate, max_seconds=max_seconds) for clip in batch)
            if self.options.long_clips == "first":
                return embed(list(waveforms))
            return _mean_over_windows(waveforms, extractor, embed, self.options.batch_size)

        return run

    def _part(self, name: str) -> Any:
        if name not in self.processor.get_attributes():
            items = next((spec.plural for spec in MODALITIES.values() if spec.processor_part == name), "texts")
            raise ValueError(
                f"the model takes no {items}, because its {type(self.processor).__name__} has no {name}: pass items of "
                "another modality, or another model"
            )
        return getattr(self.processor, name)


class _TextTowerEmbedder(Embedder):
    """Embedder of the pooled vectors of a text tower, before the projection of the two-tower model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: EmbedOptions):
        self._model, self._tokenizer, self._options = model, tokenizer, options

    def encode_text(self, texts: Sequence[str], normalize: bool = True) -> np.ndarray:
        embeds = _encode_texts(_checked_texts(texts), self._model, self._tokenizer, self._forward, self._options)
        return _float32(embeds, normalize)

    def _forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if isinstance(self._model, DualEncoder):
            return self._model.encode_text(self._model.config.text_pooling, dict(inputs)).pooler_output  # (B, H)
        # (B, H); for SigLIP, this is the output of `get_text_features`
        return self._model.text_model(**inputs).pooler_output


def as_embedder(
    model: Any, processor: Any = None, *, pooling: str = "mean", options: EmbedOptions | None = None
) -> Embedder:
    """Wrap any supported model in the `Embedder` interface.

    Args:
        model: `Embedder`; a two-tower model (of this package, CLIPModel, SiglipModel, ClapModel) with its `processor`;
            a `SentenceEncoder` or an Auto text model with its tokenizer as `processor`; a SentenceTransformer; or a
            function from a list of sentences to (n, D) embeddings.
        processor: Processor or tokenizer of the model. None takes the one in the folder or Hub repository that the
            model was loaded from.
        pooling: Pooling of an Auto text model: cls, mean, max, eos, last or pooler (its own pooled output).
        options: Batch sizes, precision and progress bar.

    Raises:
        ValueError: If a model comes without its processor, or the object is of no supported kind.

    Example:
        >>> embedder = as_embedder(lambda sentences: np.ones((len(sentences), 4)))
        >>> embedder.encode_text(["a dog", "rain"]).shape
        (2, 4)
    """
    if isinstance(model, Embedder):
        return model
    if isinstance(model, PreTrainedModel) and processor is None and model.name_or_path:
        processor = load_processor(model, model.name_or_path)
    if isinstance(model, PreTrainedModel) and isinstance(processor, ProcessorMixin):
        return DualEncoderEmbedder(model, processor, options)
    if isinstance(model, PreTrainedModel) and isinstance(processor, PreTrainedTokenizerBase):
        return TextModelEmbedder(model, processor, pooling, options)
    if _is_sentence_transformer(model):
        return _sentence_transformer_embedder(model, options or EmbedOptions())
    if isinstance(model, nn.Module):
        raise ValueError(
            f"as_embedder({type(model).__name__}, {type(processor).__name__}) lacks a processor that fits: pass a "
            "two-tower model with its processor, or a text model with its tokenizer"
        )
    if callable(model):
        return FunctionEmbedder(model)
    hint = "; evaluation.loading.load_embedder loads one from a folder or the Hub" if isinstance(model, str) else ""
    raise ValueError(f"cannot embed with {type(model).__name__}: pass a model, an Embedder or a function{hint}")


def load_processor(model: PreTrainedModel, source: str, **kwargs: Any) -> Any:
    """The tokenizer of a text model, the processor of a model that takes something else too."""
    if model.input_modalities not in ("text", ("text",)):
        return AutoProcessor.from_pretrained(source, **kwargs)
    return AutoTokenizer.from_pretrained(source, **kwargs)


@dataclass(frozen=True)
class PairEmbeddings:
    """Embeddings of the pairs of a dataset in the joint space, from which retrieval and representation are computed.

    Attributes:
        modality: Modality of the items: "image" or "audio".
        modality_embeds: Embeddings of the items, of shape (N, D).
        text_embeds: Embeddings of the captions, of shape (M, D).
        text_to_item: Index of the item of each caption, of shape (M,).
        texts: Captions, of length M, by which `evaluate_retrieval` recognises equal ones.
        bad_items: Items and captions that were left out.
    """

    modality: str
    modality_embeds: np.ndarray
    text_embeds: np.ndarray
    text_to_item: np.ndarray
    texts: tuple[str, ...] = ()
    bad_items: tuple[BadItem, ...] = ()


def embed_pairs(
    embedder: Embedder,
    dataset: Iterable[Mapping[str, Any]],
    modality: str = "image",
    *,
    on_bad_item: OnBadItem = "skip",
) -> PairEmbeddings:
    """Embed rows of canonical columns, `text` (a string or a list of them) and `image` or `audio`, in one pass.

    Rows with the same `id`, where there is such a column, are one item with the captions of all of them: what the first
    of these rows holds is embedded. Rows whose ids are only their numbers, or that have none, are one item where
    their bytes are equal.

    What cannot be used is left out by the rule of training: captions that are none (`data.sampling.usable_captions`),
    items without any, items that cannot be read or decoded. A warning counts them.

    Args:
        embedder: `Embedder` of the modality.
        dataset: Dataset whose rows are embedded.
        modality: Modality: "image" or "audio".
        on_bad_item: Treatment of unusable items: "skip", or "error" to stop at the first one.

    Raises:
        ValueError: If no row can be used, or files of different names have one id.
        BadItemError: If an item cannot be used and `on_bad_item` is "error"; the message names the item.

    Example:
        >>> from PIL import Image
        >>> colors = ("red", "blue")
        >>> rows = [{"image": Image.new("RGB", (32, 32), color), "text": ["a dog", "rain"]} for color in colors]
        >>> pairs = embed_pairs(as_embedder(model, processor), rows, "image")
        >>> pairs.modality_embeds.shape, pairs.text_to_item.tolist()
        ((2, 16), [0, 0, 1, 1])
    """
    embedder = as_embedder(embedder)
    pairs = _Pairs(embedder, modality, on_bad_item)
    items = pairs.items(dataset)
    first = next(items, None)
    if first is None:
        raise ValueError(f"there are no pairs to embed{_first_reasons(pairs.bad_items)}")
    modality_embeds = embedder.encode_items(modality, SizedIterable(chain([first], items), length_hint(dataset)))
    _warn_of_bad_items(pairs.bad_items)
    text_embeds = embedder.encode_text(pairs.captions)
    return PairEmbeddings(
        modality, modality_embeds, text_embeds, np.array(pairs.owners), tuple(pairs.captions), tuple(pairs.bad_items)
    )


class _Pairs:
    """Captions, the item of each, and unusable items, which `embed_pairs` gathers while it reads rows."""

    def __init__(self, embedder: Embedder, modality: str, on_bad_item: OnBadItem) -> None:
        self.embedder = embedder
        self.modality = modality
        self.on_bad_item = on_bad_item
        self.captions: list[str] = []
        self.owners: list[int] = []
        self.bad_items: list[BadItem] = []
        self._numbers: dict[Any, int] = {}  # number of each item by its key
        self._paths: list[str] = []  # path of each item; empty if it has none

    def items(self, dataset: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
        """Yield each usable item once, decoded; its captions are there when the next one is asked for."""
        for index, row in enumerate(undecoded(dataset)):
            usable, bad_captions = usable_captions(row["text"])
            for error in bad_captions:
                self._leave_out(index, row, error)
            if not usable:
                continue
            key, path = _item_key(index, row, self.modality), _file_of(row[self.modality])
            if key in self._numbers:
                self._check_path(self._numbers[key], path, index, row)
            else:
                try:
                    item = load_item(self.embedder, self.modality, row[self.modality])
                except BadItemError as error:
                    self._leave_out(index, row, error)
                    continue
                self._numbers[key] = len(self._numbers)
                self._paths.append(path)
                yield item
            self.captions.extend(usable.values())
            self.owners.extend([self._numbers[key]] * len(usable))

    def _leave_out(self, index: int, row: Mapping[str, Any], error: BadItemError) -> None:
        _leave_out(self.bad_items, index, row, self.modality, error, self.on_bad_item)

    def _check_path(self, number: int, path: str, index: int, row: Mapping[str, Any]) -> None:
        """Raise a ValueError where rows with one id name two files."""
        if self._paths[number] != path and row.get("id") is not None:
            raise ValueError(
                f"row {index} has the id {row['id']!r} of {self._paths[number]}, and another {self.modality}, {path}: "
                "name another column with --id_column"
            )


def usable_items(
    embedder: Embedder,
    items: Iterable[Any],
    modality: str,
    bad_items: list[BadItem],
    *,
    ids: Sequence[Any] | None = None,
    boxes: Sequence[tuple[float, float, float, float]] = (),
    on_bad_item: OnBadItem = "skip",
) -> Iterator[Any]:
    """The pictures or clips that can be used, decoded; the others are added to `bad_items`.

    Args:
        embedder: Embedder that will encode the items.
        items: Items in any form that `encode_image` or `encode_audio` takes.
        modality: Modality: "image" or "audio".
        bad_items: List to which unusable items are added, with the number of each item as `index`.
        ids: Ids of the items. None takes their numbers.
        boxes: Boxes (left, upper, width, height) in pixels that are cropped out of each image. If empty, images are
            taken whole.
        on_bad_item: Treatment of unusable items, as in `embed_pairs`.
    """
    for index, item in enumerate(items):
        try:
            usable = load_item(embedder, modality, item)
        except BadItemError as error:
            row = {modality: item, "id": None if ids is None else ids[index]}
            _leave_out(bad_items, index, row, modality, error, on_bad_item)
        else:
            if boxes:
                left, upper, width, height = boxes[index]
                usable = usable.crop((left, upper, left + width, upper + height))
            yield usable
    _warn_of_bad_items(bad_items)


def load_item(embedder: Embedder, modality: str, item: Any) -> Any:
    """A picture or clip as the embedder's model takes it, decoded as in training.

    Raises:
        BadItemError: If the item cannot be used.
    """
    spec = MODALITIES.get(modality)
    if spec is None:
        raise ValueError(f"unknown modality {modality!r}: one of {', '.join(MODALITIES)}")
    decode = find_address(spec.decoder)
    if not spec.is_sampled:
        return decode(item)
    if embedder.sampling_rate is None:  # the model decodes clips itself
        return item
    return decode(item, embedder.sampling_rate, max_seconds=embedder.max_seconds)


def _item_key(index: int, row: Mapping[str, Any], modality: str) -> Any:
    """Key of the item of a row."""
    if row.get("id") is not None:
        return "id", item_key(row["id"], row[modality])
    content = row[modality].get("bytes") if isinstance(row[modality], Mapping) else row[modality]
    return ("bytes", hashlib.blake2b(content).digest()) if isinstance(content, bytes) else index


def _file_of(cell: Any) -> str:
    """The path of a cell that is a file; of bytes, the key is theirs, whatever path is beside them."""
    return "" if isinstance(cell, Mapping) and cell.get("bytes") is not None else path_of(cell)


def _leave_out(
    bad_items: list[BadItem], index: int, row: Mapping[str, Any], modality: str, error: BadItemError, policy: OnBadItem
) -> None:
    item_id = str(index if row.get("id") is None else row["id"])
    if policy == "error":
        with naming(f"item {item_id}"):
            raise error
    bad_items.append(BadItem(index, item_id, path_of(row[modality]), error.reason, error.detail))


def _warn_of_bad_items(bad_items: Sequence[BadItem]) -> None:
    if bad_items:
        logger.warning("left out of the evaluation: %d items or captions%s", len(bad_items), _first_reasons(bad_items))


def _first_reasons(bad_items: Sequence[BadItem]) -> str:
    """The number by reason, and the first one in full."""
    if not bad_items:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(bad.reason for bad in bad_items).most_common())
    first = bad_items[0]
    return f" ({reasons}; the first: item {first.id}: {first.reason}: {first.detail})"


class SizedIterable(Iterable[Any]):
    """A stream that knows how many items it will give at most, so that a progress bar can say how long it takes."""

    def __init__(self, items: Iterable[Any], length: int):
        self._items, self._length = items, length

    def __iter__(self) -> Iterator[Any]:
        return iter(self._items)

    def __length_hint__(self) -> int:
        return self._length


@cache
def _report_cut(cut: int, total: int, limit: int, wanted: int | None) -> None:
    """Log how many texts are cut, once for the same numbers, and a limit that is lower than the one asked for."""
    if wanted is not None and wanted > limit:
        logger.warning(
            "max_length %d: the text tower and its tokenizer take %d tokens, where texts are cut", wanted, limit
        )
    if cut:
        logger.info("%d of %d texts are longer than %d tokens and are cut", cut, total, limit)


def _encode_texts(
    texts: list[str],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    forward: Callable[[Mapping[str, torch.Tensor]], torch.Tensor],
    options: EmbedOptions,
) -> np.ndarray:
    """Tokenize, batch by tokens, run `forward`, restore the order."""
    if isinstance(model, TextTowerMixin):
        model.check_tokenizer(tokenizer)
    text_format = TextFormat.of(model, tokenizer, options.max_length)
    rows: list[dict[str, list[int]]] = []
    for start in range(0, len(texts), _TOKENIZED_AT_ONCE):
        rows += text_format.tokenize(texts[start : start + _TOKENIZED_AT_ONCE])
    _report_cut(text_format.num_cut(texts, rows), len(texts), text_format.max_length, options.max_length)
    max_tokens = options.max_tokens_per_batch or default_tokens_per_batch(model.device)
    batches = token_batches(text_format.lengths(rows), max_tokens)
    embeds: np.ndarray | None = None
    bar = _bar(len(texts), "text", options)
    with bar, evaluation_mode(model):
        for batch in batches:
            padded = text_format.collate([rows[index] for index in batch])
            inputs = {name: value.to(model.device) for name, value in padded.items()}
            with _autocast(model, options.dtype):
                batch_embeds = _float32(forward(inputs), normalize=False)
            if embeds is None:
                embeds = np.empty((len(texts), batch_embeds.shape[1]), dtype=np.float32)
            embeds[batch] = batch_embeds
            bar.update(len(batch))
    assert embeds is not None  # `_checked_texts` refuses an empty list
    return embeds


def _encode_items(
    items: Iterable[Any],
    model: PreTrainedModel,
    forward: Callable[[list[Any]], torch.Tensor],
    unit: str,
    options: EmbedOptions,
) -> np.ndarray:
    """(n, D) what `forward` gives for batches of `items`, which may be a generator: only one batch is in memory."""
    embeds: list[np.ndarray] = []
    batch: list[Any] = []
    bar = _bar(length_hint(items) or None, unit, options)

    def run() -> None:
        with _autocast(model, options.dtype):
            embeds.append(forward(batch).float().cpu().numpy())
        bar.update(len(batch))
        batch.clear()

    with bar, evaluation_mode(model):
        for item in items:
            batch.append(item)
            if len(batch) == options.batch_size:
                run()
        if batch:
            run()
    if not embeds:
        raise ValueError(f"there are no {unit}s to embed")
    return np.concatenate(embeds)


def _bar(total: int | None, unit: str, options: EmbedOptions) -> tqdm:
    what = {"desc": f"embedding {unit}s", "unit": f" {unit}s"}
    return progress_bar(total=total, delay=_SECONDS_BEFORE_BAR, silent=not options.show_progress, **what)


def _mean_over_windows(
    waveforms: Iterable[np.ndarray], extractor: Any, embed: Callable[[list[np.ndarray]], torch.Tensor], batch_size: int
) -> torch.Tensor:
    """(B, D) means of the unit embeddings of each waveform's windows, of which one is in memory at a time.

    Windows of digital silence are left out, unless the whole clip is silent.
    """
    seconds = clip_seconds(extractor)
    if seconds is None:
        return embed(list(waveforms))
    counts: list[int] = []
    waiting: list[np.ndarray] = []
    parts: list[torch.Tensor] = []
    for waveform in waveforms:
        windows = split_windows(waveform, round(seconds * extractor.sampling_rate))
        sounding = [window for window in windows if window.any()] or windows[:1]
        counts.append(len(sounding))
        waiting += [window.copy() for window in sounding]  # a view would keep the whole clip
        while len(waiting) >= batch_size:
            parts.append(embed(waiting[:batch_size]))
            waiting = waiting[batch_size:]
    parts += [embed(waiting)] if waiting else []
    embeds = nn.functional.normalize(torch.cat(parts).float(), dim=-1)  # (windows, D)
    return torch.stack([part.mean(dim=0) for part in embeds.split(counts)])


def _audio_features(extractor: Any, clips: list[np.ndarray]) -> Any:
    """Features of a batch, each clip's independent of its neighbours and of global random state."""
    if isinstance(extractor, ClapFeatureExtractor):
        return clap_features(extractor, clips, seeds=[_FUSION_SEED] * len(clips))
    return extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")


def _is_sentence_transformer(model: Any) -> bool:
    """Whether `model` is a SentenceTransformer, without importing that package for those who do not use it."""
    library = sys.modules.get("sentence_transformers")
    return library is not None and isinstance(model, library.SentenceTransformer)


def _sentence_transformer_embedder(model: Any, options: EmbedOptions) -> FunctionEmbedder:
    def encode(texts: list[str]) -> np.ndarray:
        with _autocast(model, options.dtype):
            return model.encode(texts, batch_size=options.batch_size, show_progress_bar=options.show_progress)

    return FunctionEmbedder(encode)


def _autocast(model: Any, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(model.device.type, dtype=dtype, enabled=dtype is not None)


def _checked_texts(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise ValueError("encode_text takes a list of strings: pass [text]")
    if len(texts) == 0:
        raise ValueError("there are no texts to embed")
    return list(texts)


def _float32(embeds: Any, normalize: bool) -> np.ndarray:
    """(n, D) float32 rows on the CPU, of length one if asked."""
    tensor = as_embeds(embeds, "the model's embeddings").float()
    return (nn.functional.normalize(tensor, dim=-1) if normalize else tensor).cpu().numpy()

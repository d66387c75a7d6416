"""Steps of `training_scripts/extract_features.py`: from options to a model, and from a model to its vectors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from transformers import PreTrainedModel, ProcessorMixin

from ..data.mixing import ConcatenatedPairs, PairTable
from ..data.sentences import holds_texts_alone, sentence_rows
from ..features.extraction import ExtractionOptions, extract
from ..features.frozen import Side
from ..features.identity import short_name
from ..features.processes import launched_processes, main_process_first
from ..features.store import FeatureStore
from ..models.modeling_dual_encoder import trained_pooling
from ..models.modeling_sentence_encoder import SentenceEncoder
from ..models.towers import find_tower
from .arguments import ContrastiveArguments, PairArguments, TextModelArguments
from .batches import load_pair_table
from .building import build_dual_encoder, build_processor, build_text_model, build_tokenizer
from .feature_arguments import FeatureArguments
from .features import DEFAULT_DTYPE, FOLDER_NAME, build_frozen_side, changing_input
from .tokenizer import train_tokenizer

# Config of the text tower that is put beside an image or audio tower alone, and never runs.
_PLACEHOLDER = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 8,
}


def run_extraction(features: FeatureArguments, pairs: PairArguments) -> FeatureStore:
    """Write the store that the options ask for, in all processes, and print where it is.

    Raises:
        ValueError: If the options do not fit the model or the data.
        FeatureError: If the folder holds vectors of another tower, input or data.
        TooManyBadItemsError: If more items than `--max_bad_fraction` cannot be used.
    """
    state = launched_processes()
    side: Side = features.side or ("text" if features.text_model is not None else pairs.modality)
    text = _text_arguments(features)
    model, processor = load_side(features, text, pairs, side)
    pairs = _fixed_inputs(side, pairs, processor, state)
    table = main_process_first(state, lambda: _load_table(side, pairs))
    model.to(state.device)
    frozen = build_frozen_side(model, side, table, processor, text, pairs, features.mixed_precision)
    dtype = pairs.feature_dtype or DEFAULT_DTYPE
    folder = features.output_dir or str(Path("outputs") / FOLDER_NAME / short_name(frozen.identity, dtype))
    options = ExtractionOptions(
        dtype=dtype,
        batch_size=features.batch_size,
        num_workers=features.num_workers,
        max_bad_fraction=pairs.max_bad_fraction,
        on_bad_item=pairs.on_bad_item,
    )
    store = extract(folder, frozen, options)
    state.print(f"{len(store):,} {side} vectors of {store.width} numbers in {store.manifest.dtype}: {folder}")
    return store


def load_side(
    features: FeatureArguments, text: TextModelArguments, pairs: PairArguments, side: Side
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Return a model with the tower that is asked for, and its processor.

    Beside an image or audio tower alone stands a text tower that is never run. A text tower alone is a
    `SentenceEncoder`, whose "processor" has a tokenizer only.
    """
    if features.text_model is not None:
        tokenizer = build_tokenizer(text, list)
        source = build_text_model(text, tokenizer)
        pooling = features.pooling or trained_pooling(source, find_tower(source, ("text_model",)), "text_pooling")
        return SentenceEncoder.from_text_pretrained(source, pooling=pooling), _TokenizerOnly(tokenizer)
    contrastive = ContrastiveArguments(
        model=features.model,
        image_model=features.image_model,
        audio_model=features.audio_model,
        modality_pooling=cast(Any, features.pooling),  # poolings of texts have been refused before
    )
    placeholder = dataclasses.replace(text, text_config=json.dumps(_PLACEHOLDER)) if features.model is None else text
    processor = build_processor(
        contrastive, pairs.modality, lambda: train_tokenizer(["a"], vocab_size=300, max_length=8)
    )
    return build_dual_encoder(placeholder, contrastive, processor), processor


def _load_table(side: Side, pairs: PairArguments) -> PairTable:
    """Load the pairs; of the text side, text files of one sentence a line and tables of texts alone too."""
    column = getattr(pairs, f"{pairs.modality}_column")
    if side != "text" or pairs.streaming:
        return load_pair_table(pairs)
    are_texts = [holds_texts_alone(name, modality=pairs.modality, media_column=column) for name in pairs.dataset]
    if not any(are_texts):
        return load_pair_table(pairs)
    if not all(are_texts):
        raise ValueError("--dataset names texts alone and pairs: embed them one after the other, in two folders")
    options: dict[str, Any] = {
        "split": pairs.split,
        "text_column": pairs.text_column,
        "id_column": pairs.id_column,
        "max_samples": pairs.max_samples,
    }
    tables = {source: sentence_rows(source, **options) for source in pairs.dataset}
    return ConcatenatedPairs(tables) if len(tables) > 1 else tables[pairs.dataset[0]]


class _TokenizerOnly:
    """Stands for the processor of a text tower alone."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer


def _text_arguments(features: FeatureArguments) -> TextModelArguments:
    length: dict[str, Any] = {} if features.max_length is None else {"max_length": features.max_length}
    return TextModelArguments(text_model=features.text_model, tokenizer=features.tokenizer, **length)


def _fixed_inputs(side: Side, pairs: PairArguments, processor: Any, state: PartialState) -> PairArguments:
    """Return the options with one window a clip, as evaluation takes it, where no views are asked for.

    Raises:
        ValueError: If the pictures or sounds would be augmented without views, or views are asked for and nothing
            varies.
    """
    changing = changing_input(side, pairs, processor)
    if changing is None and pairs.feature_views > 1:
        raise ValueError(
            "--feature_views keeps augmented views: pass --augment, --spec_augment or --audio_window random"
        )
    if changing is None or pairs.feature_views > 1:
        return pairs
    if changing != "--audio_window random":
        raise ValueError(f"{changing} gives the {side} tower another input each time: pass --feature_views, or drop it")
    state.print("one vector an item: of long clips, the first window (--audio_window first)")
    return dataclasses.replace(pairs, audio_window="first")

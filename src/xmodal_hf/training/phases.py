"""A phase put together: model, objective, batches and processor, from the options and the loaded data."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..commands import format_size
from ..data.modalities import MODALITIES
from ..data.sampling import SentenceDataset
from ..data.sentences import num_negatives
from ..losses.registry import LOSSES, SENTENCE_LOSSES, Loss, SentenceLoss
from ..models.text_format import set_text_prefix
from ..objectives import CrossModalObjective, JointObjective, MatryoshkaObjective, Objective, SentenceObjective
from .arguments import (
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
)
from .batches import (
    JointLoader,
    PairTable,
    StatefulLoader,
    build_pair_loader,
    build_sentence_loader,
    report_cut_texts,
    texts_of,
)
from .building import (
    build_processor,
    build_tokenizer,
    build_trained_dual_encoder,
    build_trained_sentence_encoder,
    check_max_length,
    check_prefix,
)
from .clip_lengths import check_clip_length
from .features import frozen_sides, open_features
from .log import inform
from .loop import text_sub_batches
from .sharding import is_sharded
from .towers import freeze_unused_bias, halve_frozen_weights, has_two_views

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """Model, objective and batches of `run_phase`, and the processor (or tokenizer) saved with the model."""

    model: PreTrainedModel | PeftModel
    objective: Objective
    loader: StatefulLoader
    processor: ProcessorMixin | PreTrainedTokenizerBase


def build_sentence_phase(
    accelerator: Accelerator,
    training: TrainingArguments,
    text: TextModelArguments,
    sentence: SentenceArguments,
    table: Dataset,
    lora: LoraArguments | None = None,
) -> Phase:
    """Return phase 1 on a table of sentences, triplets or paraphrases, of all weights or of an adapter."""
    lora = lora or LoraArguments()
    tokenizer = build_tokenizer(text, lambda: texts_of(None, table))
    if text.text_prefix is not None:
        set_text_prefix(tokenizer, text.text_prefix)
    _check_whole(accelerator, lora)
    model = build_trained_sentence_encoder(text, sentence, lora, tokenizer, is_dry_run=training.dry_run)
    check_max_length(model, tokenizer, text)
    _report_equal_views(accelerator, model, table)
    _keep_frozen_weights(accelerator, model, training)
    if not training.dry_run:  # a dry run may have a made-up tokenizer
        check_prefix(tokenizer, text)
        report_cut_texts(accelerator, tokenizer, text, None, table)
    objective = _sentence_objective(sentence, table, text_sub_batches(training, accelerator))
    loader = build_sentence_loader(accelerator, table, tokenizer, training, text, sentence)
    return Phase(model, _with_matryoshka(objective, training), loader, tokenizer)


def build_pair_phase(
    accelerator: Accelerator,
    training: TrainingArguments,
    text: TextModelArguments,
    pairs: PairArguments,
    contrastive: ContrastiveArguments,
    sentence: SentenceArguments,
    lora: LoraArguments,
    table: PairTable,
    sentences: Dataset | None,
) -> Phase:
    """Return phase 2 on a table of pairs, joint with phase 1 where there are sentences."""
    processor = build_processor(
        contrastive, pairs.modality, lambda: build_tokenizer(text, lambda: texts_of(table, sentences))
    )
    if text.text_prefix is not None:
        set_text_prefix(processor.tokenizer, text.text_prefix)
    _check_whole(accelerator, lora)
    model = build_trained_dual_encoder(text, contrastive, lora, processor)
    check_max_length(model, processor.tokenizer, text)
    if not training.dry_run:  # a dry run may have a made-up tokenizer
        check_prefix(processor.tokenizer, text)
        report_cut_texts(accelerator, processor.tokenizer, text, table, sentences)
    if MODALITIES[pairs.modality].is_sampled and not is_sharded(accelerator):
        check_clip_length(model, processor, contrastive, pairs)
    sub_batches = text_sub_batches(training, accelerator)
    cross_modal = _pair_objective(contrastive, pairs, sub_batches)
    freeze_unused_bias(model, cross_modal)
    if sentences is not None:
        _report_equal_views(accelerator, model, sentences)
    _keep_frozen_weights(accelerator, model, training)
    features = {} if training.dry_run else open_features(accelerator, model, table, processor, training, text, pairs)
    any_longer = "audio" not in frozen_sides(model)
    loader = build_pair_loader(accelerator, table, processor, training, text, pairs, features, any_longer)
    if sentences is None:
        return Phase(model, _with_matryoshka(cross_modal, training), loader, processor)
    of_sentences = _sentence_objective(sentence, sentences, sub_batches)
    objective = JointObjective(cross_modal, of_sentences, contrastive.sentence_weight)
    sentence_part = build_sentence_loader(
        accelerator, sentences, processor.tokenizer, training, text, sentence, contrastive.sentence_batch_size
    )
    return Phase(model, _with_matryoshka(objective, training), JointLoader(loader, sentence_part), processor)


def _keep_frozen_weights(
    accelerator: Accelerator, model: PreTrainedModel | PeftModel, training: TrainingArguments
) -> None:
    """Keep what is not trained in the precision that the options ask for, and say what that saves."""
    if training.frozen_dtype == "float32":
        return
    if is_sharded(accelerator):
        raise ValueError("--frozen_dtype is for models that every process holds whole: drop FSDP or DeepSpeed")
    saved = halve_frozen_weights(model)
    if saved == 0:
        raise ValueError("--frozen_dtype bfloat16: no tower is frozen, and trained weights stay in float32; drop it")
    inform(accelerator, f"frozen weights are kept in bfloat16, which saves {format_size(saved / 1e9)}")


def _report_equal_views(accelerator: Accelerator, model: PreTrainedModel | PeftModel, table: Dataset) -> None:
    """Warn of unsupervised sentences for a text tower without dropout, which is all by which their views differ.

    A process that will hold a shard of the model may not have its weights yet, so that nothing is measured there.
    """
    if is_sharded(accelerator) or not accelerator.is_main_process:
        return
    if len(SentenceDataset(table).views) == 1 and not has_two_views(model):
        logger.warning(
            "--sentences: the text tower has no dropout, so that the two views of a sentence are one vector, and the "
            "loss only moves sentences apart. Pass --paraphrases or --triplets, an adapter with --lora_dropout, or a "
            "tower with dropout (in --text_config, or in the config.json of --text_model)"
        )


def _check_whole(accelerator: Accelerator, lora: LoraArguments) -> None:
    if lora.lora_rank is not None and is_sharded(accelerator):
        raise ValueError("--lora_rank is for models that every process holds whole: drop FSDP or DeepSpeed")


def _pair_objective(
    contrastive: ContrastiveArguments, pairs: PairArguments, text_sub_batches: int
) -> CrossModalObjective:
    return CrossModalObjective(
        contrastive.objective,
        text_sub_batches=text_sub_batches,
        captions_per_item=pairs.captions_per_item,
        has_negative_texts=pairs.negative_text_column is not None,
        negative_text_weight=contrastive.negative_text_weight,
        **_weights_of(LOSSES[contrastive.objective], contrastive),
    )


def _sentence_objective(sentence: SentenceArguments, table: Dataset, text_sub_batches: int) -> SentenceObjective:
    """Return the objective of a table of sentences, pairs, triplets or paraphrases.

    Raises:
        ValueError: If a weight of hard negatives is given, and the table has none.
    """
    loss = SENTENCE_LOSSES[sentence.sentence_objective]
    weights = _weights_of(loss, sentence)
    useless = [name for name, weight in loss.weights.items() if weight.needs_triplets and weights.get(name)]
    if useless and not num_negatives(table):
        raise ValueError(f"--{useless[0]}: no row of the data has a hard negative; drop the option")
    return SentenceObjective(
        num_views=len(SentenceDataset(table).views),
        loss_type=sentence.sentence_objective,
        mlm_weight=sentence.mlm_weight,
        text_sub_batches=text_sub_batches,
        **weights,
    )


def _weights_of(loss: Loss | SentenceLoss, arguments: Any) -> dict[str, float]:
    """Return the weights of a loss that are options; a loss that was added later keeps the defaults of its entry."""
    return {name: getattr(arguments, name) for name in loss.weights if hasattr(arguments, name)}


def _with_matryoshka(objective: Objective, training: TrainingArguments) -> Objective:
    """Return the objective, at nested prefixes of the embeddings if the options ask for it."""
    dims = training.matryoshka_dims
    return objective if dims is None else MatryoshkaObjective(objective, dims)  # type: ignore[arg-type]

"""Language quality, cross-modal quality and geometry, by the field's exact protocols.

Each task function takes the least that it needs:

- `evaluate_sts`, `evaluate_transfer` and `evaluate_zero_shot` take an embedder, because their sets bring sentences,
  prompts and items;
- `evaluate_retrieval` and `evaluate_representation` are functions of embeddings; `embed_pairs` makes these from an
  embedder and a dataset of canonical columns.

All return a flat dictionary of numbers that goes into `results.json` as it is. Recalls, accuracies, mean average
precisions and correlations are in percent (0-100), ranks count from 1, geometry is in its own units. A headline
metric `m` comes with its bootstrap interval, `m_ci95_low` and `m_ci95_high`.
"""

from __future__ import annotations

from .._lazy import lazy_names

_NAMES = {
    "tasks": ("TASKS", "Task"),
    "tasks.context": ("Outcome", "TaskContext"),
    "sts": ("evaluate_sts", "load_sts"),
    "transfer": ("evaluate_transfer", "load_transfer"),
    "retrieval": ("evaluate_retrieval", "retrieval_ranks"),
    "zero_shot": ("evaluate_zero_shot", "class_embeddings"),
    "representation": ("evaluate_representation", "alignment", "uniformity", "modality_gap", "effective_rank"),
    "hubness": ("k_occurrence_skewness",),
    "compositionality": ("evaluate_compositionality", "evaluate_winoground"),
    "embed": ("EmbedOptions", "Embedder", "PairEmbeddings", "as_embedder", "embed_pairs"),
}

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
__all__ = __dir__()

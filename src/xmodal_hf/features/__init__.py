"""Pooled vectors of frozen towers: computed once per item, kept in memory-mapped files, read by training and search.

- `FeatureStore` reads a store;
- `extract` writes one, in any number of processes.
"""

from __future__ import annotations

from .._lazy import lazy_names

_NAMES = {
    "store": ("FeatureStore",),
    "manifest": ("FeatureError", "Manifest"),
    "extraction": ("ExtractionOptions", "extract"),
}

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
__all__ = __dir__()

"""Pooled vectors of frozen towers: computed once per item, kept in memory-mapped files, read by training and search.

- `FeatureStore` reads a store;
- `extract` writes one, in any number of processes.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "store": ("FeatureStore",),
    "manifest": ("FeatureError", "Manifest"),
    "extraction": ("ExtractionOptions", "extract"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Import the module that defines `name` on first use, so that importing this package costs nothing."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__

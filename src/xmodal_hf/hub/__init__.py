"""To the Hub and back: cards, published folders, sentence-transformers exports, adapters, Spaces.

Names are loaded when first used: the options of the scripts are here too, and answer without the client of the Hub.
"""

import importlib
from typing import TYPE_CHECKING, Any

_MODULE_OF = {
    "CardArguments": "arguments",
    "CardSources": "model_card",
    "HubError": "publish",
    "UnsafeFolderError": "safety",
    "check_folder": "safety",
    "export_sentence_transformers": "sentence_transformers",
    "load_adapted": "adapters",
    "push_folder": "publish",
    "render_card": "model_card",
    "stage_adapter": "adapters",
    "stage_checkpoint": "staging",
    "stage_metric": "metric_space",
    "stage_text_encoder": "staging",
}

if TYPE_CHECKING:
    from .adapters import load_adapted, stage_adapter
    from .arguments import CardArguments
    from .metric_space import stage_metric
    from .model_card import CardSources, render_card
    from .publish import HubError, push_folder
    from .safety import UnsafeFolderError, check_folder
    from .sentence_transformers import export_sentence_transformers
    from .staging import stage_checkpoint, stage_text_encoder

__all__ = [
    "CardArguments",
    "CardSources",
    "HubError",
    "UnsafeFolderError",
    "check_folder",
    "export_sentence_transformers",
    "load_adapted",
    "push_folder",
    "render_card",
    "stage_adapter",
    "stage_checkpoint",
    "stage_metric",
    "stage_text_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

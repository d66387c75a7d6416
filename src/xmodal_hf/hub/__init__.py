"""Upload to the Hub and loading from it: cards, published folders, sentence-transformers exports, adapters, Spaces.

Names are loaded when first used: the options of the scripts are here too, and answer without the client of the Hub.
"""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

_NAMES = {
    "adapters": ("load_adapted", "stage_adapter"),
    "arguments": ("CardArguments",),
    "metric_space": ("stage_metric",),
    "model_card": ("CardSources", "render_card"),
    "publish": ("HubError", "push_folder"),
    "safety": ("UnsafeFolderError", "check_folder"),
    "sentence_transformers": ("export_sentence_transformers",),
    "staging": ("stage_checkpoint", "stage_text_encoder"),
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

__getattr__, __dir__ = lazy_names(__name__, _NAMES)

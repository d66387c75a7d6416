"""Deprecated place of the search that a demo Space carries: import it from `xmodal_hf.hub.templates.space_search`."""

import warnings

from .templates.space_search import Demo, Hit, Item, read_clip, sound_features, titles

__all__ = ["Demo", "Hit", "Item", "read_clip", "sound_features", "titles"]

warnings.warn(
    "xmodal_hf.hub.space_search is deprecated since 0.1.0: import from xmodal_hf.hub.templates.space_search",
    FutureWarning,
    stacklevel=2,
)

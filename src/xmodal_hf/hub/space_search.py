"""Deprecated place of the search that a demo Space carries: import it from `xmodal_hf.hub.templates.space_search`."""

from .templates.space_search import Demo, Hit, Item, read_clip, sound_features, titles

__all__ = ["Demo", "Hit", "Item", "read_clip", "sound_features", "titles"]

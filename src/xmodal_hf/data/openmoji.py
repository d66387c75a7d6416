"""Deprecated place of the built-in pictures: import them from `xmodal_hf.data.builtin.openmoji`."""

from .builtin.openmoji import load_openmoji, openmoji_captions

__all__ = ["load_openmoji", "openmoji_captions"]

"""Deprecated place of the built-in pictures: import them from `xmodal_hf.data.builtin.openmoji`."""

import warnings

from .builtin.openmoji import load_openmoji, openmoji_captions

__all__ = ["load_openmoji", "openmoji_captions"]

warnings.warn(
    "xmodal_hf.data.openmoji is deprecated since 0.1.0: import from xmodal_hf.data.builtin.openmoji",
    FutureWarning,
    stacklevel=2,
)

"""Contrastive image-text and audio-text dual encoders whose language encoder is a sentence encoder too.

Public names are loaded when first used, so that `import xmodal_hf` costs no torch. The one effect of the import is
that transformers' Auto classes know the models, as soon as transformers is there.
"""

import importlib
from typing import TYPE_CHECKING, Any

from ._auto_classes import register_with_auto_classes

__version__ = "0.1.0"

_MODULE_OF = {
    "AudioTextConfig": "models.configuration_dual_encoder",
    "AudioTextDualEncoder": "models.modeling_dual_encoder",
    "AudioTextProcessor": "models.processing_dual_encoder",
    "ImageTextConfig": "models.configuration_dual_encoder",
    "ImageTextDualEncoder": "models.modeling_dual_encoder",
    "ImageTextProcessor": "models.processing_dual_encoder",
    "LogMelFeatureExtractor": "models.feature_extraction_log_mel",
    "SentenceEncoder": "models.modeling_sentence_encoder",
    "SentenceEncoderConfig": "models.configuration_sentence_encoder",
}

if TYPE_CHECKING:
    from .models.configuration_dual_encoder import AudioTextConfig, ImageTextConfig
    from .models.configuration_sentence_encoder import SentenceEncoderConfig
    from .models.feature_extraction_log_mel import LogMelFeatureExtractor
    from .models.modeling_dual_encoder import AudioTextDualEncoder, ImageTextDualEncoder
    from .models.modeling_sentence_encoder import SentenceEncoder
    from .models.processing_dual_encoder import AudioTextProcessor, ImageTextProcessor

__all__ = [
    "AudioTextConfig",
    "AudioTextDualEncoder",
    "AudioTextProcessor",
    "ImageTextConfig",
    "ImageTextDualEncoder",
    "ImageTextProcessor",
    "LogMelFeatureExtractor",
    "SentenceEncoder",
    "SentenceEncoderConfig",
    "__version__",
]

register_with_auto_classes()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)

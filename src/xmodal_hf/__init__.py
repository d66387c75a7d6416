"""Contrastive image-text and audio-text dual encoders whose language encoder is a sentence encoder too.

Public names are loaded when first used, so that `import xmodal_hf` costs no torch. The one effect of the import is
that transformers' Auto classes know the models, as soon as transformers is there.
"""

from typing import TYPE_CHECKING

from ._auto_classes import register_with_auto_classes
from ._lazy import lazy_names

__version__ = "0.1.0"

_NAMES = {
    "models.configuration_dual_encoder": ("AudioTextConfig", "ImageTextConfig"),
    "models.configuration_sentence_encoder": ("SentenceEncoderConfig",),
    "models.feature_extraction_log_mel": ("LogMelFeatureExtractor",),
    "models.modeling_dual_encoder": ("AudioTextDualEncoder", "ImageTextDualEncoder"),
    "models.modeling_sentence_encoder": ("SentenceEncoder",),
    "models.processing_dual_encoder": ("AudioTextProcessor", "ImageTextProcessor"),
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

__getattr__, _ = lazy_names(__name__, _NAMES)


def __dir__() -> list[str]:
    return sorted(__all__)

"""Processors: one object that turns texts with images, or texts with audio, into model inputs."""

from typing import Any

from transformers import BaseImageProcessor, BatchFeature, PreTrainedTokenizerBase, SequenceFeatureExtractor
from transformers.processing_utils import ProcessorMixin

from .hub_files import HubCardMixin
from .text_format import with_prefix


def without_call_options(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer without the options that some past call left in its saved file.

    A fast tokenizer saves the truncation and padding of its last call. Loaded again it cuts at `model_max_length` all
    the same, but a processor would take the saved length for the tokenizer's default, and hand `pad_to_multiple_of` to
    feature extractors too, which do not know it.
    """
    for option in ("max_length", "pad_to_multiple_of"):
        tokenizer.init_kwargs.pop(option, None)
    return tokenizer


def with_saved_settings(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """Return the image processor; timm's keeps what it was made from, without which it could not be loaded again."""
    if not hasattr(image_processor, "pretrained_cfg") and hasattr(image_processor, "data_config"):
        image_processor.pretrained_cfg = image_processor.data_config
    return image_processor


class _PrefixMixin(ProcessorMixin):
    """Puts the instruction that the tokenizer's file may have (`text_prefix`) before each text."""

    def __call__(
        self, images: Any = None, text: Any = None, videos: Any = None, audio: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Prepare texts, with their instruction, and images or sounds; arguments as `ProcessorMixin` has them.

        Raises:
            ValueError: If items are given for which the processor has no part; `ProcessorMixin` would leave them out.
        """
        parts = self.get_attributes()
        items = {"images": (images, "image_processor"), "audio": (audio, "feature_extractor"), "videos": (videos, "")}
        for name, (value, part) in items.items():
            if value is not None and part not in parts:
                raise ValueError(f"an {type(self).__name__} takes no {name}: drop them, or use another model")
        if text is not None:
            texts = with_prefix(self.tokenizer, [text] if isinstance(text, str) else text)
            text = texts[0] if isinstance(text, str) else texts
        return super().__call__(images, text, videos, audio, **kwargs)


class ImageTextProcessor(HubCardMixin, _PrefixMixin):
    r"""Processor of an [`ImageTextDualEncoder`], which wraps an image processor and a tokenizer.

    `processor(text=[...], images=[...], return_tensors="pt")` gives `input_ids`, `attention_mask` and
    `pixel_values` (B, C, height, width). Either may be left out. Texts are padded to the longest of the call and
    truncated to the tokenizer's `model_max_length` unless the call says otherwise.

    Args:
        image_processor: Any transformers image processor.
        tokenizer: Any transformers tokenizer.

    Example:
        >>> from PIL import Image
        >>> from transformers import ViTImageProcessor
        >>> from xmodal_hf import ImageTextProcessor
        >>> processor = ImageTextProcessor(ViTImageProcessor(size={"height": 32, "width": 32}), tokenizer)
        >>> batch = processor(text=["a dog", "rain"], images=[Image.new("RGB", (40, 50))], return_tensors="pt")
        >>> batch["pixel_values"].shape, len(batch["input_ids"])
        (torch.Size([1, 3, 32, 32]), 2)
    """

    text_kwargs = {"padding": True, "truncation": True}
    _card_modality = "image"

    def __init__(self, image_processor: BaseImageProcessor, tokenizer: PreTrainedTokenizerBase):
        super().__init__(with_saved_settings(image_processor), without_call_options(tokenizer))


class AudioTextProcessor(HubCardMixin, _PrefixMixin):
    r"""Processor of an [`AudioTextDualEncoder`], which wraps a feature extractor and a tokenizer.

    `processor(text=[...], audio=[...], sampling_rate=48000, return_tensors="pt")` gives `input_ids`,
    `attention_mask` and the extractor's features (`input_features`). Either may be left out.

    Args:
        feature_extractor: Any transformers audio feature extractor.
        tokenizer: Any transformers tokenizer.

    Example:
        >>> from xmodal_hf import AudioTextProcessor, LogMelFeatureExtractor
        >>> extractor = LogMelFeatureExtractor.from_preset("ast")
        >>> processor = AudioTextProcessor(extractor, tokenizer)
        >>> rate = extractor.sampling_rate
        >>> batch = processor(text=["rain"], audio=[np.zeros(rate)], sampling_rate=rate, return_tensors="pt")
        >>> len(batch["input_ids"]), len(batch["input_features"])
        (1, 1)
    """

    text_kwargs = {"padding": True, "truncation": True}
    _card_modality = "audio"

    def __init__(self, feature_extractor: SequenceFeatureExtractor, tokenizer: PreTrainedTokenizerBase):
        # Audio towers take no mask, and this one would replace that of the texts.
        feature_extractor.return_attention_mask = False
        super().__init__(feature_extractor, without_call_options(tokenizer))


__all__ = ["AudioTextProcessor", "ImageTextProcessor"]

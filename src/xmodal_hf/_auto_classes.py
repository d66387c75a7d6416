"""Registration with transformers' Auto classes, without importing transformers.

Each of our modules below registers its classes when its import has finished, and is imported when transformers has
imported the Auto class (at once, where that was before us). So `import xmodal_hf` stays free of torch, and
`AutoModel.from_pretrained` knows our models whichever package was imported first. Registration waits for our module
rather than for transformers', since importing our module may be what imported the Auto class: it is half done then.
"""

import importlib
from functools import partial
from types import ModuleType

from wrapt import register_post_import_hook

# Module of this package -> module of transformers whose Auto class has to know it.
_AUTO_MODULE_OF = {
    "configuration_aisfx": "configuration_auto",
    "configuration_dual_encoder": "configuration_auto",
    "configuration_sentence_encoder": "configuration_auto",
    "modeling_aisfx": "modeling_auto",
    "modeling_dual_encoder": "modeling_auto",
    "modeling_sentence_encoder": "modeling_auto",
    "processing_dual_encoder": "processing_auto",
    "feature_extraction_log_mel": "feature_extraction_auto",
}


def register_with_auto_classes() -> None:
    """Have every Auto class learn our classes as soon as it exists."""
    for name, auto_name in _AUTO_MODULE_OF.items():
        module = f"{__package__}.models.{name}"
        register_post_import_hook(_register, module)
        register_post_import_hook(partial(_import, module), _auto(auto_name))


def _import(name: str, _: ModuleType) -> None:
    importlib.import_module(name)


def _auto(name: str) -> str:
    return f"transformers.models.auto.{name}"


def _register(module: ModuleType) -> None:
    """Register the classes of one of our modules, and have their `save_pretrained` bring the code along.

    What is saved then loads with `trust_remote_code=True` where this package is not installed; where it is, the
    registered class wins.
    """
    name = module.__name__.rpartition(".")[2]
    auto = importlib.import_module(_auto(_AUTO_MODULE_OF[name]))
    if name.startswith("configuration"):
        for config in (getattr(module, public) for public in module.__all__):
            auto.AutoConfig.register(config.model_type, config, exist_ok=True)
            config.register_for_auto_class("AutoConfig")
    elif name == "modeling_aisfx":
        auto.AutoModel.register(module.AisfxConfig, module.AisfxModel, exist_ok=True)
        module.AisfxModel.register_for_auto_class("AutoModel")
    elif name == "modeling_sentence_encoder":
        auto.AutoModel.register(module.SentenceEncoderConfig, module.SentenceEncoder, exist_ok=True)
        module.SentenceEncoder.register_for_auto_class("AutoModel")
    elif name == "modeling_dual_encoder":
        auto.AutoModel.register(module.ImageTextConfig, module.ImageTextDualEncoder, exist_ok=True)
        auto.AutoModel.register(module.AudioTextConfig, module.AudioTextDualEncoder, exist_ok=True)
        zero_shot = auto.AutoModelForZeroShotImageClassification
        zero_shot.register(module.ImageTextConfig, module.ImageTextDualEncoder, exist_ok=True)
        for model in (module.ImageTextDualEncoder, module.AudioTextDualEncoder):
            model.register_for_auto_class("AutoModel")
    elif name == "processing_dual_encoder":
        configurations = importlib.import_module(f"{__package__}.models.configuration_dual_encoder")
        auto.AutoProcessor.register(configurations.ImageTextConfig, module.ImageTextProcessor, exist_ok=True)
        auto.AutoProcessor.register(configurations.AudioTextConfig, module.AudioTextProcessor, exist_ok=True)
        for processor in (module.ImageTextProcessor, module.AudioTextProcessor):
            processor.register_for_auto_class("AutoProcessor")
    else:
        configurations = importlib.import_module(f"{__package__}.models.configuration_dual_encoder")
        extractor = module.LogMelFeatureExtractor
        for config in (configurations.AudioTextConfig, configurations.AisfxConfig):
            auto.AutoFeatureExtractor.register(config, extractor, exist_ok=True)
        extractor.register_for_auto_class("AutoFeatureExtractor")

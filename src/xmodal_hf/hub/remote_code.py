"""The code that a published checkpoint carries, so that transformers runs it without this package.

`save_pretrained` writes the same by itself; here, checkpoints of earlier versions get it too, and what is published has
the code of the installed version. No torch here: a folder is made ready to publish in a fraction of a second.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

MODELS_FOLDER = Path(__file__).parents[1] / "models"
CONFIG_NAME = "config.json"
PROCESSOR_CONFIG_NAME = "processor_config.json"
_ADAPTER_CONFIG_NAME = "adapter_config.json"

_CONFIGS = "configuration_dual_encoder"
_MODELS = "modeling_dual_encoder"
_PROCESSORS = "processing_dual_encoder"
_FEATURE_EXTRACTOR = "LogMelFeatureExtractor"
# Model type -> Auto class -> address of the class of this package.
AUTO_MAPS = {
    "xmodal_image_text": {
        "AutoConfig": f"{_CONFIGS}.ImageTextConfig",
        "AutoModel": f"{_MODELS}.ImageTextDualEncoder",
        "AutoModelForZeroShotImageClassification": f"{_MODELS}.ImageTextDualEncoder",
        "AutoProcessor": f"{_PROCESSORS}.ImageTextProcessor",
    },
    "xmodal_audio_text": {
        "AutoConfig": f"{_CONFIGS}.AudioTextConfig",
        "AutoModel": f"{_MODELS}.AudioTextDualEncoder",
        "AutoProcessor": f"{_PROCESSORS}.AudioTextProcessor",
    },
    "xmodal_sentence_encoder": {
        "AutoConfig": "configuration_sentence_encoder.SentenceEncoderConfig",
        "AutoModel": "modeling_sentence_encoder.SentenceEncoder",
    },
}
_EXTRACTOR_MAP = {"AutoFeatureExtractor": f"feature_extraction_log_mel.{_FEATURE_EXTRACTOR}"}
# Model type of the tower whose code a published checkpoint carries.
_OWN_TOWER = "aisfx"
# Model type of a tower -> package that runs it, which transformers does not install, with the range of setup.py.
_TOWER_PACKAGES = {"timm_wrapper": ("timm", ">=1")}


def read_json(path: Path) -> Any:
    """Read a JSON file of a checkpoint.

    Raises:
        ValueError: If the file is missing or is not JSON; the message names it.
    """
    if not path.is_file():
        raise ValueError(f"{path.parent} has no {path.name}: pass a folder that save_pretrained wrote")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def read_model_type(folder: Path) -> str:
    """Return the model type of a checkpoint.

    Raises:
        ValueError: If the model type belongs to another package, or the folder holds an adapter.
    """
    if (folder / _ADAPTER_CONFIG_NAME).is_file() and not (folder / CONFIG_NAME).is_file():
        raise ValueError(
            f"{folder} is an adapter, and a whole model is needed: train with --lora_merge, or merge an adapter of two "
            "towers with convert_checkpoint.py"
        )
    model_type = read_json(folder / CONFIG_NAME).get("model_type")
    if model_type not in AUTO_MAPS:
        raise ValueError(
            f"{folder / CONFIG_NAME} is of model type {model_type!r}: pass a checkpoint of {', '.join(AUTO_MAPS)}, or "
            "convert it with training_scripts/convert_checkpoint.py"
        )
    return model_type


def tower_packages(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the packages that run the towers of a model and that transformers does not install, with their versions.

    Args:
        config: Content of the config.json of a dual encoder or a sentence encoder.

    Example:
        >>> tower_packages({"text_config": {"model_type": "bert"}, "image_config": {"model_type": "timm_wrapper"}})
        {'timm': '>=1'}
    """
    towers = (tower for name, tower in config.items() if name.endswith("_config") and isinstance(tower, dict))
    types = (tower.get("model_type") for tower in towers)
    return dict(_TOWER_PACKAGES[type_] for type_ in types if type_ in _TOWER_PACKAGES)


def foreign_towers(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the towers whose classes neither transformers nor the code of a published checkpoint has.

    Args:
        config: Content of the config.json of a dual encoder or a sentence encoder.

    Returns:
        Dictionary of tower to model type.

    Example:
        >>> foreign_towers({"text_config": {"model_type": "words"}, "image_config": {"model_type": "vit"}})
        {'text': 'words'}
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    types = {
        name.removesuffix("_config"): str(tower.get("model_type"))
        for name, tower in config.items()
        if name.endswith("_config") and isinstance(tower, dict)
    }
    return {name: type_ for name, type_ in types.items() if type_ not in CONFIG_MAPPING_NAMES | {_OWN_TOWER: ""}}


def write_remote_code(folder: Path) -> list[Path]:
    """Put the code that a checkpoint needs into its folder and name it in the configs.

    Returns:
        List of the Python files that were written.

    Raises:
        ValueError: If the folder holds no checkpoint of this package.
    """
    auto_map = AUTO_MAPS[read_model_type(folder)]
    _add_auto_map(folder / CONFIG_NAME, auto_map)
    targets = set(auto_map.values())
    if (folder / PROCESSOR_CONFIG_NAME).is_file():
        extractor = read_json(folder / PROCESSOR_CONFIG_NAME).get("feature_extractor", {})
        has_ours = extractor.get("feature_extractor_type") == _FEATURE_EXTRACTOR
        extractor_map = _EXTRACTOR_MAP if has_ours else {}
        _add_auto_map(folder / PROCESSOR_CONFIG_NAME, {"AutoProcessor": auto_map["AutoProcessor"]}, extractor_map)
        targets |= set(extractor_map.values())
    modules = required_modules({target.partition(".")[0] for target in targets})
    return [Path(shutil.copyfile(MODELS_FOLDER / f"{name}.py", folder / f"{name}.py")) for name in sorted(modules)]


def required_modules(names: set[str]) -> set[str]:
    """Return the modules of `models/` that some of them import, directly or not, and themselves."""
    files = [MODELS_FOLDER / f"{name}.py" for name in names]
    imported = [Path(file) for path in files for file in get_relative_import_files(path)]
    return {path.stem for path in (*files, *imported)}


def _add_auto_map(path: Path, auto_map: dict[str, str], extractor_map: dict[str, str] | None = None) -> None:
    """Write the map into a config, and another one into the feature extractor's part of a processor's."""
    config = read_json(path)
    config["auto_map"] = auto_map
    if extractor_map:
        config["feature_extractor"]["auto_map"] = extractor_map
    # These are the settings with which transformers writes JSON.
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")

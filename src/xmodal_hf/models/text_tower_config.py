"""Shared parts of the configs. It does not import transformers, which would import the incomplete configs."""

from typing import Any

# Model types of towers that read the last of a fixed number of positions (Zhai et al. 2023), and were trained without a
# mask.
FIXED_LENGTH_TOWERS = ("siglip_text_model", "siglip2_text_model")


class TextTowerConfigMixin:
    """Shared methods of the configs of models with a text tower."""

    model_type: str
    sub_configs_defaults: dict[str, Any]
    text_config: Any

    @property
    def max_position_embeddings(self) -> int:
        """The text tower's: sentence-transformers cuts texts there."""
        return self.text_config.max_position_embeddings

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build from a dictionary as `config.json` holds it.

        Raises:
            ValueError: If the dictionary is of another model type or describes other towers, where transformers itself
                warns and goes on with random weights.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"this config.json is of model type {found!r}, {cls.__name__} reads {cls.model_type!r}: load it "
                "with AutoModel, or convert the checkpoint first"
            )
        missing = [name for name in cls.sub_configs_defaults if config_dict.get(name) is None]
        if missing:
            raise ValueError(f"this config.json, of model type {found!r}, has no {missing[0]}: it is damaged or forged")
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the fields that are saved.

        The places that the towers were loaded from are left out, as transformers leaves out that of a model: they may
        be folders of one machine.
        """
        fields = super().to_diff_dict()  # type: ignore[misc]
        for value in fields.values():
            if isinstance(value, dict):
                value.pop("_name_or_path", None)
        return fields

"""Files that a saved model or processor has for the Hub: a model card, and the name of every Auto class.

The code itself is copied by transformers, for classes that are registered with `register_for_auto_class`.
"""

import json
import os
import re
from pathlib import Path
from typing import Any

CARD_NAME = "README.md"
# A sentence of the card that transformers' `push_to_hub` writes where a repository has none.
_AUTOMATIC = "This model card has been automatically generated"
_LINK = (
    "Saved with `xmodal_hf`, whose `publish_model.py` writes a card with the training and the results in this place."
)
_PIPELINE_TAGS = {"image": "zero-shot-image-classification", "audio": "feature-extraction", None: "sentence-similarity"}
_TAGS = {"image": ["clip"], "audio": ["clap", "audio"], None: ["sentence-transformers"]}
_TITLES = {"image": "Image-text dual encoder", "audio": "Audio-text dual encoder", None: "Sentence encoder"}
# Title of the template of cards of huggingface_hub, as long as nobody has filled it in.
_EMPTY_TITLE = "Model Card for Model ID"
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
# Blocks of code, whose comments look like headings, and pictures, which lie in the folder of the card.
_CODE_BLOCK = re.compile(r"^(```|~~~).*?(^\1|\Z)", re.DOTALL | re.MULTILINE)
_PICTURE = re.compile(r"!\[[^\]]*\]\([^)]*\)|<[^>]*>")
_HEADING = re.compile(r"^# (.+)$", re.MULTILINE)
_SUMMARIES = {
    "image": "It embeds texts and images as unit-norm vectors in one space, where cosine similarity compares them.",
    "audio": "It embeds texts and sounds as unit-norm vectors in one space, where cosine similarity compares them.",
    None: "It embeds texts as unit-norm vectors, which cosine similarity compares.",
}
_DUAL_CODE = """from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{repo_id}", trust_remote_code=True)
inputs = processor(text=["A man plays the guitar."], return_tensors="pt")
print(model(**inputs).text_embeds.shape)"""
_SENTENCE_CODE = """from transformers import AutoModel

model = AutoModel.from_pretrained("{repo_id}", trust_remote_code=True)
print(model.encode(["A man plays the guitar."]).shape)"""


def render_short_card(modality: str | None, repo_id: str, tags: list[str]) -> str:
    """Return a model card that says what a model is and how to load it, and nothing about its training.

    Args:
        modality: Modality: `image`, `audio`, or None for a sentence encoder.
        repo_id: Hub id of the model, or its folder.
        tags: Further tags of the metadata.
    """
    names = dict.fromkeys(["xmodal_hf", "custom_code", *_TAGS[modality], *tags])
    listed = "".join(f"- {json.dumps(name)}\n" for name in names)
    front = f"library_name: transformers\npipeline_tag: {_PIPELINE_TAGS[modality]}\ntags:\n{listed}"
    code = (_SENTENCE_CODE if modality is None else _DUAL_CODE).format(repo_id=repo_id)
    return (
        f"---\n{front}---\n\n# {_TITLES[modality]}\n\n{_SUMMARIES[modality]}\n\n```python\n{code}\n```\n\n"
        f"`trust_remote_code=True` runs the Python files of this repository. {_LINK}\n"
    )


def card_title(folder: str | os.PathLike) -> str | None:
    """Return the title of the model card in a folder, None where there is no card or its title names no model.

    Args:
        folder: Folder of a model.

    Example:
        >>> Path("tower").mkdir()
        >>> _ = Path("tower", "README.md").write_text("---\\nlicense: mit\\n---\\n\\n# all-MiniLM-L6-v2\\n")
        >>> card_title("tower")
        'all-MiniLM-L6-v2'
    """
    path = Path(folder) / CARD_NAME
    if not path.is_file():
        return None
    text = _FRONT_MATTER.sub("", path.read_text(encoding="utf-8", errors="replace"))
    found = _HEADING.search(_CODE_BLOCK.sub("", text))
    title = _PICTURE.sub("", found.group(1)).strip() if found else ""
    return title if title and title not in (*_TITLES.values(), _EMPTY_TITLE) else None


class HubCardMixin:
    """Mixin of models and processors: `push_to_hub` writes a card of this package in place of the general one.

    A card that somebody wrote, in the repository or in the folder, stays as it is.
    """

    # `image`, `audio`, or None for texts alone.
    _card_modality: str | None = None

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """Upload what was saved; the last step of `push_to_hub` and of `save_pretrained(push_to_hub=True)`."""
        self._write_hub_files(Path(working_dir))
        path = Path(working_dir) / CARD_NAME
        if path.is_file() and _AUTOMATIC in path.read_text(encoding="utf-8"):
            path.write_text(render_short_card(self._card_modality, repo_id, _tags_of(path)), encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)  # type: ignore[misc]

    def _write_hub_files(self, folder: Path) -> None:
        """Write further files that belong to the saved object."""


class HubModelMixin(HubCardMixin):
    """Mixin of models: `save_pretrained` names every Auto class that loads the model, and adds a missing card."""

    # Auto classes that load the model, beside the one that it is registered for.
    _further_auto_classes: tuple[str, ...] = ()

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save, as every transformers model does, with the code and the files that the folder needs on the Hub.

        The folder loads with `AutoModel.from_pretrained(..., trust_remote_code=True)` where `xmodal_hf` is not
        installed. A README.md that is there is not overwritten.
        """
        module = type(self).__module__.rpartition(".")[2]
        config = self.config  # type: ignore[attr-defined]
        for name in self._further_auto_classes:
            config.auto_map = {**(getattr(config, "auto_map", None) or {}), name: f"{module}.{type(self).__name__}"}
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if kwargs.get("is_main_process", True):
            self._write_hub_files(Path(save_directory))
            path = Path(save_directory) / CARD_NAME
            if not path.exists():
                path.write_text(render_short_card(self._card_modality, "user/name", []), encoding="utf-8")


def _tags_of(card: Path) -> list[str]:
    """Return the tags in the metadata of a card."""
    from huggingface_hub import ModelCard

    return ModelCard.load(card).data.tags or []

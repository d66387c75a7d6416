"""The folder that is published of a checkpoint: its files, a card, and the code that runs them."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from safetensors import SafetensorError

from ..data.modalities import MODALITIES
from ..models.sentence_transformers_files import write_json, write_sentence_transformers_files
from ..models.text_tower_config import FIXED_LENGTH_TOWERS
from .arguments import CardArguments
from .card_results import RESULTS_NAME
from .card_training import RUN_NAMES
from .model_card import CARD_NAME, PHASE1_FOLDER, CardSources, render_card
from .remote_code import CONFIG_NAME, foreign_towers, read_json, read_model_type, write_remote_code
from .safety import UnsafeFolderError, check_folder, is_pickle, without_local_paths

logger = logging.getLogger(__name__)

# Files of a checkpoint's folder that are published. Other files (logs, training states, descriptions of jobs, notes)
# are not published unless a pattern of `include` names them.
_PUBLISHED = re.compile(
    r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json|(generation_)?config\.json"
    r"|(pre)?processor_config\.json|(image_|video_)?(pre)?processor_config\.json"
    # Files of tokenizers, of all kinds that transformers has.
    r"|(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|tekken|normalizer)\.json|merges\.txt"
    r"|(vocab|spm_vocab)\.(txt|model|bpe|json)|(tokenizer|spiece|spm|sentencepiece|sentencepiece\.bpe|sp)\.model"
    r"|(source|target)\.spm|bpe\.codes|chat_template\.(jinja|json)|results\.json"
)
# JSON files that programs read unchanged; in other texts, absolute paths are shortened to their last part.
_KEPT_AS_IT_IS = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json"})
_TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
# Model type -> modality -> the method that returns its vector.
_VECTOR_METHODS = {
    **{
        spec.model_type: {"text": "get_text_features", name: f"get_{name}_features"}
        for name, spec in MODALITIES.items()
    },
    "xmodal_sentence_encoder": {"text": "forward"},
}


def stage_checkpoint(
    checkpoint: Path, folder: Path, repo_id: str, card: CardArguments, include: Sequence[str] = ()
) -> Path:
    """Fill a new folder with what is published of a checkpoint, which itself is only read.

    Files are chosen by their names: weights, configs, tokenizer, processor, recipe, summary, results and plots. Weights
    are linked where the file system can, else copied. In JSON and YAML, absolute paths become their last part.

    Args:
        checkpoint: Folder that `save_pretrained` or a training script wrote.
        folder: Folder that is made; it may exist if it is empty.
        repo_id: Hub id that the card tells people to load.
        card: Facts for the card that the files do not hold.
        include: Patterns (`onnx/*`) of further files of the checkpoint that are published.

    Raises:
        ValueError: If the folder is not empty, a pattern matches nothing, or the source is no checkpoint of this
            package with weights in safetensors.
        UnsafeFolderError: If the folder holds a pickle, a link that leaves it, or an access token.
        OSError: If the disk is full. The files that were written are removed.
    """
    model_type = read_model_type(checkpoint)
    if not any(checkpoint.glob("*.safetensors")):
        raise ValueError(f"{checkpoint} has no model.safetensors: pass a folder that save_pretrained wrote")
    sources = CardSources.find(checkpoint, card)
    for tower, type_ in foreign_towers(sources.config).items():
        logger.warning(
            "The %s tower is a %r, a class that transformers does not have: others can load the model only in programs "
            "that import this class and register it with AutoConfig and AutoModel.",
            *(tower, type_),
        )
    with new_folder(folder):
        _copy_files(checkpoint, folder, include)
        copy_run(checkpoint, folder)
        for path in sources.plots:
            _copy(path, folder / path.name)
        if sources.results_folder != checkpoint and sources.results:
            copy_text(sources.results_folder / RESULTS_NAME, folder / RESULTS_NAME)
        if sources.phase1_folder is not None:
            copy_run(sources.phase1_folder, folder / PHASE1_FOLDER)
        _prepare_for_readers(folder, model_type)
        (folder / CARD_NAME).write_text(render_card(sources, repo_id, card), encoding="utf-8")
        check_folder(folder, repo_id)
    return folder


def stage_text_encoder(
    checkpoint: Path, folder: Path, repo_id: str, card: CardArguments, truncate_dim: int | None = None
) -> Path:
    """Fill a new folder with the language encoder of a checkpoint alone, which needs no code of this package.

    Args:
        checkpoint: Folder of a sentence encoder or dual encoder with its tokenizer.
        folder: Folder that is made; it may exist if it is empty.
        repo_id: Hub id that the card tells people to load.
        card: Facts for the card that the files do not hold.
        truncate_dim: Number of leading dimensions that are kept. If None, all.

    Raises:
        ValueError: For the same reasons as `stage_checkpoint` and `export_sentence_transformers`.
        OSError: If the disk is full. The files that were written are removed.
    """
    from transformers import AutoModel, AutoTokenizer

    from .sentence_transformers import export_sentence_transformers

    sources = CardSources.find(checkpoint, card).of_text_encoder()
    with new_folder(folder):
        model = AutoModel.from_pretrained(checkpoint)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, config=model.config.text_config)
        export_sentence_transformers(model, tokenizer, folder, truncate_dim=truncate_dim)
        (folder / CARD_NAME).write_text(render_card(sources, repo_id, card), encoding="utf-8")
        check_folder(folder, repo_id)
    return folder


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Make a folder for what is written within; where that fails, the folder is removed, so that a repeat can succeed.

    Raises:
        ValueError: If the folder is not empty: nobody's files are overwritten or published by accident.
        OSError: If the disk is full.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: remove it, or pass another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder)
        if _says_disk_is_full(error):
            raise OSError(
                f"no space left for {folder}: free some, or pass --output_dir on another disk; nothing else was touched"
            ) from error
        raise


def _says_disk_is_full(error: BaseException) -> bool:
    # safetensors' own error has no number, only the words of the system.
    is_weights = isinstance(error, SafetensorError) and os.strerror(errno.ENOSPC) in str(error)
    return is_weights or (isinstance(error, OSError) and error.errno == errno.ENOSPC)


def files_left_out(checkpoint: Path, folder: Path) -> list[str]:
    """Return the names of files at the root of a checkpoint that a staged folder does not have."""
    staged = {path.name for path in folder.iterdir()}
    return sorted(path.name for path in checkpoint.iterdir() if path.is_file() and path.name not in staged)


def _copy_files(checkpoint: Path, folder: Path, include: Sequence[str]) -> None:
    for path in sorted(checkpoint.iterdir()):
        if not path.is_file():
            continue
        if is_pickle(path):
            raise UnsafeFolderError(
                f"{path.name} is a pickle, which runs code when it is read: remove it from {checkpoint}, or save the "
                "model again with save_pretrained, which writes safetensors"
            )
        if not path.resolve().is_relative_to(checkpoint.resolve()):
            raise UnsafeFolderError(
                f"{path.name} links to {path.resolve()}, outside {checkpoint}: copy the file instead"
            )
        if _PUBLISHED.fullmatch(path.name):
            _copy(path, folder / path.name)
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    for pattern in include:
        found = [path for path in files if fnmatchcase(path.relative_to(checkpoint).as_posix(), pattern)]
        if not found:
            raise ValueError(f"--include {pattern} matches no file of {checkpoint}")
        for path in found:
            target = folder / path.relative_to(checkpoint)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copyfile(path, target)


def copy_run(source: Path, folder: Path) -> None:
    """Copy what tells how a training went, without the paths of this machine: of absolute ones the last part stays."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in RUN_NAMES:
        if (source / name).is_file():
            copy_text(source / name, folder / name)


def copy_text(source: Path, target: Path) -> None:
    """Copy JSON or YAML without the paths of this machine: of absolute ones the last part stays."""
    target.write_text(without_local_paths(source.read_text(encoding="utf-8")), encoding="utf-8")


def copy_card_sources(checkpoint: Path, folder: Path, shown: Iterable[Path], phase1: Path | None = None) -> None:
    """Copy what a card is rendered from without the weights, for a repository of cards.

    Args:
        checkpoint: Folder of the checkpoint.
        folder: Folder that is made; files of the same names are replaced.
        shown: Paths of results.json and of the pictures.
        phase1: Output folder of phase 1, if there was one.
    """
    copy_run(checkpoint, folder)
    if phase1 is not None:
        copy_run(phase1, folder / PHASE1_FOLDER)
    for path in (*shown, checkpoint / CONFIG_NAME, checkpoint / _TOKENIZER_CONFIG_NAME):
        shutil.copyfile(path, folder / path.name)


def _copy(source: Path, target: Path) -> None:
    """Copy a file. Weights get a second name instead, where that can be: nothing here writes to them."""
    if source.suffix == ".json" and source.name not in _KEPT_AS_IT_IS:
        copy_text(source, target)
        return
    if source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # the folder is on another file system, or on one without links
            pass
    shutil.copyfile(source, target)


def _prepare_for_readers(folder: Path, model_type: str) -> None:
    """Add what transformers without this package, and sentence-transformers, load the folder by."""
    write_remote_code(folder)
    tokenizer_config = folder / _TOKENIZER_CONFIG_NAME
    has_tokenizer = tokenizer_config.is_file()
    tower_type = read_json(folder / CONFIG_NAME)["text_config"].get("model_type")
    fixed = tower_type in FIXED_LENGTH_TOWERS
    pads = fixed or (has_tokenizer and read_json(tokenizer_config).get("padding") == "max_length")
    methods = _VECTOR_METHODS[model_type]
    prefix = read_json(tokenizer_config).get("text_prefix", "") if has_tokenizer else ""
    write_sentence_transformers_files(folder, methods, pads_to_max_length=pads, with_mask=not fixed, prefix=prefix)
    if model_type == "xmodal_sentence_encoder" and has_tokenizer:
        # A tokenizer that belonged to a processor names it, and AutoProcessor would look for that processor here.
        names = ("processor_class", "auto_map")
        write_json(tokenizer_config, {k: v for k, v in read_json(tokenizer_config).items() if k not in names})

"""The blocks of the documentation: each says what runs it, and those that name this file run here.

Above a block of commands or Python stands `<!-- tested: FILE -->` or, where it needs what tests do not have, `<!--
needs: hub -->`, `index` (a package index), `gpu` or `data` (a large data set). The blocks of a page that name this
file run from top to bottom, in one process and one folder, where each finds what those above it made. What a page
takes as given lies there too: small data, tiny models in folders of the names that they have on the Hub, and the
outputs of other pages. The options of a command are followed by those that make it short.
"""

import ast
import copy
import csv
import gzip
import importlib
import itertools
import json
import re
import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import transformers
import yaml
from datasets import Dataset
from PIL import Image

from xmodal_hf import (
    ImageTextConfig,
    ImageTextDualEncoder,
    ImageTextProcessor,
    SentenceEncoder,
    SentenceEncoderConfig,
    cli,
)
from xmodal_hf.commands import CommandParser
from xmodal_hf.data.builtin.openmoji import load_openmoji
from xmodal_hf.shipped import BUILT_IN, SCRIPTS, find_recipe

ROOT = Path(__file__).parents[1]
THIS = Path(__file__).relative_to(ROOT).as_posix()
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", SCRIPTS / "README.md"]
PAGES = [page for page in PAGES if "_build" not in page.parts]
# tests/test_extend.py runs every block of that page.
MARKED = [page for page in PAGES if page.name != "extend.md"]
NEEDS = ("hub", "index", "gpu", "data")
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (tested|needs): (\S+) -->\n$")
# How a command names one of our scripts.
SCRIPT = re.compile(r"(?:^|/|\.)(\w+?)(?:\.py)?$")
MODULE_OF = {name: script.module for name, script in cli.SCRIPT_OF.items()}

TRAININGS = ("train_sentence_embedding", "train_contrastive")
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
# Options that follow those of a page: for every command of a script, and for what the command or its recipe sets.
SHORT = {
    **{name: {"max_steps": 2, "batch_size": 4, "report_to": "none", "mixed_precision": "no"} for name in TRAININGS},
    "evaluate_model": {"num_resamples": 20, "device": "cpu"},
    "search": {"device": "cpu"},
}
SMALLER = {"micro_batch_size": 2, "sentence_batch_size": 4, "eval_steps": 1, "checkpoint_steps": 1}
# Towers that a command would build from scratch.
FROM_SCRATCH = {
    "text": {"text_config": json.dumps(TINY | {"model_type": "bert"}), "vocab_size": 300},
    "image": {"image_config": json.dumps(TINY | {"model_type": "vit", "patch_size": 8}), "image_size": 16},
    "audio": {"audio_config": json.dumps(TINY | {"model_type": "audio-spectrogram-transformer"})},
}

COLOURS, THINGS = ("red", "green"), ("apple", "table", "dog", "cat", "car", "piano", "tree", "note")
CAPTIONS = [f"a {colour} {thing}" for thing in THINGS for colour in COLOURS]
# Pages that take long.
LONG = {
    *("docs/embed_once.md", "docs/evaluation.md", "docs/quickstart.md", "docs/reference/losses.md", "docs/towers.md"),
    "docs/tutorials/evaluate_and_compare.md",
}
POSITIONS = 64  # more than any page asks for
NAMES = [f"{letter}.jpg" for letter in "abcdefghijklmnop"]
STS_TABLES = ("sts12", "sts13", "sts14", "sts15", "sts16", "stsb-test", "sickr")


class Block(NamedTuple):
    """Code of a page, the number of lines above it, and its mark."""

    language: str
    code: str
    line: int
    mark: tuple[str, str] | None


class Command(NamedTuple):
    """A module of the training scripts, and its options."""

    module: str
    args: list[str]


class ParsedError(Exception):
    """The options of a command were read."""


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for block in BLOCK.finditer(text):
        mark = MARK.search(text[: block.start()])
        found.append(Block(*block.groups(), text[: block.start()].count("\n") + 1, mark.groups() if mark else None))
    return found


def lines_of(code: str) -> list[str]:
    """The command lines of a block."""
    return [line for line in code.replace("\\\n", " ").splitlines() if line.strip()]


def command_in(line: str) -> Command | None:
    """The command of ours in a line, whatever launches it; None in a line without one."""
    tokens = shlex.split(re.sub(r"\$\([^)]*\)", "x", line), comments=True)
    for position, token in enumerate(tokens):
        if token == "xmodal-hf" and tokens[position + 1] in MODULE_OF:
            return Command(MODULE_OF[tokens[position + 1]], tokens[position + 2 :])
        name = SCRIPT.search(token)
        if name and name[1] in MODULE_OF.values() and "training_scripts" in token:
            return Command(name[1], tokens[position + 1 :])
    return None


def commands_of(page: Path) -> list[Command]:
    lines = [line for block in blocks_of(page) if block.language == "sh" for line in lines_of(block.code)]
    return [command for command in map(command_in, lines) if command is not None]


CASES = [
    pytest.param(command, id=f"{page.relative_to(ROOT)}:{command.module}-{number}")
    for page in PAGES
    for number, command in enumerate(commands_of(page))
]
RUN = [page for page in MARKED if any(block.mark == ("tested", THIS) for block in blocks_of(page))]


@pytest.mark.parametrize("command", CASES)
def test_commands_parse(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each option of each command exists and takes such a value; shipped recipes have the names that are used."""
    read: Callable[..., Any] = CommandParser.parse_args

    def parse(parser: CommandParser, args: Any = None, namespace: Any = None) -> Any:
        options = read(parser, args, namespace)
        if getattr(options, "recipe", None) is not None and not str(options.recipe).endswith(".yaml"):
            assert find_recipe(options.recipe).is_file()
        raise ParsedError

    monkeypatch.setattr(CommandParser, "parse_args", parse)
    with pytest.raises(ParsedError):
        importlib.import_module(f"xmodal_hf.training_scripts.{command.module}").main(command.args)


def test_there_are_commands() -> None:
    assert len(CASES) > 40 and len(RUN) > 10


@pytest.mark.parametrize("page", MARKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_each_block_says_what_runs_it(page: Path) -> None:
    for block in blocks_of(page):
        assert block.mark, f"no mark above: {block.code[:80]}"
        kind, value = block.mark
        assert (ROOT / value).is_file() if kind == "tested" else value in NEEDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_imports_what_exists(page: Path) -> None:
    for block in blocks_of(page):
        for node in ast.walk(ast.parse(block.code)) if block.language == "python" else ():
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xmodal_hf"):
                if node.module == "xmodal_hf.evaluation.mteb":  # an extra
                    continue
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def shortened(command: Command) -> list[str]:
    """The options of a command of a page, and then those that make it short."""
    named = {arg.removeprefix("--"): value for arg, value in itertools.zip_longest(command.args, command.args[1:])}
    if "recipe" in named:
        named = yaml.safe_load(find_recipe(named["recipe"]).read_text(encoding="utf-8")) | named
    added: dict[str, Any] = dict(SHORT.get(command.module, {}))
    if command.module in TRAININGS:
        added |= {name: value for name, value in SMALLER.items() if name in named}
        sides = ["text"] if command.module == TRAININGS[0] else ["text", named.get("modality", "image")]
        for side in sides:
            added |= {} if {"model", f"{side}_model"} & named.keys() else FROM_SCRATCH[side]
    return [*command.args, *(str(part) for name, value in added.items() for part in (f"--{name}", value))]


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, rows))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)
    else:
        path.write_text(text, encoding="utf-8")


def draw(number: int, folder: Path) -> str:
    """Save a picture of a colour of its own; return its name."""
    Image.new("RGB", (20, 16), (number * 15, 255 - number * 15, 90)).save(folder / NAMES[number])
    return NAMES[number]


def sing(number: int, folder: Path) -> str:
    """Save a tone of a height of its own, a second long; return its name."""
    soundfile.write(folder / f"{number}.wav", 0.5 * np.sin(np.arange(8000) * (number + 1) / 30), 8000)
    return f"{number}.wav"


def write_pictures(folder: Path) -> None:
    """Everything of pictures that a page names."""
    for name in ("pictures", "val2017"):
        (folder / name).mkdir()
    rows = [{"image": draw(number, folder), "caption": caption} for number, caption in enumerate(CAPTIONS)]
    write_rows(folder / "pairs.jsonl", rows)
    write_rows(folder / "held_out.jsonl", rows[:8])
    table = [
        {
            "file_name": draw(number, folder / "pictures"),
            "text": caption,
            "split": "validation" if number % 2 else "train",
        }
        for number, caption in enumerate(CAPTIONS)
    ]
    write_rows(folder / "pictures" / "metadata.csv", table)
    shutil.copytree(folder / "pictures", folder / "my_pictures")
    Image.new("RGB", (40, 30), "red").save(folder / "photo.jpg")
    tests = [
        {"filename": draw(number, folder / "val2017"), "caption": CAPTIONS[number], "negative_caption": "rain"}
        for number in range(4)
    ]
    (folder / "data" / "sugarcrepe").mkdir(parents=True)
    (folder / "data" / "sugarcrepe" / "swap_att.json").write_text(json.dumps(dict(enumerate(tests))))


def write_sounds(folder: Path) -> None:
    (folder / "sounds").mkdir()
    rows = [{"file_name": sing(number, folder / "sounds"), "text": text} for number, text in enumerate(CAPTIONS[:8])]
    write_rows(folder / "sounds" / "metadata.csv", rows)


def write_archives(folder: Path) -> None:
    """Tables beside a zip of their files."""
    tables = {
        "flickr8k/captions": ("captions", draw),
        "esc10/clips": ("freesound_title", sing),
        "fsdd/clips": ("word", sing),
    }
    for name, (column, make) in tables.items():
        parts = folder / f"{name}_files"
        parts.mkdir(parents=True)
        rows = [{"file": make(number, parts), column: text} for number, text in enumerate(CAPTIONS[:8])]
        write_rows(
            folder / f"{name}.jsonl.gz", [row | {column: [row[column]]} for row in rows] if make is draw else rows
        )
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for path in sorted(parts.iterdir()):
                archive.write(path, path.name)
        shutil.rmtree(parts)


def write_texts(folder: Path) -> None:
    (folder / "sentences.txt.gz").write_bytes(gzip.compress("\n".join(CAPTIONS).encode()))
    triplets = [{"sent0": text, "sent1": f"{text} sleeps", "hard_neg": "rain"} for text in CAPTIONS]
    write_rows(folder / "nli.csv", triplets)
    scored = [
        {"sentence1": text, "sentence2": CAPTIONS[-1 - number // 2], "score": float(number % 6), "subset": "test"}
        for number, text in enumerate(CAPTIONS)
    ]
    for name in STS_TABLES:
        write_rows(folder / "sts" / f"{name}.jsonl", scored)
    write_rows(folder / "mteb" / "stsbenchmark-sts" / "validation.jsonl", scored)


def save(folder: Path, *parts: Any) -> None:
    for part in parts:
        part.save_pretrained(folder)


def write_models(folder: Path, text_config: Callable, image_config: Callable, audio_config: Callable, tokenizer: Any):
    """Tiny models, under the names of those of the Hub and of the outputs of commands."""
    size = {"height": 16, "width": 16}
    image_processor = transformers.ViTImageProcessor(size=size)
    tokenizer.model_max_length = POSITIONS
    for name in ("google-bert/bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2"):
        save(folder / name, transformers.BertModel(text_config(max_position_embeddings=POSITIONS)), tokenizer)
    save(folder / "google/vit-base-patch16-224", transformers.ViTModel(image_config()), image_processor)
    clip = transformers.CLIPConfig(
        text_config=text_config("clip_text").to_dict(), vision_config=image_config("clip_vision").to_dict()
    )
    crop = transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size)
    save(
        folder / "openai/clip-vit-base-patch32",
        transformers.CLIPModel(clip),
        transformers.CLIPProcessor(crop, copy.deepcopy(tokenizer)),
    )
    clap = transformers.ClapConfig(
        text_config=text_config("clap_text").to_dict(), audio_config=audio_config("clap_audio").to_dict()
    )
    # Ten seconds in 251 frames; the tower takes 256.
    extractor = transformers.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=8000,
        hop_length=320,
        max_length_s=10,
        fft_window_size=512,
        frequency_max=4000,
        truncation="rand_trunc",
        padding="repeatpad",
    )
    save(
        folder / "laion/clap-htsat-unfused",
        transformers.ClapModel(clap),
        transformers.ClapProcessor(extractor, copy.deepcopy(tokenizer)),
    )
    save(folder / "outputs/simcse", SentenceEncoder(SentenceEncoderConfig(text_config=text_config())), tokenizer)
    towers = {"text_config": text_config(), "image_config": image_config(), "projection_dim": 16}
    processor = ImageTextProcessor(image_processor, copy.deepcopy(tokenizer))
    for name in ("outputs/clip", "outputs/cyclip", "outputs/demo/model", "user/clip"):
        save(folder / name, ImageTextDualEncoder(ImageTextConfig(**copy.deepcopy(towers))), processor)


@pytest.fixture(scope="module")
def materials(
    tmp_path_factory: pytest.TempPathFactory,
    text_config: Callable,
    image_config: Callable,
    audio_config: Callable,
    tokenizer: Any,
) -> Path:
    """A folder with all that pages take as given."""
    folder = tmp_path_factory.mktemp("materials")
    write_pictures(folder)
    write_sounds(folder)
    write_archives(folder)
    write_texts(folder)
    write_models(folder, text_config, image_config, audio_config, copy.deepcopy(tokenizer))
    return folder


@pytest.fixture
def workplace(materials: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a page, where the built-in pictures are few."""
    folder = shutil.copytree(materials, tmp_path / "workplace")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setitem(BUILT_IN, "openmoji", first_emoji)
    return folder


@cache
def first_emoji(split: str) -> Dataset:
    """A few of the built-in pictures, in a table of their own."""
    return load_openmoji(split).select(range(24)).flatten_indices()


def output_of(command: Command) -> Path | None:
    """The folder that a command names for its output."""
    position = command.args.index("--output_dir") if "--output_dir" in command.args else None
    return None if position is None or "--dry_run" in command.args else Path(command.args[position + 1])


def run(command: Command, made: set[Path]) -> None:
    """Run a command; its output folder is what commands of this page wrote there, not what was given."""
    output = output_of(command)
    if output is not None and output not in made:
        shutil.rmtree(output, ignore_errors=True)
        made.add(output)
    importlib.import_module(f"xmodal_hf.training_scripts.{command.module}").main(shortened(command))
    assert output is None or any(output.iterdir()), f"nothing was written to {output}"


def pages_to_run() -> list[Any]:
    """The pages with blocks that run here; those that take over two seconds of a core are slow tests."""
    names = [(page, page.relative_to(ROOT).as_posix()) for page in RUN]
    return [pytest.param(page, id=name, marks=[pytest.mark.slow] if name in LONG else []) for page, name in names]


@pytest.mark.parametrize("page", pages_to_run())
def test_the_page_runs_from_top_to_bottom(page: Path, workplace: Path) -> None:
    blocks = [block for block in blocks_of(page) if block.mark == ("tested", THIS)]
    variables: dict[str, Any] = {"__name__": page.stem}
    made: set[Path] = set()
    for block in blocks:
        if block.language == "python":
            # The lines of an error are those of the page.
            exec(compile("\n" * block.line + block.code, str(page), "exec"), variables)
            continue
        for line in lines_of(block.code):
            command = command_in(line)
            assert command is not None, f"this line is no command of the package: {line}"
            run(command, made)

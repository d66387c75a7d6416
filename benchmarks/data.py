"""Pairs per second of the loader alone: of images beside open_clip's, of recordings beside one with CLAP's extractor.

    python benchmarks/data.py            # writes benchmarks/results/data.json

Images: the same JPEG files and captions go through `PairDataset` and `PairCollator` with transformers'
CLIPImageProcessor, and through open_clip's evaluation transform and tokenizer, item by item as its dataset classes do.
Both tokenizers have open_clip's vocabulary and give the same ids, which is checked, as is that the pixels agree.
Sounds: recordings of ESC-10, where the data are, are decoded, extracted, tokenised and collated, with
`LogMelFeatureExtractor` and with transformers' ClapFeatureExtractor (the extractors alone: log_mel.py).
The methods take turns for `--rounds` rounds; medians, the fastest rounds and the ratios to the peer are reported.

open_clip is optional (benchmarks/requirements.txt): without it only ours is measured.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from datasets import Dataset, disable_progress_bars
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm
from transformers import ClapFeatureExtractor, CLIPImageProcessor, CLIPTokenizer

from common import DATA, describe_machine
from xmodal_hf import AudioTextProcessor, ImageTextProcessor, LogMelFeatureExtractor
from xmodal_hf.data.audio import decode_audio
from xmodal_hf.data.builtin.soundfont import render_address
from xmodal_hf.data.collators import PairCollator
from xmodal_hf.data.orders import FileOrder
from xmodal_hf.data.sampling import EpochBatchSampler, PairDataset
from xmodal_hf.data.sources import load_pairs

RESULTS = Path(__file__).parent / "results"
IMAGE_SIZE = 224
MAX_TOKENS = 77
NOUNS = ("dog", "child", "bicycle", "river", "market", "mountain", "guitar", "train")
CLIP_SECONDS, CLIP_RATE_HZ = 10, 48_000
OURS, THEIRS = "LogMelFeatureExtractor", "ClapFeatureExtractor"

Measurement = Callable[[], tuple[int, float]]  # does the work, returns the number of items and seconds


def main() -> None:
    options = parse_arguments()
    torch.set_num_threads(1)
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        methods = image_methods(Path(folder), options) | audio_methods(Path(folder), options)
        rates = take_turns(methods, options.rounds)
    report(rates, options)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="number of JPEG files")
    parser.add_argument("--width", type=int, default=640, help="of the JPEG files, in pixels; the height is 3/4 of it")
    parser.add_argument("--clips", type=int, default=8, help="number of recordings")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="numbers of loader processes to try")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "data.json")
    return parser.parse_args()


# ---- images ---------------------------------------------------------------------------------------------------------


def image_methods(folder: Path, options: argparse.Namespace) -> dict[str, Measurement]:
    rows = write_images(folder, options.images, options.width)
    ours, theirs = our_loader(folder), open_clip_loader(rows)
    methods: dict[str, Measurement] = {}
    for workers in options.workers:
        for name, make in (("xmodal_hf", ours), ("open_clip", theirs)):
            if make is not None:
                loader = make(options.batch_size, workers)
                methods[f"images, {workers} workers: {name}"] = timed(partial(count_pairs, loader))
    if theirs is not None:
        check_agreement(next(iter(ours(16, 0))), next(iter(theirs(16, 0))))
    return methods


def write_images(folder: Path, count: int, width: int) -> list[dict[str, str]]:
    """JPEGs with the detail of photographs: coarse structure and fine noise."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        image = np.asarray(coarse.resize((width, width * 3 // 4), Image.Resampling.BICUBIC)).astype(np.int16)
        image = (image + generator.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{number}.jpg", quality=90)
        words = generator.choice(NOUNS, size=generator.integers(5, 15))
        rows.append({"image": f"{number}.jpg", "caption": " and a ".join(words)})
    Dataset.from_list(rows).to_json(folder / "captions.jsonl")
    return [row | {"image": str(folder / row["image"])} for row in rows]


def our_loader(folder: Path) -> Callable[[int, int], DataLoader]:
    images = CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=IMAGE_SIZE)
    collator = PairCollator(ImageTextProcessor(images, clip_tokenizer()), max_length=MAX_TOKENS, pad_to_max_length=True)
    items = PairDataset(load_pairs(folder / "captions.jsonl"), seed=0, min_image_size=IMAGE_SIZE)

    def make(batch_size: int, workers: int) -> DataLoader:
        batches = EpochBatchSampler(FileOrder(len(items)), batch_size)
        return DataLoader(
            items, batch_sampler=batches, num_workers=workers, collate_fn=collator, persistent_workers=workers > 0
        )

    return make


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer, from the vocabulary that open_clip ships; without open_clip, one of letters."""
    if not importlib.util.find_spec("open_clip"):
        vocabulary = {f"{letter}{end}": 0 for letter in map(chr, range(97, 123)) for end in ("", "</w>")}
        tokens = [*vocabulary, "<|startoftext|>", "<|endoftext|>"]
        return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=[])
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    vocabulary = {
        {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}.get(token, token): index
        for token, index in tokenizer.encoder.items()
    }
    return CLIPTokenizer(vocab=vocabulary, merges=list(tokenizer.bpe_ranks))


class OpenClipItems(TorchDataset):
    """open_clip_train.data.CsvDataset, without its training package."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        from open_clip import image_transform
        from open_clip.tokenizer import SimpleTokenizer

        self.rows = rows
        self.transform = image_transform(IMAGE_SIZE, is_train=False)
        self.tokenizer = SimpleTokenizer()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.rows[index]
        return self.transform(Image.open(row["image"])), self.tokenizer([row["caption"]])[0]


def open_clip_loader(rows: list[dict[str, str]]) -> Callable[[int, int], DataLoader] | None:
    if not importlib.util.find_spec("open_clip"):
        return None
    items = OpenClipItems(rows)

    def make(batch_size: int, workers: int) -> DataLoader:
        return DataLoader(items, batch_size, num_workers=workers, persistent_workers=workers > 0)

    return make


def count_pairs(loader: DataLoader) -> int:
    return sum(len(batch[0] if isinstance(batch, list) else batch["ids"]) for batch in loader)


def check_agreement(ours: dict[str, Any], theirs: list[torch.Tensor]) -> None:
    """The two pipelines do the same work: equal token ids (theirs pads with 0), nearly equal pixels."""
    pixels, ids = theirs
    assert torch.equal(ours["input_ids"] * ours["attention_mask"], ids)
    difference = (ours["pixel_values"] - pixels).abs().mean() / pixels.std()
    assert difference < 0.1, f"pixels differ by {difference:.3f} standard deviations"


# ---- sounds ---------------------------------------------------------------------------------------------------------


def audio_methods(folder: Path, options: argparse.Namespace) -> dict[str, Measurement]:
    """Whole loaders of recordings with either extractor."""
    paths = [folder / f"recording {number}.wav" for number in range(options.clips)]
    sounds = recordings(options.clips)
    if not sounds:
        return {}
    for path, sound in zip(paths, sounds, strict=True):
        soundfile.write(path, sound, CLIP_RATE_HZ, subtype="FLOAT")
    extractors: dict[str, Any] = {
        OURS: LogMelFeatureExtractor.from_preset("clap"),
        THEIRS: ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc"),
    }
    return {
        f"sounds, {workers} workers: {name}": timed(
            partial(count_pairs, sound_loader(folder, paths, extractor, workers))
        )
        for name, extractor in extractors.items()
        for workers in options.workers
    }


def sound_loader(folder: Path, paths: list[Path], extractor: Any, workers: int) -> DataLoader:
    """Eight epochs of the files in one, since they are few."""
    rows = [{"audio": path.name, "caption": f"the sound number {number}"} for number, path in enumerate(paths)]
    table = folder / "sounds.jsonl"
    Dataset.from_list(rows * 8).to_json(table)
    items = PairDataset(
        load_pairs(table, modality="audio"), seed=0, sampling_rate=CLIP_RATE_HZ, max_seconds=float(CLIP_SECONDS)
    )
    collator = PairCollator(AudioTextProcessor(extractor, clip_tokenizer()), max_length=MAX_TOKENS)
    batches = EpochBatchSampler(FileOrder(len(items)), len(paths))
    return DataLoader(
        items, batch_sampler=batches, num_workers=workers, collate_fn=collator, persistent_workers=workers > 0
    )


def audio_signals(clips: int) -> dict[str, list[np.ndarray]]:
    """Clips for which single precision is exact to different degrees: noise most of all, tones least."""
    num_samples = CLIP_SECONDS * CLIP_RATE_HZ
    generator = np.random.default_rng(0)
    seconds = np.arange(num_samples) / CLIP_RATE_HZ
    notes = [render_address(f"soundfont://test/{number}", CLIP_RATE_HZ) for number in range(4 * clips)]
    signals = {
        "noise": list(generator.normal(0, 0.1, (clips, num_samples))),
        "recordings": recordings(clips),
        "music": [np.concatenate(notes[4 * clip : 4 * clip + 4])[:num_samples] for clip in range(clips)],
        "tones": [np.sin(2 * np.pi * 110 * (clip + 1) * seconds) for clip in range(clips)],
    }
    return {kind: [sound.astype(np.float32) for sound in sounds] for kind, sounds in signals.items() if sounds}


def recordings(clips: int) -> list[np.ndarray]:
    """Clips of ESC-10, evenly over its archive, each played twice; none without the data."""
    archive = DATA / "esc10" / "audio.zip"
    if not archive.exists():
        return []
    with zipfile.ZipFile(archive) as files:
        names = sorted(files.namelist())
        sounds = [decode_audio(files.read(name), CLIP_RATE_HZ) for name in names[:: len(names) // clips][:clips]]
    return [np.tile(sound, 2).astype(np.float32)[: CLIP_SECONDS * CLIP_RATE_HZ] for sound in sounds]


# ---- measuring ------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], int]) -> Measurement:
    def measure() -> tuple[int, float]:
        start = time.perf_counter()
        return work(), time.perf_counter() - start

    return measure


def take_turns(methods: dict[str, Measurement], rounds: int) -> dict[str, list[float]]:
    """Items per second of every method in every round, after one round to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for round_number in tqdm(range(rounds + 1), desc="rounds"):
        for name, work in methods.items():
            count, seconds = work()
            if round_number:
                rates[name].append(count / seconds)
    return rates


def report(rates: dict[str, list[float]], options: argparse.Namespace) -> None:
    results = {
        name: {"median_per_second": statistics.median(values), "best_per_second": max(values)}
        for name, values in rates.items()
    }
    ratios = speed_ratios(rates)
    print(f"{'':50} {'median':>10} {'best':>10}   items per second {'of the peer':>12}")
    for name, result in results.items():
        times = f"{ratios[name]:18.2f} x" if name in ratios else ""
        print(f"{name:50} {result['median_per_second']:10.1f} {result['best_per_second']:10.1f} {times}")
    settings = {name: value for name, value in vars(options).items() if name != "output"}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    contents = {
        "data": results,
        "times_of_peer": ratios,
        "settings": settings,
        "machine": describe_machine("cpu", "torchaudio", "pillow", "open_clip_torch"),
    }
    options.output.write_text(json.dumps(contents, indent=2) + "\n")


def speed_ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Ours over the peer's: the median over rounds, whose two measurements follow each other."""
    ratios = {}
    for name, values in rates.items():
        work, method = name.rsplit(": ", 1)
        peer = rates.get(f"{work}: {THEIRS if method.startswith(OURS) else 'open_clip'}")
        if peer is not None and method not in (THEIRS, "open_clip"):
            ratios[name] = statistics.median(ours / theirs for ours, theirs in zip(values, peer, strict=True))
    return ratios


if __name__ == "__main__":
    main()

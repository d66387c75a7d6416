"""What single precision costs the log-mel extractor: decibels, and the cosine of a trained tower's embeddings.

    python benchmarks/log_mel.py                          # trains a small tower first, a few minutes on two cores
    python benchmarks/log_mel.py --model outputs/clap     # with an audio-text model whose extractor is of this package

Noise, recordings (ESC-10, where the data are), rendered music and pure tones of 10 s at 48 kHz go through
`LogMelFeatureExtractor` in single and in double precision, and through transformers' ClapFeatureExtractor, with which
they are compared: by decibels, and by time on one thread, where all take turns. The trained tower hears each kind of
sound in both precisions; aiSFX (`pip install --no-deps aisfx`), whose weights are real, does so too. The cosine is that
of the two embeddings of a clip. Results: benchmarks/results/log_mel.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, ClapFeatureExtractor

from common import describe_machine, take_turns
from data import CLIP_RATE_HZ, audio_signals
from xmodal_hf import AudioTextDualEncoder, LogMelFeatureExtractor

RESULTS = Path(__file__).parent / "results"
PRECISIONS = ("single", "double")
# An HTSAT of CLAP's front end, small enough to be trained in minutes.
TOWER = {
    "model_type": "clap_audio_model",
    **{"spec_size": 128, "patch_size": 8, "patch_stride": [8, 8], "window_size": 4, "num_mel_bins": 64},
    **{"patch_embeds_hidden_size": 64, "hidden_size": 256, "depths": [2, 2, 2], "num_hidden_layers": 3},
    "num_attention_heads": [2, 4, 8],
}
TRAINING = [
    *("--dataset", "soundfont", "--modality", "audio", "--audio_preset", "clap", "--max_seconds", "2.5"),
    *("--audio_config", json.dumps(TOWER), "--projection_dim", "128", "--learning_rate", "1e-3", "--max_steps", "16"),
    *("--max_length", "40", "--report_to", "none"),
]


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Audio-text model with a LogMelFeatureExtractor. Default: one is trained.")
    parser.add_argument("--clips", type=int, default=8, help="Sounds of each kind.")
    parser.add_argument("--rounds", type=int, default=5, help="Times that the extractors take turns.")
    parser.add_argument("--output", type=Path, default=RESULTS / "log_mel.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    signals = audio_signals(options.clips)
    with tempfile.TemporaryDirectory() as folder:
        embedders = towers(options.model or train(Path(folder) / "model"), Path(folder))
        cosines = {name: cosines_of(*tower, signals) for name, tower in embedders.items()}
    results = {
        "difference_db": differences(signals),
        "cosine": cosines,
        "times_of_peer": speed_ratios(signals["noise"], options.rounds),
        "settings": {"clips": options.clips, "rounds": options.rounds, "trained": options.model is None},
        "machine": describe_machine("cpu", "torchaudio"),
    }
    options.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: results[name] for name in list(results)[:3]}, indent=2))


def train(folder: Path) -> str:
    """Train the small tower and return its folder."""
    script = Path(__file__).parents[1] / "training_scripts" / "train_contrastive.py"
    subprocess.run([sys.executable, str(script), *TRAINING, "--output_dir", str(folder)], check=True)
    return str(folder)


def towers(model: str, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Name -> the function from features to embeddings, and the extractor: of the trained model, and of aiSFX."""
    trained = AudioTextDualEncoder.from_pretrained(model).eval()
    found = {
        "trained tower": (
            lambda features: trained(input_features=features).audio_embeds,
            LogMelFeatureExtractor.from_pretrained(model),
        )
    }
    if importlib.util.find_spec("aisfx") is not None:
        from xmodal_hf.hub.packaged_towers import prepare_towers

        path = prepare_towers(folder, {"audio": {}})["audio"]
        sound_effects = AutoModel.from_pretrained(path).eval()
        found["aiSFX"] = (
            lambda features: sound_effects(input_features=features).pooler_output,
            LogMelFeatureExtractor.from_pretrained(path),
        )
    return found


@torch.inference_mode()
def cosines_of(embed: Any, extractor: Any, signals: dict[str, list[np.ndarray]]) -> dict[str, dict[str, float]]:
    """The cosine of each clip's embeddings in the two precisions: the mean and the lowest, of each kind of sound."""
    rate, cosines = extractor.sampling_rate, {}
    for kind, sounds in signals.items():
        embeds = []
        for precision in PRECISIONS:
            extractor.precision = precision
            # The clips are taken for sounds at the tower's own rate: what is compared is the arithmetic.
            features = extractor(sounds, sampling_rate=rate, return_tensors="pt")["input_features"]
            embeds.append(embed(features).flatten(1).double())
        found = torch.nn.functional.cosine_similarity(*embeds)  # (clips,)
        cosines[kind] = {"mean": found.mean().item(), "lowest": found.min().item()}
    return cosines


def differences(signals: dict[str, list[np.ndarray]]) -> dict[str, dict[str, dict[str, float]]]:
    """By how many decibels each precision differs from ClapFeatureExtractor: the root mean square and the most."""
    clap = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind, sounds in signals.items():
        theirs = features_of(clap, sounds).double()
        found[kind] = {}
        for precision in PRECISIONS:
            ours = features_of(LogMelFeatureExtractor.from_preset("clap", precision=precision), sounds)
            difference = (ours - theirs).abs()
            found[kind][precision] = {
                "root_mean_square": difference.square().mean().sqrt().item(),
                "most": difference.max().item(),
            }
    return found


def speed_ratios(sounds: list[np.ndarray], rounds: int) -> dict[str, float]:
    """Clips a second of ours over ClapFeatureExtractor's: the median over rounds."""
    extractors: dict[str, Any] = {
        precision: LogMelFeatureExtractor.from_preset("clap", precision=precision) for precision in PRECISIONS
    }
    extractors["clap"] = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    actions = {name: partial(features_of, extractor, sounds) for name, extractor in extractors.items()}
    seconds = take_turns(actions, rounds, "cpu")
    return {
        precision: statistics.median(
            theirs / ours for ours, theirs in zip(seconds[precision], seconds["clap"], strict=True)
        )
        for precision in PRECISIONS
    }


def features_of(extractor: Any, sounds: list[np.ndarray]) -> torch.Tensor:
    return extractor(sounds, sampling_rate=CLIP_RATE_HZ, return_tensors="pt")["input_features"]


if __name__ == "__main__":
    main()

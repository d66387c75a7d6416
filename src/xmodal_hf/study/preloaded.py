"""What the scripts of a study import: a server of processes imports it once, and each job is a fork of that server."""

import peft  # noqa: F401
import scipy.stats  # noqa: F401
import sklearn.linear_model
import sklearn.manifold  # noqa: F401
import torch.utils.data  # noqa: F401
from transformers import AutoModel, AutoProcessor, AutoTokenizer  # noqa: F401

from ..evaluation import frozen, loading, processes, suite  # noqa: F401
from ..training import batches, dry_run, loop, output, phases, validation  # noqa: F401

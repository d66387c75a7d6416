"""Runs train_contrastive.py with the given options under FSDP 2 or DeepSpeed on CPU processes.

Accelerate takes both for accelerators only (`AcceleratorState` does not look at ACCELERATE_USE_FSDP when the processes
are CPU ones), though they shard on CPUs too. So the processes say that they have an accelerator, and nothing else
differs from a run of the script.
"""

import runpy
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import DistributedType

PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_HPU
script = Path(__file__).parents[2] / "training_scripts" / "train_contrastive.py"
runpy.run_path(str(script))["main"](sys.argv[1:])

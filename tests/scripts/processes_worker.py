"""Runs the training scripts one after the other in this process: a JSON list of [script, *options] is the argument."""

import json
import runpy
import sys
from pathlib import Path

from accelerate import PartialState
from accelerate.state import AcceleratorState

SCRIPTS = Path(__file__).parents[2] / "training_scripts"

# One process group for all runs: each would end it, and it cannot be made twice under one launcher.
PartialState.destroy_process_group = lambda *_: None
for script, *options in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
    runpy.run_path(str(SCRIPTS / script))["main"](options)
    if PartialState().num_processes == 1:
        AcceleratorState._reset_state(reset_partial_state=True)  # the next one may want another precision

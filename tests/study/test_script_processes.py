"""Scripts in processes of a server that has imported everything."""

import os
import threading

from xmodal_hf.study.script_processes import run_script, start_server


def test_a_script_whose_workers_wait_for_more_ends(tmp_path):
    """joblib keeps its processes for five minutes, for the next call; nobody waits for them."""
    script, log = tmp_path / "script.py", tmp_path / "log"
    script.write_text("from joblib import Parallel, delayed\nprint(Parallel(2)(delayed(abs)(-n) for n in range(4)))\n")
    environment = dict(os.environ)
    start_server(environment)
    statuses = []
    running = threading.Thread(target=lambda: statuses.append(run_script(script, [], log, environment)), daemon=True)
    running.start()
    running.join(timeout=240)
    assert statuses == [0] and "[0, 1, 2, 3]" in log.read_text()

"""The training scripts as modules: `accelerate launch -m xmodal_hf.training_scripts.train_contrastive ...`.

The folder `training_scripts` at the root of the repository is their one source. A wheel has a copy of it here; in a
checkout this package finds them there.
"""

from ..shipped import SCRIPTS

__path__ = [str(SCRIPTS)]

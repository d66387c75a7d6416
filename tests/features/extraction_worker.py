"""Extracts the text vectors of a small model in every process: arguments are the model, the data and the folder."""

import sys

from accelerate import PartialState

from xmodal_hf import ImageTextDualEncoder, ImageTextProcessor
from xmodal_hf.data.collators import PairCollator
from xmodal_hf.data.sampling import PairDataset
from xmodal_hf.data.sources import load_pairs
from xmodal_hf.features import ExtractionOptions, extract
from xmodal_hf.features.frozen import FrozenSide

model, table, folder = sys.argv[1:]
PartialState(cpu=True)
collator = PairCollator(ImageTextProcessor.from_pretrained(model), max_length=12)
rows = PairDataset(load_pairs(table), seed=0, min_image_size=16)
side = FrozenSide("image", ImageTextDualEncoder.from_pretrained(model), rows, collator)
options = ExtractionOptions(items_per_shard=2, max_bad_fraction=0.2, num_workers=1, show_progress=False)
print(len(extract(folder, side, options)))
PartialState().destroy_process_group()

"""One process of W: goes through an epoch of damaged pairs as training does, and saves what came together.

torchrun ... bad_items_worker.py FOLDER      (FOLDER/rows from `save_to_disk`, FOLDER/processor)
"""

import json
import pickle
import sys
from pathlib import Path

from xmodal_hf import ImageTextProcessor
from xmodal_hf.training.arguments import PairArguments, TextModelArguments, TrainingArguments
from xmodal_hf.training.batches import build_pair_loader
from xmodal_hf.training.loop import build_accelerator


def main(folder: Path) -> None:
    training = TrainingArguments(output_dir=str(folder), batch_size=5, num_workers=2, report_to="none")
    pairs = PairArguments(dataset=["rows"], max_bad_fraction=0.4)
    accelerator = build_accelerator(training)
    processor = ImageTextProcessor.from_pretrained(folder / "processor")
    table = pickle.loads((folder / "rows.pkl").read_bytes())
    loader = build_pair_loader(accelerator, table, processor, training, TextModelArguments(max_length=8), pairs)
    seen = []
    for _, batch in zip(range(len(loader)), loader, strict=False):
        numbers = (batch["pixel_values"][:, 0, 5, 5] * 255).round().int().tolist()  # red says which picture it is
        texts = processor.tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        seen += zip(batch["ids"], numbers, texts, strict=True)
    (folder / f"rank{accelerator.process_index}.json").write_text(json.dumps(seen))
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

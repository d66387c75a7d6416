"""Measure a model with a task of one's own: how far a text moves when its words are shuffled.

    python examples/custom_task.py --model outputs/clip --sts_data data/sts --output_dir outputs/evaluation

All options of evaluate_model.py hold; `--tasks word_order` is added.
"""

import sys
from collections.abc import Sequence

import numpy as np

from xmodal_hf import cli
from xmodal_hf.evaluation import TASKS, Outcome, Task, TaskContext, load_sts
from xmodal_hf.evaluation.tasks.context import Run

NAME = "word_order"


def load_word_order(context: TaskContext) -> Run:
    """Open the sentences; what is returned embeds them as they are and with their words shuffled."""
    sets = load_sts(context.data.sts_data, protocol=context.data.sts_protocol)
    sentences = sorted({row["sentence1"] for rows in sets.values() for row in rows})
    generator = np.random.default_rng(context.arguments.seed)
    shuffled = [" ".join(generator.permutation(sentence.split())) for sentence in sentences]

    def run() -> Outcome:
        as_written = context.embedder.encode_text(sentences)  # (n, D), unit norm
        moved = context.embedder.encode_text(shuffled)  # (n, D)
        cosines = (as_written * moved).sum(axis=1)
        numbers = {"mean_distance": float(100 * (1 - cosines).mean()), "num_texts": len(sentences)}
        protocol = "1 - cosine of a text and the text of its words in random order, x 100"
        return Outcome(numbers, {"dataset": "first sentences of STS", "protocol": protocol})

    return run


def main(args: Sequence[str] | None = None) -> None:
    """Add the task, and run it."""
    TASKS[NAME] = Task(
        load_word_order,
        title="Sensitivity to the order of words",
        index_type="feature-extraction",
        headlines=("mean_distance",),
        needs="sts_data",
        of_texts=True,
    )
    cli.main(["evaluate", "--tasks", NAME, *(sys.argv[1:] if args is None else args)])


if __name__ == "__main__":
    main()

"""Measure a model: language quality, cross-modal quality, geometry.

    python training_scripts/evaluate_model.py --model outputs/clip --tasks retrieval,representation --pairs openmoji
    python training_scripts/evaluate_model.py --model sentence-transformers/all-MiniLM-L6-v2 --sts_protocol mteb
    accelerate launch --num_processes 8 training_scripts/evaluate_model.py ...   # all embed, one measures

The model is one of our checkpoints, a CLIPModel, SiglipModel or ClapModel, a sentence-transformers model or any Auto
text model, so that a number can be compared with its peer's. Writes results.json, the bootstrap's resamples and plots,
and prints tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xmodal_hf.commands import run_command
from xmodal_hf.evaluation.arguments import EvaluationArguments, EvaluationDataArguments, check_tasks
from xmodal_hf.options import check_inputs, parse_arguments

if TYPE_CHECKING:
    from accelerate import PartialState

    from xmodal_hf.evaluation import Embedder
    from xmodal_hf.evaluation.suite import Resamples, Results


# Options that --help shows first.
EVERYDAY = (
    *("model", "tasks", "output_dir", "modality", "pairs", "pairs_split", "text_column", "id_column", "sts_data"),
    *("sts_protocol", "transfer_data", "zero_shot_data", "label_column", "batch_size", "device"),
)


def main(args: Sequence[str] | None = None) -> None:
    """Evaluate, write results and plots, print the tables."""
    arguments, data = parse_arguments((EvaluationArguments, EvaluationDataArguments), __doc__, args, None, EVERYDAY)
    check_tasks(arguments, data)
    check_inputs(arguments, data)

    # After parsing: --help and a wrong option answer without torch.
    from xmodal_hf.evaluation import suite
    from xmodal_hf.evaluation.processes import shared
    from xmodal_hf.features.processes import launched_processes

    compared = suite.read_compared(arguments.compare) if arguments.compare else ({}, {})
    state = launched_processes(cpu=arguments.device == "cpu")
    with shared(build_embedder(arguments, state), state, arguments.batch_size) as embedder:
        if embedder is not None:  # only the main process has results; the others have embedded for it
            measure(remembering(embedder, arguments), arguments, data, *compared)


def measure(
    embedder: Embedder,
    arguments: EvaluationArguments,
    data: EvaluationDataArguments,
    compared: dict[str, Results],
    resamples_of: dict[str, Resamples],
) -> None:
    """Run the tasks, write results and plots, print the tables, beside those of the models that are compared."""
    from xmodal_hf.evaluation import suite

    folder = Path(arguments.output_dir)
    earlier = suite.read_earlier_results(folder, arguments.model)
    for results, resamples, draw in suite.run_suite(embedder, arguments, data):
        # Results of finished tasks are kept if a later task fails.
        path = suite.write_results(folder, results, resamples, earlier)
        suite.write_figures(folder, draw())
    models = compared | {suite.model_name(arguments): results}
    resamples_of |= {suite.model_name(arguments): resamples}
    suite.write_figures(folder, suite.comparison_figures(models))
    print(suite.results_table(results))
    if compared:
        print("\n" + suite.comparison_table(models))
        differences = suite.difference_table(models, resamples_of)
        if differences is not None:
            print("\n" + differences)
    print(f"\n{path}")


def build_embedder(arguments: EvaluationArguments, state: PartialState) -> Embedder:
    """Load the model on the device of this process."""
    import torch

    from xmodal_hf.evaluation.embed import EmbedOptions
    from xmodal_hf.evaluation.loading import load_embedder

    options = EmbedOptions(
        max_tokens_per_batch=arguments.max_tokens_per_batch,
        batch_size=arguments.batch_size,
        max_length=arguments.max_length,
        long_clips=arguments.long_clips,
        dtype=None if arguments.dtype == "auto" else getattr(torch, arguments.dtype),
        show_progress=state.num_processes == 1,
    )
    return load_embedder(
        arguments.model,
        pooling=arguments.pooling,
        device=arguments.device if state.num_processes == 1 else str(state.device),
        options=options,
        trust_remote_code=arguments.trust_remote_code,
    )


def remembering(embedder: Embedder, arguments: EvaluationArguments) -> Embedder:
    """Give an embedder a memory of what it has encoded."""
    from xmodal_hf.evaluation.frozen import with_memory
    from xmodal_hf.evaluation.loading import model_identity

    settings = (
        arguments.pooling,
        arguments.max_length,
        arguments.long_clips,
        arguments.dtype,
    )  # options that change embeddings
    return with_memory(embedder, arguments.cache_dir, f"{model_identity(arguments.model)} {settings}")


if __name__ == "__main__":
    run_command(main)

"""Time, memory and gradient error of the streamed losses beside dense PyTorch, open_clip and memeff.

    python benchmarks/losses.py                              # CPU: writes benchmarks/results/losses_cpu.json
    python benchmarks/losses.py --device cuda --rounds 1     # one GPU: writes benchmarks/results/losses_cuda.json

Forward and backward of one loss on N unit-norm pairs, gradients of both sides and of a learned logit_scale included.
Every measurement is a process of its own, so that peak memory is its own; the methods take turns for `--rounds` rounds,
and medians are reported. Peak memory is what the loss and its gradients add to the inputs: resident memory on a CPU,
allocated memory on a GPU. Gradient error is against float64, relative to the largest entry, over the first rows.

The floor is the time of the matrix products that a streamed loss cannot do without, at the rate that large products
reach in the same process: logits, logits again in backward, and two products for the gradients.

Legend: N pairs, D embedding size, s logit_scale.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from tqdm.auto import tqdm

from common import MIB, RESULTS, PeakMemory, describe_machine, in_own_process, matmul_peak, missing, seconds_of

INITIAL_SCALE = 1 / 0.07  # CLIP's first logit_scale
CYCLIC_WEIGHT = 0.25  # both terms, as in CyCLIP
WARM_UP_PAIRS = 64
CHECKED_ROWS = 256  # of the embeddings, compared with float64
REFERENCE_BLOCK = 1024
GIB = 2**30

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Run:
    """One measurement: a loss, how it is computed, and on what."""

    objective: str  # clip | cyclip
    method: str  # streamed | dense | open_clip | memeff
    n: int
    d: int
    precision: str  # float32 | tf32 | bfloat16
    device: str
    repeats: int


# ---- the methods ----------------------------------------------------------------------------------------------------


def dense_clip(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    return contrastive(images @ texts.T, scale)


def dense_cyclip(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CyCLIP from all cosines, within and across, as its authors compute it (they scale and unscale them besides)."""
    cosines = images @ texts.T
    in_modal = (images @ images.T - texts @ texts.T).square().mean() * len(images)
    cross_modal = (cosines - cosines.T).square().mean() * len(images)
    return contrastive(cosines, scale) + CYCLIC_WEIGHT * (in_modal + cross_modal)


def contrastive(cosines: Tensor, scale: Tensor) -> Tensor:
    logits = scale.to(cosines.dtype) * cosines
    labels = torch.arange(len(logits), device=logits.device)
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


def streamed_cyclip(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    from xmodal_hf.losses import clip_loss, cyclic_losses

    in_modal, cross_modal = cyclic_losses(images, texts)
    return clip_loss(images, texts, scale) + CYCLIC_WEIGHT * (in_modal + cross_modal)


def loss_of(run: Run) -> Loss:
    if run.method == "open_clip":
        from open_clip.loss import ClipLoss

        return ClipLoss()
    if run.method == "memeff":
        from memeff import MemoryEfficientCLIPLoss

        # a constant temperature is all it takes; stable=False keeps the gradients' scale
        constant = MemoryEfficientCLIPLoss(temperature=1 / INITIAL_SCALE, normalized_inputs=True, stable=False)
        return lambda images, texts, scale: constant(images, texts)
    if run.method == "dense":
        return dense_cyclip if run.objective == "cyclip" else dense_clip
    from xmodal_hf.losses import clip_loss

    return streamed_cyclip if run.objective == "cyclip" else clip_loss


def why_missing(method: str, device: str) -> str | None:
    """Why a method cannot run here, None when it can."""
    if method == "memeff" and device == "cpu":
        return "memeff runs on CUDA only"
    return missing({"open_clip": "open_clip_torch"}.get(method, method)) if method in ("open_clip", "memeff") else None


# ---- one measurement, in its own process ----------------------------------------------------------------------------


def make_inputs(run: Run) -> list[Tensor]:
    """Images (N, D) and texts (N, D) of unit norm that resemble each other in pairs, and s."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(run.n, run.d, generator=generator)
    images = texts + torch.randn(run.n, run.d, generator=generator)
    dtype = torch.bfloat16 if run.precision == "bfloat16" else torch.float32
    sides = [normalize(side).to(run.device, dtype).requires_grad_() for side in (images, texts)]
    return [*sides, torch.tensor(INITIAL_SCALE, device=run.device, requires_grad=True)]


def floor_operations(run: Run) -> int:
    """Of the matrix products: 4 of N x N x D, and for CyCLIP 3 Gram matrices and 4 products of their gradients."""
    return 8 * run.n**2 * run.d + (14 * run.n * run.d**2 if run.objective == "cyclip" else 0)


def measure(run: Run, peak: float | None = None) -> dict[str, float]:
    """Seconds, peak bytes, floor and gradient errors of one run; `peak` is `matmul_peak`, where it was measured."""
    torch.set_float32_matmul_precision("high" if run.precision == "tf32" else "highest")
    loss, inputs = loss_of(run), make_inputs(run)

    def step() -> None:
        for tensor in inputs:
            tensor.grad = None
        loss(*inputs).backward()

    loss(*make_inputs(replace(run, n=WARM_UP_PAIRS))).backward()  # libraries, thread pools, kernels
    with PeakMemory(run.device) as memory:
        first = seconds_of(step, run.device)
    times = [seconds_of(step, run.device) for _ in range(run.repeats)] or [first]
    result = {"seconds": statistics.median(times), "extra_bytes": float(memory.bytes), "peak_bytes": float(memory.peak)}
    dtype = torch.bfloat16 if run.precision == "bfloat16" else torch.float32
    result["floor_seconds"] = floor_operations(run) / (peak or matmul_peak(run.device, dtype))
    if run.objective == "clip":
        result |= gradient_errors(inputs)
    return result


def gradient_errors(inputs: list[Tensor]) -> dict[str, float]:
    """Of the first image rows and of s, where it got a gradient."""
    images, texts, scale = inputs
    exact_images, exact_scale = exact_gradients(
        images.detach().double(), texts.detach().double(), scale.double().item()
    )
    assert images.grad is not None
    error = (images.grad[:CHECKED_ROWS].double() - exact_images).abs().max() / exact_images.abs().max()
    errors = {"embedding_gradient_error": error.item()}
    if scale.grad is not None:
        errors["scale_gradient_error"] = abs(scale.grad.item() / exact_scale - 1)
    return errors


def exact_gradients(images: Tensor, texts: Tensor, scale: float) -> tuple[Tensor, float]:
    """clip_loss's gradients of the first image rows and of s, in float64, by the formula, block by block.

    Scores are shifted by s: cosines are at most 1, and float64 holds exp(-2 s) for every s in use.
    """
    n = len(images)
    row_sums, column_sums = images.new_zeros(n), images.new_zeros(n)
    row_means, column_means = images.new_zeros(n), images.new_zeros(n)  # of the cosines, softmax-weighted
    for start in range(0, n, REFERENCE_BLOCK):
        rows = slice(start, start + REFERENCE_BLOCK)
        cosines = images[rows] @ texts.T
        weights = ((cosines - 1) * scale).exp()
        row_sums[rows], column_sums = weights.sum(1), column_sums + weights.sum(0)
        weights *= cosines
        row_means[rows], column_means = weights.sum(1), column_means + weights.sum(0)
    expected = (row_means / row_sums).mean() + (column_means / column_sums).mean()
    grad_scale = expected / 2 - (images * texts).sum(1).mean()
    first = ((images[:CHECKED_ROWS] @ texts.T - 1) * scale).exp()
    first = first / row_sums[: len(first), None] + first / column_sums
    grad_images = (first @ texts - 2 * texts[: len(first)]) * scale / (2 * n)
    return grad_images, grad_scale.item()


def measure_and_print(run: Run) -> None:
    try:
        result: dict[str, object] = dict(measure(run))
    except torch.OutOfMemoryError:
        result = {"error": "out of memory"}
    print(json.dumps(result))


# ---- the campaign ---------------------------------------------------------------------------------------------------


def comparisons(options: argparse.Namespace) -> list[Run]:
    """All methods on the same inputs."""
    methods = [("cyclip", "streamed"), ("cyclip", "dense"), ("clip", "streamed"), ("clip", "dense")]
    methods += [("clip", "open_clip"), ("clip", "memeff")]
    if options.device == "cpu":
        settings = [(options.n or 8192, 512, "float32")]
    else:
        sizes = [options.n] if options.n else [32_768, 65_536]
        settings = [(n, d, p) for n in sizes for d in (512, 1024) for p in ("bfloat16", "tf32", "float32")]
    return [
        Run(objective, method, n, d, precision, options.device, options.repeats)
        for n, d, precision in settings
        for objective, method in methods
    ]


def scaling(options: argparse.Namespace) -> list[Run]:
    """The streamed CyCLIP loss over N, for memory."""
    sizes = [2048, 4096, 8192, 16_384, 32_768]
    precision = "float32" if options.device == "cpu" else "bfloat16"
    return [Run("cyclip", "streamed", n, 512, precision, options.device, repeats=0) for n in sizes]


def run_apart(run: Run, threads: int) -> dict[str, object]:
    memeff_precision = "ieee" if run.precision == "float32" else "tf32"
    environment = {"OMP_NUM_THREADS": str(threads), "MEMEFF_INPUT_PRECISION": memeff_precision}
    try:
        return in_own_process(__file__, asdict(run), **environment)
    except RuntimeError as error:
        return {"error": str(error)}


def measure_in_rounds(runs: list[Run], rounds: int, threads: int) -> list[dict]:
    """Each run once a round, all runs before the next round; medians over the rounds."""
    seen: dict[Run, list[dict]] = {run: [] for run in runs}
    with tqdm(total=rounds * len(runs), unit="run") as progress:
        for _ in range(rounds):
            for run in runs:
                progress.set_postfix_str(f"{run.objective} {run.method} N={run.n} D={run.d} {run.precision}")
                seen[run].append(run_apart(run, threads))
                progress.update()
    return [asdict(run) | combined(results) for run, results in seen.items()]


def combined(results: list[dict]) -> dict[str, object]:
    failed = [result for result in results if "error" in result]
    if failed:
        return failed[0]
    summary: dict[str, object] = {key: statistics.median(result[key] for result in results) for key in results[0]}
    return summary | {"seconds_of_rounds": [result["seconds"] for result in results]}


def linear_fit(points: list[tuple[float, float]]) -> dict[str, float]:
    """Least squares of bytes over N, and the exponent of N in bytes (1 is linear, a dense loss has 2)."""
    sizes, all_bytes = zip(*points, strict=True)
    slope, intercept = statistics.linear_regression(sizes, all_bytes)
    exponent, _ = statistics.linear_regression([math.log(n) for n in sizes], [math.log(b) for b in all_bytes])
    return {"bytes_per_pair": slope, "intercept_bytes": intercept, "growth_exponent": exponent}


# ---- report ---------------------------------------------------------------------------------------------------------


def print_table(rows: list[dict]) -> None:
    header = ("objective", "method", "N", "D", "precision", "seconds", "x floor", "extra MiB", "grad err", "scale err")
    line = "{:<9} {:<10} {:>6} {:>5} {:<9} {:>9} {:>8} {:>10} {:>9} {:>9}"
    print(line.format(*header))
    for row in rows:
        start = [row[key] for key in ("objective", "method", "n", "d", "precision")]
        if "error" in row:
            print(line.format(*start, row["error"], "", "", "", ""))
            continue
        errors = [row.get(f"{name}_gradient_error") for name in ("embedding", "scale")]
        numbers = [f"{row['seconds']:.4g}", f"{row['seconds'] / row['floor_seconds']:.2f}"]
        numbers += [f"{row['extra_bytes'] / MIB:.0f}", *("-" if e is None else f"{e:.1e}" for e in errors)]
        print(line.format(*start, *numbers))


def print_goals(compared: list[dict], scaled: list[dict], fit: dict[str, float] | None) -> None:
    measured = [row for row in compared if "error" not in row]
    for own in (row for row in measured if row["method"] == "streamed"):
        for rival in (row for row in measured if row["method"] != "streamed" and same_setting(row, own)):
            times, memory = own["seconds"] / rival["seconds"], own["extra_bytes"] / rival["extra_bytes"]
            setting = f"{own['objective']} N={own['n']} D={own['d']} {own['precision']}"
            print(f"{setting}: {times:.2f} of the time and {memory:.2f} of the memory of {rival['method']}")
    if fit is not None:
        print(
            f"memory over N = {scaled[0]['n']}..{scaled[-1]['n']}: {fit['bytes_per_pair']:.0f} bytes a pair + "
            f"{fit['intercept_bytes'] / MIB:.0f} MiB, growing as N^{fit['growth_exponent']:.2f}; "
            f"N = {scaled[-1]['n']}: {scaled[-1]['extra_bytes'] / GIB:.2f} GiB, "
            f"{scaled[-1]['peak_bytes'] / GIB:.2f} GiB with inputs and whatever the process held before"
        )


def same_setting(row: dict, other: dict) -> bool:
    return all(row[key] == other[key] for key in ("objective", "n", "d", "precision"))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--n", type=int, help="pairs in the comparison instead of the default sizes")
    parser.add_argument("--rounds", type=int, default=3, help="times that all methods take turns")
    parser.add_argument("--repeats", type=int, default=2, help="timed steps a process, after an untimed one")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of each process")
    parser.add_argument("--skip-scaling", action="store_true", help="without the runs over N")
    parser.add_argument("--output", type=Path, help="JSON file instead of benchmarks/results/losses_<device>.json")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if options.measure:
        measure_and_print(Run(**options.measure))
        return
    runs = comparisons(options)
    skipped = {
        method: reason for method in {run.method for run in runs} if (reason := why_missing(method, options.device))
    }
    for method, reason in skipped.items():
        print(f"without {method}: {reason}")
    compared = measure_in_rounds([run for run in runs if run.method not in skipped], options.rounds, options.threads)
    scaled = [] if options.skip_scaling else measure_in_rounds(scaling(options), 1, options.threads)
    fit = linear_fit([(row["n"], row["extra_bytes"]) for row in scaled]) if scaled else None
    print_table(compared + scaled)
    print_goals(compared, scaled, fit)
    output = options.output or RESULTS / f"losses_{options.device}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    machine = describe_machine(options.device, "open_clip_torch", "memeff") | {"threads": options.threads}
    machine |= {"rounds": options.rounds, "repeats": options.repeats}
    report = {"machine": machine, "skipped": skipped, "compared": compared}
    output.write_text(json.dumps(report | {"scaling": scaled, "memory_fit": fit}, indent=2) + "\n", encoding="utf-8")
    print(f"written to {output}")


if __name__ == "__main__":
    main()

"""One process of W: runs every case on its share of a joined batch and saves what it got.

`python loss_worker.py FOLDER RANK WORLD_SIZE`, all W at once. The test imports this file too, and runs the same cases
on the joined batch without torch.distributed.
"""

import re
import runpy
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from xmodal_hf import distributed
from xmodal_hf.distributed import RowShards, all_reduce_sum, exchange_sizes, gather, gather_with_grad, global_max
from xmodal_hf.losses import (
    LOSSES,
    clip_loss,
    clip_loss_with_accuracy,
    cyclic_losses,
    info_nce,
    info_nce_with_accuracy,
    sigmoid_loss,
    simcse_loss,
)

ROOT = Path(__file__).parents[2]
JOINED_ROWS = 12
FEATURES, D = 6, 5
# How the joined rows lie over the processes, for each number of processes.
SPLITS = {
    1: {"equal": [12]},
    2: {"equal": [6, 6], "unequal": [5, 7], "empty": [12, 0]},
    3: {"equal": [4, 4, 4], "unequal": [2, 7, 3], "empty": [5, 0, 7]},
}


def dtypes_of(world_size: int, split: str) -> tuple[torch.dtype, ...]:
    """The precisions of a split. Of rounding, one split of each number of processes tells as much as all of them."""
    return (torch.float64, torch.float32) if split == ("unequal" if world_size > 1 else "equal") else (torch.float64,)


class TinyTowers(nn.Module):
    """A linear tower for each named side and the scalars a case needs, so that DDP sees no unused parameter."""

    def __init__(self, sides: tuple[str, ...], scalars: tuple[str, ...], dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.towers = nn.ModuleDict({side: nn.Linear(FEATURES, D, dtype=dtype) for side in sides})
        initial = {"logit_scale": 2.0, "logit_bias": -1.0}
        self.scalars = nn.ParameterDict(
            {name: nn.Parameter(torch.tensor(initial[name], dtype=dtype)) for name in scalars}
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        out = {side: normalize(tower(batch[side]), dim=1) for side, tower in self.towers.items()}
        out |= {name: value * 1 for name, value in self.scalars.items()}
        if "logit_scale" in out:
            out["logit_scale"] = out["logit_scale"].exp()
        return out


@dataclass(frozen=True)
class Case:
    """A loss of tower outputs and the batch, and what the model must have for it."""

    loss: Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]
    sides: tuple[str, ...] = ("a", "b")
    scalars: tuple[str, ...] = ()


def _info_nce(out, batch, **options):
    return info_nce(out["a"], out["b"], out["logit_scale"], chunk_size=4, **options)


def _clip(out, batch, **options):
    return clip_loss(out["a"], out["b"], out["logit_scale"], chunk_size=4, **options)


def _clip_of_captions(out, batch, **options):
    """Sides b and c are two captions of the items a."""
    captions = torch.stack([out["b"], out["c"]], dim=1).flatten(0, 1)
    return clip_loss(out["a"], captions, out["logit_scale"], chunk_size=4, **options)


def _sigmoid(out, batch, **options):
    return sigmoid_loss(out["a"], out["b"], out["logit_scale"], out["logit_bias"], chunk_size=4, **options)


def _sigmoid_of_captions(out, batch):
    """Sides b and c are two captions of the items a, side d their negative captions."""
    captions = torch.stack([out["b"], out["c"]], dim=1).flatten(0, 1)
    ids = {"text_ids": batch["texts"][:, :2].flatten(), "extra_text_ids": batch["texts"][:, 2]}
    options = {"extra_texts": out["d"], "extra_text_weight": 1.5, "group_ids": batch["groups"], **ids}
    return sigmoid_loss(out["a"], captions, out["logit_scale"], out["logit_bias"], chunk_size=4, **options)


def _cyclip(out, batch):
    in_modal, cross_modal = cyclic_losses(out["a"], out["b"])
    return _clip(out, batch) + 0.25 * in_modal + 0.25 * cross_modal


def _hard_negatives(out, bias):
    """Biased by the rows of a process, (n, N) for all hard negatives or (n,) for the own ones."""
    return info_nce(out["a"], out["b"], 9.0, extra_keys=out["c"], extra_logit_bias=bias, chunk_size=3)


def _added_losses() -> dict[str, Callable]:
    """The losses that the guide to extensions and the example add, whose code is outside of the package."""
    page = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def margin_loss" in block)
    namespace: dict[str, Any] = {}
    with mock.patch.dict(LOSSES):
        exec(code, namespace)
    example = runpy.run_path(str(ROOT / "examples" / "custom_loss.py"))
    return {"margin": namespace["margin_loss"], "smoothed": example["smoothed_clip"]}


ADDED = _added_losses()


def _added(out, batch, name, **options):
    return ADDED[name](out["a"], out["b"], out["logit_scale"], group_ids=batch["groups"], **options)[0]


SCALE = ("logit_scale",)
CASES = {
    "added: margin": Case(lambda o, b: _added(o, b, "margin", margin=0.9), scalars=SCALE),
    "added: smoothed": Case(lambda o, b: _added(o, b, "smoothed", smoothing=0.4), scalars=SCALE),
    "info_nce": Case(_info_nce, scalars=SCALE),
    "info_nce by group": Case(lambda o, b: _info_nce(o, b, positives=b["groups"]), scalars=SCALE),
    "info_nce by mask": Case(lambda o, b: _info_nce(o, b, positives=b["mask"]), scalars=SCALE),
    "info_nce biased": Case(lambda o, b: _hard_negatives(o, b["bias"]), sides=("a", "b", "c")),
    "info_nce biased for own": Case(lambda o, b: _hard_negatives(o, 3 * b["bias"][:, 0]), sides=("a", "b", "c")),
    "clip": Case(_clip, scalars=SCALE),
    "clip by group": Case(lambda o, b: _clip(o, b, group_ids=b["groups"]), scalars=SCALE),
    "clip with several captions": Case(lambda o, b: _clip_of_captions(o, b), sides=("a", "b", "c"), scalars=SCALE),
    "clip with negative captions": Case(
        lambda o, b: _clip_of_captions(
            o,
            b,
            extra_texts=o["d"],
            extra_text_weight=1.5,
            text_ids=b["texts"][:, :2].flatten(),
            extra_text_ids=b["texts"][:, 2],
            group_ids=b["groups"],
        ),
        sides=("a", "b", "c", "d"),
        scalars=SCALE,
    ),
    "cyclip": Case(_cyclip, scalars=SCALE),
    "in-modal": Case(lambda o, b: cyclic_losses(o["a"], o["b"])[0]),
    "cross-modal": Case(lambda o, b: cyclic_losses(o["a"], o["b"])[1]),
    "sigmoid": Case(_sigmoid, scalars=("logit_scale", "logit_bias")),
    "sigmoid by group": Case(lambda o, b: _sigmoid(o, b, group_ids=b["groups"]), scalars=("logit_scale", "logit_bias")),
    "sigmoid with several captions and negative ones": Case(
        _sigmoid_of_captions, sides=("a", "b", "c", "d"), scalars=("logit_scale", "logit_bias")
    ),
    "simcse": Case(lambda o, b: simcse_loss(o["a"], o["b"], chunk_size=4)),
    "simcse supervised": Case(
        lambda o, b: simcse_loss(o["a"], o["b"], o["c"], hard_negative_weight=1.5, chunk_size=4), sides=("a", "b", "c")
    ),
    "simcse by text": Case(lambda o, b: simcse_loss(o["a"], o["b"], text_ids=b["texts"].T[:2], chunk_size=4)),
    "simcse by text supervised": Case(
        lambda o, b: simcse_loss(o["a"], o["b"], o["c"], text_ids=b["texts"].T, hard_negative_weight=1.5, chunk_size=4),
        sides=("a", "b", "c"),
    ),
}


def gather_own_with_gradient(rows: Tensor, shards: RowShards) -> Tensor:
    """Gathered rows without gradient, the own ones put back: the loss is right, its gradients are not."""
    blocks = list(gather(rows, shards).split(shards.sizes))
    blocks[distributed.rank()] = rows
    return torch.cat(blocks)


def _smoothed_of_own_rows() -> Callable:
    """The added loss as somebody writes it who forgets that there are other processes."""
    smoothed = ADDED["smoothed"]
    without = smoothed.__globals__ | {"gather_with_grad": lambda rows, shards: rows}
    wrong = types.FunctionType(smoothed.__code__, without)
    wrong.__kwdefaults__ = smoothed.__kwdefaults__
    return wrong


# What distributed losses get wrong in the wild, as (case, what to patch, with what): each must fail the comparison.
MUTANTS = {
    "added loss of own rows only": ("added: smoothed", f"{__name__}.ADDED", {"smoothed": _smoothed_of_own_rows()}),
    "gradient of own rows only": (
        "clip",
        "xmodal_hf.losses.items_and_texts.gather_with_grad",
        gather_own_with_gradient,
    ),
    "loss of own rows only": ("info_nce", "xmodal_hf.losses.cross_entropy.global_sum", lambda tensor: tensor),
    "columns of own rows only": ("clip", "xmodal_hf.losses.cross_entropy._Softmax.merge_processes", lambda self: None),
    "Gram matrices of own rows only": ("in-modal", "xmodal_hf.losses.cyclic.all_reduce_sum", lambda tensor: tensor),
}


def joined_batch(dtype: torch.dtype) -> dict[str, Tensor]:
    """The batch of all processes: features of three sides, group ids, a mask of positives and biases."""
    generator = torch.Generator().manual_seed(1)
    n = JOINED_ROWS
    batch = {side: torch.randn(n, FEATURES, generator=generator, dtype=torch.float64).to(dtype) for side in "abcd"}
    batch["groups"] = torch.tensor([7, 1, -3, 7, 1, 2, 7, 4, 4, -3, 0, 1])
    batch["texts"] = torch.randint(0, 9, (n, 3), generator=torch.Generator().manual_seed(2))
    batch["texts"][::5, 2] = -1  # rows without a hard negative
    batch["mask"] = torch.eye(n, dtype=torch.bool) | (torch.rand(n, n, generator=generator) < 0.2)
    batch["bias"] = torch.randn(n, n, generator=generator, dtype=torch.float64).to(dtype)
    return batch


def run_case(case: Case, batch: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Loss and parameter gradients, averaged by DDP where there are several processes."""
    model: nn.Module = TinyTowers(case.sides, case.scalars, dtype)
    wrapped = DistributedDataParallel(model) if dist.is_initialized() else model
    loss = case.loss(wrapped(batch), batch)
    loss.backward()
    return {"loss": loss.detach()} | {name: parameter.grad for name, parameter in model.named_parameters()}


def run_mutant(name: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    case, target, replacement = MUTANTS[name]
    with mock.patch(target, replacement):
        return run_case(CASES[case], batch, torch.float64)


def run_accuracies(batch: dict[str, Tensor]) -> Tensor:
    """Of info_nce and both directions of clip_loss, by group."""
    queries, keys = normalize(batch["a"]), normalize(batch["a"] + 0.8 * batch["b"])
    groups = batch["groups"]
    single = info_nce_with_accuracy(queries, keys, 5.0, positives=groups)[1:]
    return torch.stack([*single, *clip_loss_with_accuracy(queries, keys, 5.0, group_ids=groups)[1:]])


def run_collectives(shards: RowShards) -> dict[str, object]:
    """Each collective on rows that know where they come from."""
    rank = distributed.rank()
    rows = torch.arange(JOINED_ROWS * 2, dtype=torch.float64).view(-1, 2)[shards.own].requires_grad_()
    gathered = gather_with_grad(rows)
    (gathered * (rank + 1)).sum().backward()  # weights 1..W: the gradient of each row is their sum
    total = (value := torch.tensor(float(rank + 1), requires_grad=True)) * 1
    (all_reduce_sum(total) * (rank + 1)).backward()
    return {
        "rank and size": (rank, distributed.world_size()),
        "sizes": exchange_sizes([len(rows), 3], rows.device),
        "own": shards.own,
        "gathered": gathered.detach(),
        "gathered flags": gather(rows[:, 0] > 5, shards),
        "row gradient": rows.grad,
        "sum": all_reduce_sum(total).item(),
        "sum gradient": value.grad.item(),
        "maximum": global_max(torch.tensor([rank, -rank])),
    }


def run_errors() -> dict[str, str]:
    """Mistakes that only all processes together can see, raised on each of them."""
    rank = distributed.rank()
    calls = {
        "embedding size": lambda: clip_loss(torch.ones(2, 4 + rank), torch.ones(2, 4 + rank), 1.0),
        "empty": lambda: cyclic_losses(torch.ones(0, 4), torch.ones(0, 4)),
    }
    messages = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            messages[name] = str(error)
    return messages


def main(folder: Path, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size)
    results: dict[object, object] = {"errors": run_errors()}
    for split, sizes in SPLITS[world_size].items():
        shards = RowShards(tuple(sizes))
        results["collectives", split] = run_collectives(shards)
        for dtype in dtypes_of(world_size, split):
            batch = {name: value[shards.own] for name, value in joined_batch(dtype).items()}
            for name, case in CASES.items():
                results[name, split, dtype] = run_case(case, batch, dtype)
        batch = {name: value[shards.own] for name, value in joined_batch(torch.float64).items()}
        results["accuracies", split] = run_accuracies(batch)
        for name in MUTANTS:
            results[name, split] = run_mutant(name, batch)
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

"""What the loss tests share: seeded embeddings, a comparison that refuses vacuous passes, a memory meter."""

import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROUNDING = 1e-13  # fp64's epsilon, 2e-16, times logit scales of up to 100 and a few terms


@pytest.fixture(scope="session")
def unit_rows() -> Callable[..., Tensor]:
    def build(n: int, d: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1).to(dtype)

    return build


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected value."""
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return ((actual.double() - expected.double()).abs().max() / scale.double()).item()


@pytest.fixture(scope="session")
def assert_agree() -> Callable[..., None]:
    """Compares values and gradients of two losses of the same inputs; zero gradients are refused unless allowed."""

    def check(
        actual: Callable[..., Tensor],
        expected: Callable[..., Tensor],
        inputs: Sequence[Tensor],
        tolerance: float,
        allow_zero: bool = False,
    ) -> None:
        leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
        wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
        value, oracle = actual(*leaves), expected(*wide)
        assert abs(value.item() - oracle.item()) <= tolerance * max(1.0, abs(oracle.item()))
        grads = torch.autograd.grad(value, leaves)
        for grad, wanted in zip(grads, torch.autograd.grad(oracle, wide), strict=True):
            if allow_zero:
                # Where probabilities meet their targets, what is left is the rounding of fp64 times the logit scale.
                assert (grad - wanted).abs().max() <= tolerance * wanted.abs().max() + ROUNDING
                continue
            assert wanted.abs().max() > 0, "a vanishing gradient compares nothing"
            assert relative_difference(grad, wanted) < tolerance

    return check


class MemoryMeter(TorchDispatchMode):
    """Records the largest storage made and the peak of all storages made and still alive, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.peak = self._alive = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._record(leaf.untyped_storage(), known)
        return result

    def _record(self, storage: torch.UntypedStorage, known: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in known or key in self._seen:
            return
        self._seen.add(key)
        self._alive += size
        self.largest, self.peak = max(self.largest, size), max(self.peak, self._alive)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._alive -= size


@pytest.fixture
def memory_meter() -> MemoryMeter:
    return MemoryMeter()

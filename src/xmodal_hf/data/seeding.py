"""Random numbers that belong to one row in one epoch, whichever process or worker asks for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class EpochIndex:
    """Position in the data: number of the pass, and index of the row."""

    epoch: int
    index: int


def row_generator(seed: int, position: EpochIndex, *, stream: int) -> np.random.Generator:
    """A generator that depends on its arguments only; each use of randomness has its own `stream` number."""
    sequence = np.random.SeedSequence((seed, position.epoch, position.index), spawn_key=(stream,))
    return np.random.Generator(np.random.Philox(sequence))


def epoch_permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """An order of `range(length)` that depends on its arguments only."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch))))
    return generator.permutation(length)

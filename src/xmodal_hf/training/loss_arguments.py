"""Options that come from the dictionaries of the losses: which loss it is, and its weights."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TypeVar

from ..losses.registry import Loss, SentenceLoss, Weight
from ..options import option

T = TypeVar("T")
Losses = Mapping[str, Loss] | Mapping[str, SentenceLoss]


def describe_losses(losses: Losses) -> str:
    """Return the names of losses and what each is, for a help text."""
    return "; ".join(f"{name}: {loss.description}" for name, loss in losses.items())


def _missing_weights(class_: type, losses: Losses) -> dict[str, Weight]:
    """Return the weights of losses that are no options of a class.

    Raises:
        ValueError: If two losses have different weights of one name.
    """
    weights: dict[str, Weight] = {}
    for name, weight in (item for loss in losses.values() for item in loss.weights.items()):
        if weights.setdefault(name, weight) != weight:
            raise ValueError(f"two losses have a weight {name!r} that differs: it is one option, so rename one")
    return {name: weight for name, weight in weights.items() if not hasattr(class_, name)}


def add_weights(losses: Losses) -> Callable[[type[T]], type[T]]:
    """Return a decorator, for use below `@dataclass`, that adds a field for each weight of some losses."""

    def add_fields(class_: type[T]) -> type[T]:
        for name, weight in _missing_weights(class_, losses).items():
            class_.__annotations__[name] = float
            setattr(class_, name, option(weight.default, weight.description))
        return class_

    return add_fields


def with_weights_of(class_: type, losses: Losses) -> type:
    """Return a class of options with a field for each weight of the losses, those that a program has added included."""
    added = _missing_weights(class_, losses)
    fields = [(name, float, option(weight.default, weight.description)) for name, weight in added.items()]
    namespace = {"__doc__": class_.__doc__}  # the heading of its options in the help
    return (
        dataclasses.make_dataclass(class_.__name__, fields, bases=(class_,), namespace=namespace) if fields else class_
    )

"""Packages whose names are imported when they are first used, so that importing the package costs nothing (PEP 562)."""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, Iterable[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions `__getattr__` and `__dir__` of a package.

    Args:
        package: Name of the package.
        names: Names that each module of the package defines, by the name of the module.

    Example:
        >>> get, list_names = lazy_names("xmodal_hf", {"options": ["parse_dims"]})
        >>> get("parse_dims")("64,32"), list_names()
        ([64, 32], ['parse_dims'])
    """
    module_of = {name: module for module, defined in names.items() for name in defined}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{module_of[name]}"), name)

    return get, lambda: sorted(module_of)

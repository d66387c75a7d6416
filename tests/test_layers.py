"""Layers without back arrows: what a module imports, at its top or inside a function, lies in its own layer or below.

The arrows are read from the source. Imports for type checkers alone count too: a name in an annotation is a dependency
of its reader.
"""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[1] / "src"
SCRIPTS = Path(__file__).parents[1] / "training_scripts"
# From the top down; layers of one entry do not import each other.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("training_scripts",),
    ("study",),
    ("hub",),
    ("training", "metrics"),
    ("evaluation",),
    ("features",),
    ("data", "objectives"),
    ("losses",),
    ("distributed", "models"),
    # What all of the package may use, and which uses nothing of it but each other.
    ("options", "commands", "messages", "shipped", "_auto_classes", "_lazy", "__init__"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
BASE = len(LAYERS) - 1


def module_name(path: Path) -> str:
    """The dotted name of a file of the package, or of a script."""
    if SCRIPTS in path.parents:
        return f"training_scripts.{path.stem}"
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted([*SOURCES.rglob("*.py"), *SCRIPTS.glob("*.py")])}


def layer_of(module: str) -> str:
    """The layer of a module of the package, or of a script."""
    parts = module.split(".")
    if parts[0] == "training_scripts":
        return parts[0]
    return parts[1] if len(parts) > 1 else "__init__"


def imported_modules(source: str, package: list[str]) -> Iterator[str]:
    """Every module of the package that some source imports, wherever in it; `package` is that of the source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                # "from . import x" imports a module, "from .x import y" may.
                longer = ".".join([*base, alias.name])
                yield longer if longer in MODULES else ".".join(base)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def arrows(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    return {name for name in imported_modules(path.read_text(encoding="utf-8"), package) if name in MODULES} - {module}


def points_upwards(source: str, target: str) -> bool:
    """Whether an import leads to a higher layer, or to another layer beside."""
    if source == target or source == "__init__":  # the package's own module exposes the models
        return False
    return LEVEL[target] < LEVEL[source] or (LEVEL[target] == LEVEL[source] != BASE)


@pytest.mark.parametrize("layer", [name for names in LAYERS for name in names])
def test_no_arrow_points_upwards(layer: str) -> None:
    modules = [module for module in MODULES if layer_of(module) == layer]
    assert modules, f"no module is in the layer {layer}: take it out of LAYERS"
    upwards = [
        f"{module} imports {target}"
        for module in modules
        for target in sorted(arrows(module))
        if points_upwards(layer, layer_of(target))
    ]
    assert not upwards, upwards


def test_every_module_has_a_layer() -> None:
    assert {layer_of(module) for module in MODULES} <= LEVEL.keys()


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter({module: arrows(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_imports_are_found_wherever_they_are() -> None:
    """The check is not vacuous: at the top, inside a function, absolute, relative, of a module or of a name in it."""
    source = (
        "from ..training.loop import run_phase\n"
        "def f():\n    from xmodal_hf.training import phases\n    import xmodal_hf.hub.publish\n"
        "if TYPE_CHECKING:\n    from . import suite\n"
    )
    assert set(imported_modules(source, ["xmodal_hf", "evaluation"])) == {
        "xmodal_hf.training.loop",
        "xmodal_hf.training.phases",
        "xmodal_hf.hub.publish",
        "xmodal_hf.evaluation.suite",
    }
    assert points_upwards("evaluation", "training") and not points_upwards("training", "evaluation")
    assert points_upwards("models", "distributed") and not points_upwards("options", "commands")

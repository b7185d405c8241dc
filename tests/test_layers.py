"""Who may import whom: the layers, written down once here, and no circle anywhere, imports inside functions included."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tinyroberta"
Graph = dict[str, set[str]]

# From the ground up. A room of a layer imports from layers below it, and a folder is one room; rooms of one layer do not know
# each other.
LAYERS = (
    ("errors", "terminal"),
    ("progress", "columns"),
    ("weights",),  # files, and the names in them
    ("backends",),  # which know no configuration; it knows the activations that they have
    ("config", "losses", "outputs"),
    ("keywords", "inputs", "tensors", "plan"),
    ("cache", "surgery", "traces"),
    ("forward", "generation"),
    ("heads", "call", "tap"),
    ("models",),
    ("family",),
    ("encoder_decoder",),
    ("auto",),
    ("demo", "inspect", "convert", "numerics"),
    ("tasks",),
    ("tinyroberta",),  # __init__.py: the public names
    ("serve", "bulk"),
    ("cli",),
    ("__main__",),
)
HEIGHT = {room: height for height, layer in enumerate(LAYERS) for room in layer}


def imports(folder: Path, package: str = "tinyroberta") -> Graph:
    """The modules of a package and the modules that each imports: a module by its name, or for a name that is taken from it."""
    paths = {".".join((package, *path.relative_to(folder).with_suffix("").parts)): path for path in sorted(folder.rglob("*.py"))}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}

    def read(name: str, path: Path) -> Iterator[str]:
        around = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = [*around[: len(around) - node.level + 1]] if node.level else []
                source = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield f"{source}.{alias.name}" if f"{source}.{alias.name}" in paths else source

    return {name: {other for other in read(name, path) if other in paths and other != name} for name, path in paths.items()}


def room(module: str) -> str:
    """The file or folder right under the package that a module lies in; the package itself."""
    return module.split(".")[1] if "." in module else module


def wrong(graph: Graph) -> list[str]:
    """The imports that do not run downward from room to room."""
    return [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if room(module) != room(other) and HEIGHT[room(module)] <= HEIGHT[room(other)]
    ]


def test_every_room_has_its_layer() -> None:
    assert {room(module) for module in imports(PACKAGE)} == set(HEIGHT)


def test_no_import_runs_upward() -> None:
    assert wrong(imports(PACKAGE)) == []


def test_no_imports_run_in_a_circle() -> None:
    TopologicalSorter(imports(PACKAGE)).prepare()  # raises CycleError, which names them


def test_a_circle_and_an_import_upward_are_seen(tmp_path: Path) -> None:
    for name, text in (
        ("__init__", ""), ("inputs", "def f():\n    from . import forward\n"), ("forward", "from .inputs import f\n"),
        ("backends/__init__", ""), ("backends/numpy", "import tinyroberta.models\nfrom ..errors import Error\n"),
        ("models", ""), ("errors", ""),
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.py").write_text(text)
    graph = imports(tmp_path)
    assert graph["tinyroberta.backends.numpy"] == {"tinyroberta.errors", "tinyroberta.models"}
    told = ["tinyroberta.backends.numpy imports tinyroberta.models", "tinyroberta.inputs imports tinyroberta.forward"]
    assert sorted(wrong(graph)) == told
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()

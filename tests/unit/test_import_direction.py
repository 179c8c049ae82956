"""pipeline -> stages -> trainer -> manifests: a package imports from itself and from those after it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("pipeline", "stages", "trainer", "manifests")
FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
# What a layer must not know; of `manifests`, functions may import the libraries of the archive forms.
FOREIGN = {
    "stages": {"click", "rich"},
    "trainer": {"click", "rich"},
    "manifests": {"click", "rich", "torch", "torchvision", "safetensors", "zarr", "webdataset"},
}
INSIDE_FUNCTIONS = {"zarr", "webdataset"}


def imports(tree: ast.Module, module: str) -> Iterator[tuple[str, bool]]:
    """Every module imported by `module`, absolute, and whether it is at the time of its own import."""

    def visit(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            # `from package import module` imports the module as well.
            yield from ((f"{name}.{alias.name}", at_once) for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for statement in node.body:
                yield from visit(statement, False)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from visit(child, at_once and not inside)

    yield from visit(tree, True)


def violations(tree: ast.Module, layer: str, module: str) -> list[str]:
    below = LAYERS[LAYERS.index(layer) :]
    found = []
    for name, at_once in imports(tree, module):
        root, _, rest = name.partition(".")
        upwards = root == "hkdpipe" and rest.split(".")[0] not in below
        foreign = root in FOREIGN.get(layer, ()) and (at_once or root not in INSIDE_FUNCTIONS)
        if upwards or foreign:
            found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    # A package's __init__ is named after its folder, and `.` is the package itself.
    module = ".".join(("hkdpipe", *parts))
    assert violations(ast.parse(path.read_text(encoding="utf-8")), parts[0], module) == []


def test_there_are_files_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(LAYERS)


@pytest.mark.parametrize(
    ("layer", "source", "found"),
    [
        ("trainer", "from hkdpipe.stages.train import train", ["hkdpipe.stages.train.train"]),
        ("trainer", "import hkdpipe.pipeline.cli", ["hkdpipe.pipeline.cli"]),
        ("trainer", "from hkdpipe import stages", ["hkdpipe.stages"]),
        ("trainer", "from ..stages import train", ["hkdpipe.stages.train"]),
        ("trainer", "from .. import stages", ["hkdpipe.stages"]),
        ("trainer", "from .loop import fit", []),
        ("trainer", "def f():\n  from hkdpipe.stages import train", ["hkdpipe.stages.train"]),
        ("stages", "from hkdpipe.trainer.loop import fit", []),
        ("stages", "def f():\n  import click", ["click"]),
        ("manifests", "def f():\n  import torch", ["torch"]),
        ("manifests", "import zarr.codecs", ["zarr.codecs"]),
        ("manifests", "def f():\n  from zarr.codecs import Crc32cCodec", []),
        ("manifests", "if TYPE_CHECKING:\n  import zarr", []),
        ("manifests", "class A:\n  import zarr", ["zarr"]),
    ],
)
def test_the_check_sees(layer: str, source: str, found: list[str]) -> None:
    assert violations(ast.parse(source), layer, f"hkdpipe.{layer}.module") == found

"""pipeline -> stages -> trainer -> manifests: a floor imports from itself and from those after it.

The package hkdpipe itself is the roof: it may import any floor, and none imports it.

Within a floor, the rooms import one way: the graph of who imports from whom has no cycle. A file that lies in
no room stands above the rooms of its floor. Nor do strings point upwards: the floors below the command line
name none of its commands, options and keys; `pipeline/error_wording.py` puts those into what they say.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest

from hkdpipe.pipeline.cli import COMMANDS, cli
from hkdpipe.pipeline.configuration.config import sections

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
# Rooms whose strings are still to be mended; none is to be added.
NOT_YET: set[str] = set()


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


def module_of(path: Path) -> str:
    """A package's __init__ is named after its folder, and `.` is the package itself."""
    return ".".join(("hkdpipe", *path.relative_to(ROOT).with_suffix("").parts))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    layer = path.relative_to(ROOT).parts[0]
    assert violations(ast.parse(path.read_text(encoding="utf-8")), layer, module_of(path)) == []


def rooms(layer: str) -> set[str]:
    return {path.name for path in (ROOT / layer).iterdir() if (path / "__init__.py").is_file()}


def room_graph(layer: str) -> dict[str, set[str]]:
    """Which rooms each room of a floor imports from; the files in no room are the room ''."""
    known = rooms(layer)
    graph: dict[str, set[str]] = {room: set() for room in ("", *known)}

    def room_of(name: str) -> str | None:
        root, of, *rest = [*name.split("."), ""]
        if (root, of) != ("hkdpipe", layer):
            return None
        return rest[0] if rest[0] in known else ""

    for path in (path for path in FILES if path.relative_to(ROOT).parts[0] == layer):
        here = room_of(module_of(path))
        assert here is not None
        for name, _ in imports(ast.parse(path.read_text(encoding="utf-8")), module_of(path)):
            there = room_of(name)
            if there is not None and there != here:
                graph[here].add(there)
    return graph


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The rooms of a cycle in the order of their imports; [] where there is none."""
    done: set[str] = set()

    def visit(room: str, way: list[str]) -> list[str]:
        if room in way:
            return [*way[way.index(room) :], room]
        if room in done:
            return []
        for other in sorted(graph[room]):
            if found := visit(other, [*way, room]):
                return found
        done.add(room)
        return []

    return next((found for room in sorted(graph) if (found := visit(room, []))), [])


@pytest.mark.parametrize("layer", LAYERS)
def test_the_rooms_of_a_floor_import_one_way(layer: str) -> None:
    assert cycle(room_graph(layer)) == []


@pytest.mark.parametrize("layer", LAYERS)
def test_no_room_is_a_hall(layer: str) -> None:
    """About a dozen files at most, so that a newcomer opens the right one first."""
    folders = {path.parent for path in FILES if path.relative_to(ROOT).parts[0] == layer}
    full = {str(folder): count for folder in folders if (count := len([*folder.glob("*.py")])) > 14}
    assert full == {}


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": {"b"}, "b": set()}, []),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, ["a", "b", "a"]),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
    ],
)
def test_the_check_of_rooms_sees(graph: dict[str, set[str]], found: list[str]) -> None:
    assert cycle(graph) == found


def any_of(words: Iterable[str]) -> str:
    """One of the words, the longest first; or what an f-string puts in its place."""
    return rf"(?:{'|'.join(map(re.escape, sorted(words, key=len, reverse=True)))}|\{{\}})"


def upward_words() -> re.Pattern[str]:
    """The commands, options and keys of the command line."""
    commands = [command for name in COMMANDS if (command := cli.get_command(click.Context(cli), name))]
    parameters = [parameter for command in commands for parameter in command.params]
    options = {option.removeprefix("--") for parameter in parameters for option in parameter.opts}
    keys = [
        rf"(?<![\w.]){section}\.{any_of(field.name for field in dataclasses.fields(settings))}"
        for section, settings in sections().items()
    ]
    return re.compile("|".join([rf"\bhkdpipe {any_of(COMMANDS)}", rf"--{any_of(options)}(?!\w)", *keys]))


UPWARD = upward_words()


def strings(tree: ast.Module) -> Iterator[str]:
    """Every string with {} for what is put into it, and every list as the command that its words may make."""
    for node in ast.walk(tree):
        parts = {ast.JoinedStr: "values", ast.List: "elts", ast.Tuple: "elts"}.get(type(node))
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif parts is not None:
            values = [part.value if isinstance(part, ast.Constant) else "{}" for part in getattr(node, parts)]
            yield ("" if parts == "values" else " ").join(map(str, values))


def upward(tree: ast.Module) -> set[str]:
    """What its strings name of the command line. A module that is run by itself has options of its own."""
    named = {match[0] for text in strings(tree) for match in UPWARD.finditer(text)}
    by_itself = any("python -m" in text for text in strings(tree))
    return {name for name in named if not (by_itself and name.startswith("--"))}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_strings_point_downwards(path: Path) -> None:
    layer, room, *_ = path.relative_to(ROOT).parts
    if layer != "pipeline" and f"{layer}/{room}" not in NOT_YET:
        assert upward(ast.parse(path.read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("raise UsageError('--class: got 3')", {"--class"}),
        ("f'{x}: take a smaller generation.count, or --set'", {"generation.count", "--set"}),
        ("f'generation.{error}: got {x!r}'", {"generation.{}"}),
        ("f'--{name} is missing'", {"--{}"}),
        ("def f():\n  'As `hkdpipe sample` does.'", {"hkdpipe sample"}),
        ("shlex.join(['hkdpipe', 'train', *more, '--out', str(out)])", {"hkdpipe train", "--out"}),
        ("f'hkdpipe train-teacher {x}'", {"hkdpipe train-teacher"}),
        ("'--classes, --oneliner and ---, hkdpipe[plots], hkdpipe.trainer, training.loop'", set()),
        ("import hkdpipe.stages.training\ntraining.budget  # --class", set()),
    ],
)
def test_the_check_of_strings_sees(source: str, found: set[str]) -> None:
    assert upward(ast.parse(source)) == found


def test_there_are_files_to_check() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(LAYERS)


@pytest.mark.parametrize(
    ("layer", "source", "found"),
    [
        (
            "trainer",
            "from hkdpipe.stages.training.train import train",
            ["hkdpipe.stages.training.train.train"],
        ),
        ("trainer", "import hkdpipe.pipeline.cli", ["hkdpipe.pipeline.cli"]),
        ("pipeline", "import hkdpipe", ["hkdpipe"]),
        ("pipeline", "from hkdpipe import load_teacher", ["hkdpipe.load_teacher"]),
        ("pipeline", "from hkdpipe.calls import train", ["hkdpipe.calls.train"]),
        ("trainer", "from hkdpipe import stages", ["hkdpipe.stages"]),
        ("trainer", "from ..stages import train", ["hkdpipe.stages.train"]),
        ("trainer", "from .. import stages", ["hkdpipe.stages"]),
        ("trainer", "from .loop import fit", []),
        ("trainer", "def f():\n  from hkdpipe.stages import train", ["hkdpipe.stages.train"]),
        ("stages", "from hkdpipe.trainer.loop.training_loop import fit", []),
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

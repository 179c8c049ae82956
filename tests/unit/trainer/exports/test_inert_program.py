"""Programs of torch.export: run as torch runs them, and nothing of a hostile or damaged one runs."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from edm_fixtures import SNAPSHOTS
from torch import nn

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.exports.inert_program import InertProgram
from hkdpipe.trainer.exports.programs import write_program
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.hkd.hkd_settings import KoopmanSettings
from hkdpipe.trainer.methods.kd import KD
from hkdpipe.trainer.networks import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.teacher import load_teacher

CPU = torch.device("cpu")
GRAPH, WEIGHTS = "archive/models/model.json", "archive/data/weights/model_weights_config.json"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of a small student without attention."""
    arch = Architecture(8, 1, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=())
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    write_program(HKD.from_teacher(PreconditionedUNet(arch), KoopmanSettings()).eval(), path)
    return path


def rewritten(written: Path, path: Path, changes: dict[str, Change | bytes], **how: Any) -> Path:
    """The program with some members changed, or replaced or added as bytes."""
    with zipfile.ZipFile(written) as old, zipfile.ZipFile(path, "w", **how) as new:
        held = {name: old.read(name) for name in old.namelist()}
        for name, change in changes.items():
            if isinstance(change, bytes):
                held[name] = change
            else:
                value = json.loads(held[name])
                change(value)
                held[name] = json.dumps(value).encode()
        for name, data in held.items():
            new.writestr(name, data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as raised:
        InertProgram(path, CPU).sample(torch.zeros(2, 1, 8, 8))
    begin, cause = str(raised.value).split(": ", 1)
    assert begin == str(path)
    assert cause.isprintable()
    assert len(cause) < 240
    return cause


def nodes(program: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = program["graph_module"]["graph"]["nodes"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", SNAPSHOTS)
@pytest.mark.parametrize("method", [HKD, KD])
def test_every_kind_of_network_is_read(
    name: str, method: type[HKD | KD], tmp_path: Path, randomise: Callable[[nn.Module], None]
) -> None:
    """Has the operators of them all."""
    teacher = load_teacher(str(SNAPSHOTS[name])).network
    if teacher.arch.preconditioning != "edm" and method is HKD:
        pytest.skip("HKD takes EDM's preconditioning alone")
    student = method.from_teacher(teacher, KoopmanSettings() if method is HKD else None).eval()
    randomise(student)
    write_program(student, tmp_path / "model.pt2")
    noise = torch.randn(3, *student.image_shape)
    labels = torch.eye(student.label_dim)[:3] if student.label_dim else None
    found = InertProgram(tmp_path / "model.pt2", CPU).sample(noise, labels)
    expected = student.sample(noise, labels)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Marker:
    """A pickle that leaves a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_nothing_in_a_file_is_executed(written: Path, tmp_path: Path) -> None:
    """Neither a pickle nor an expression, both of which torch's own loader runs."""
    ran = tmp_path / "ran"
    hostile = f"__import__('pathlib').Path({str(ran)!r}).touch()"

    def express(program: dict[str, Any]) -> None:
        for value in program["graph_module"]["graph"]["sym_int_values"].values():
            value["as_expr"]["expr_str"] = hostile

    path = rewritten(written, tmp_path / "expression.pt2", {GRAPH: express})
    noise = torch.randn(2, 1, 8, 8)
    assert torch.equal(InertProgram(path, CPU).sample(noise), InertProgram(written, CPU).sample(noise))
    assert not ran.exists()
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever torch says once it has run it
        torch.export.load(path)
    assert ran.exists()
    ran.unlink()

    path = rewritten(
        written, tmp_path / "inputs.pt2", {"archive/data/sample_inputs/model.pt": pickle.dumps(Marker(ran))}
    )
    InertProgram(path, CPU).sample(noise)

    def as_pickle(weights: dict[str, Any]) -> None:
        next(iter(weights["config"].values()))["use_pickle"] = True

    values = {WEIGHTS: as_pickle, "archive/data/weights/weight_0": pickle.dumps(Marker(ran))}
    assert "in a pickle; accepted: raw ones" in refusal(rewritten(written, tmp_path / "weights.pt2", values))
    assert not ran.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.add.out",
        "torch.ops.higher_order.cond",
        "torch.load",
        "builtins.eval",
        "_operator.getitem",
        "math.sqrt",
        "",
        None,
        7,
    ],
)
def test_other_operators_are_refused(written: Path, tmp_path: Path, target: Any) -> None:
    def change(program: dict[str, Any]) -> None:
        nodes(program)[5]["target"] = target

    cause = refusal(rewritten(written, tmp_path / "model.pt2", {GRAPH: change}))
    assert cause == f"uses the operator '{target}', which no model of hkdpipe's does"


def later(program: dict[str, Any]) -> None:
    nodes(program).reverse()


def graph_argument(program: dict[str, Any]) -> None:
    nodes(program)[0]["inputs"][0]["arg"] = {"as_graph": {"name": "f"}}


def other_shape(program: dict[str, Any]) -> None:
    program["graph_module"]["graph"]["tensor_values"]["noise"]["sizes"].pop()


def other_version(program: dict[str, Any]) -> None:
    program["schema_version"]["major"] = 9


def other_size(program: dict[str, Any]) -> None:
    """Of what `full` makes: not as many as there is noise."""
    full = next(node for node in nodes(program) if node["target"] == "torch.ops.aten.full.default")
    full["inputs"][0]["arg"] = {"as_ints": [5]}


def beyond(weights: dict[str, Any]) -> None:
    meta = next(iter(weights["config"].values()))["tensor_meta"]
    meta["sizes"][0]["as_int"] *= 1_000_000


@pytest.mark.parametrize(
    ("member", "change", "message"),
    [
        (GRAPH, later, "uses '.*' before it is computed"),
        (GRAPH, graph_argument, "has an argument of the kind 'as_graph', which no model"),
        (GRAPH, other_shape, r"inputs {'noise': \[1, 8\]}; accepted: 'noise'"),
        (GRAPH, other_version, "its format has the version 9; accepted: 8"),
        (GRAPH, other_size, "cannot be run"),
        (WEIGHTS, beyond, "not a readable program .*out of bounds"),
        (GRAPH, b"{", "not a readable program"),
        (GRAPH, b"[" * 100_000, "not a readable program"),
        (GRAPH, b"[]", "not a readable program"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_a_student_is_one_line(
    written: Path, tmp_path: Path, member: str, change: Change | bytes, message: str
) -> None:
    path = rewritten(written, tmp_path / "model.pt2", {member: change})
    with pytest.raises(InputError, match=message):
        InertProgram(path, CPU).sample(torch.zeros(2, 1, 8, 8))
    refusal(path)


def test_other_files_are_one_line(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    assert refusal(path) == "no such model; accepted: a program of hkdpipe's export"
    path.mkdir()
    assert "not a readable program" in refusal(path)
    path.rmdir()
    path.write_bytes(b"text")
    assert "not a readable program" in refusal(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"")
    assert refusal(path) == "not a program of torch.export: has no models/model.json"
    rewritten(written, path, {}, compression=zipfile.ZIP_DEFLATED)
    assert refusal(path) == "is compressed; torch.export's files are not"


def test_damaged_files_give_one_line_or_images(written: Path, tmp_path: Path) -> None:
    """Values in the graph changed at random, and files cut short: no other error than InputError."""
    generator = random.Random(0)
    with zipfile.ZipFile(written) as file:
        text = file.read(GRAPH).decode()
    program = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def visit(value: Any) -> None:
        for key, below in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            if isinstance(below, dict | list):
                visit(below)

    visit(program["graph_module"]["signature"])
    for node in nodes(program):
        node["metadata"] = {}
        visit(node)
    path, refused = tmp_path / "model.pt2", 0
    for _ in range(60):
        holder, key = generator.choice(places)
        before, holder[key] = holder[key], generator.choice([None, -1, 100_000, 2.5, "x", [], {}, True, [[]]])
        rewritten(written, path, {GRAPH: json.dumps(program).encode()})
        holder[key] = before
        with contextlib.suppress(InputError):
            InertProgram(path, CPU).sample(torch.zeros(2, 1, 8, 8))
            continue
        refused += 1
    assert refused > 20
    whole = written.read_bytes()
    for size in generator.sample(range(len(whole)), 10):
        path.write_bytes(whole[:size])
        refusal(path)

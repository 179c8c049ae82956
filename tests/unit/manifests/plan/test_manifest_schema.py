"""manifest.schema.json, which ships, takes the manifests that are written and refuses broken ones."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.manifests.plan.plan import Plan, ShardRecord

Values = dict[str, Any]
SCHEMA = json.loads(resources.files("hkdpipe.manifests.plan").joinpath("manifest.schema.json").read_text())


KINDS = [
    ("float16", "states", "none"),
    ("bfloat16", "states", "none"),
    ("float32", "residual", "lz4"),
    ("float16", "quantised", "zstd"),
]


@pytest.fixture(params=KINDS, ids="-".join)
def manifest(tmp_path: Path, plan: Plan, write: Any, request: pytest.FixtureRequest) -> Values:
    dtype, encoding, codec = request.param
    write(tmp_path, dataclasses.replace(plan, dtype=dtype, encoding=encoding, codec=codec))
    values: Values = json.loads((tmp_path / "manifest.json").read_text())
    return values


def test_it_is_a_schema_that_takes_what_is_written(manifest: Values) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    Draft202012Validator(SCHEMA).validate(manifest)


def paths(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where each key of each table with fixed keys stands."""
    found: list[tuple[Any, ...]] = []
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        found.append((*path, key))
        if isinstance(value, dict) and key not in ("architecture", "fingerprint"):
            found += paths(value, (*path, key))
    return found


def broken(manifest: Values, path: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Values:
    copy: Values = json.loads(json.dumps(manifest))
    parent: Any = copy
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return copy


def remove(parent: Any, key: Any) -> None:
    del parent[key]


def nonsense(parent: Any, key: Any) -> None:
    parent[key] = -1.5


def addition(parent: Any, key: Any) -> None:
    parent[key + "_"] = 0


FREE = {"architecture", "source", "licence", "dataset"}
OPTIONAL = {"classes", "labels", "encoding", "offset", "stride"}


def test_whatever_is_missing_wrong_or_added_is_refused(manifest: Values) -> None:
    validator = Draft202012Validator(SCHEMA)
    manifest["shards"] = manifest["shards"][:1]
    places = paths({"plan": manifest["plan"], "sha256": ""}) + [
        ("shards", 0, *path) for path in paths(manifest["shards"][0])
    ]
    assert len(places) > 30
    for path in places:
        # A quantised archive is a compressed one.
        optional = OPTIONAL if manifest["plan"].get("encoding") == "quantised" else {*OPTIONAL, "codec"}
        assert validator.is_valid(broken(manifest, path, remove)) == (path[-1] in optional), path
        assert validator.is_valid(broken(manifest, path, nonsense)) == (path[-1] in FREE), path
        assert not validator.is_valid(broken(manifest, path, addition)), path


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("plan", "format_version"), 2),
        (("plan", "form"), "hdf5"),
        (("plan", "dtype"), "int8"),
        (("plan", "shape"), [3, 32]),
        (("plan", "seed"), 2**64),
        (("plan", "sigmas"), [0.0]),
        (("plan", "sampler", "solver"), "rk4"),
        (("plan", "classes"), [1, 1]),
        (("plan", "encoding"), "delta"),
        (("plan", "codec"), "gzip"),
        (("plan", "origin"), "elsewhere"),
        (("shards", 0, "sha256"), "ab" * 31),
    ],
)
def test_it_refuses_what_the_reader_refuses(manifest: Values, path: tuple[Any, ...], value: Any) -> None:
    wrong = broken(manifest, path, lambda parent, key: parent.__setitem__(key, value))
    assert not Draft202012Validator(SCHEMA).is_valid(wrong)
    with pytest.raises(InputError, match=str(path[-1])):
        parse(wrong)


def parse(values: Values) -> None:
    Plan.from_json(values["plan"], Path("manifest.json"))
    ShardRecord.from_json(values["shards"][0], Path("manifest.json"))

"""manifest.schema.json, which ships, takes what is written and otherwise what the reader takes."""

import copy
import dataclasses
import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from hkdpipe.manifests.archive.contents import parse_manifest
from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.manifests.plan.plan import Plan, ShardRecord

Values = dict[str, Any]
SCHEMA = json.loads(resources.files("hkdpipe.manifests.plan").joinpath("manifest.schema.json").read_text())
JUDGE = Draft202012Validator(SCHEMA)

KINDS = [
    ("float16", "states", "none"),
    ("bfloat16", "states", "none"),
    ("float32", "residual", "lz4"),
    ("float16", "quantised", "zstd"),
]
REPLACEMENTS = [None, True, -1.5, -1, 0, 1, 7, 1.5, 10**6 + 1, 2**63, 2**64, [], [1.0], [0.0], [1, 1]]
REPLACEMENTS += [[2, 3], [2, 3, 4], [3, 0.5, 0], {}, {"file": "x"}, "", "zarr", "hdf5", "float16", "bfloat16"]
REPLACEMENTS += ["int8", "euler", "rk4", "states", "residual", "quantised", "delta", "none", "lz4", "gzip"]
REPLACEMENTS += ["imported", "elsewhere", "ab" * 32, "ab" * 31, "AB" * 32]
UNSAID = {"sigmas", "classes", "architecture"}
"""Where the reader may refuse more: levels fall, and the architecture says which classes there are."""


@pytest.fixture(params=KINDS, ids="-".join)
def manifest(tmp_path: Path, plan: Plan, write: Any, request: pytest.FixtureRequest) -> Values:
    dtype, encoding, codec = request.param
    write(tmp_path, dataclasses.replace(plan, dtype=dtype, encoding=encoding, codec=codec))
    values: Values = json.loads((tmp_path / "manifest.json").read_text())
    return values


def test_it_is_a_schema_that_takes_what_is_written(manifest: Values) -> None:
    Draft202012Validator.check_schema(SCHEMA)
    JUDGE.validate(manifest)
    for key in manifest:
        changed = {name: value for name, value in manifest.items() if name != key}
        assert not JUDGE.is_valid(changed)
        assert not JUDGE.is_valid({**changed, key: -1.5})
        with pytest.raises(InputError):
            parse_manifest(changed, "manifest.json")


def places(values: Any, path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Where each key of each table with fixed keys stands."""
    paths: list[tuple[Any, ...]] = []
    for key, value in values.items():
        paths.append((*path, key))
        if isinstance(value, dict) and key not in ("architecture", "fingerprint"):
            paths += places(value, (*path, key))
    return paths


def reads(values: Values) -> bool:
    try:
        Plan.from_json(values["plan"], "manifest.json")
        ShardRecord.from_json(values["shards"][0], "manifest.json")
    except InputError:
        return False
    return True


@pytest.mark.parametrize("form", ["zarr"])
def test_the_reader_takes_the_same(manifest: Values) -> None:
    del manifest["shards"][1:]
    absent = [("plan", key) for key in ("classes", "encoding", "codec", "origin")]
    absent += [("shards", 0, key) for key in ("offset", "stride", "labels")]
    both = {False: 0, True: 0}
    present = places(manifest["plan"], ("plan",)) + places(manifest["shards"][0], ("shards", 0))
    for *path, key in {*present, *absent}:
        changed = copy.deepcopy(manifest)
        table: Any = changed
        for step in path:
            table = table[step]
        original = table.pop(key, None)
        versions = [{}, *({key: value} for value in REPLACEMENTS), {key: original, f"{key}_": 0}]
        for version in versions:
            table.update(version)
            taken = JUDGE.is_valid(changed)
            read = reads(changed)
            assert read == taken or (key in UNSAID and taken), (path, version)
            both[read] += 1
            for name in version:
                del table[name]
    assert min(both[False], 5 * both[True]) > 1000

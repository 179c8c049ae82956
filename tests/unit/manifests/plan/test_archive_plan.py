import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.manifests.plan.plan import Plan, ShardRecord

PATH = Path("x/plan.json")


def test_round_trip(plan: Plan) -> None:
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())), PATH)
    assert again == plan
    assert again.identity() == plan.identity()
    assert next(iter(plan.to_json())) == "format_version"


def test_sizes(plan: Plan) -> None:
    assert plan.states_shape == (5, 2, 3, 4)
    assert (plan.state_bytes, plan.trajectory_bytes) == (48, 240)
    assert plan.schedule == {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0}
    assert plan.shards == 3
    assert [plan.shard_range(k) for k in range(3)] == [(0, 4), (4, 8), (8, 10)]
    assert dataclasses.replace(plan, count=8).shards == 2
    for k in (-1, 3):
        with pytest.raises(ValueError, match="shard"):
            plan.shard_range(k)


def test_identity_is_all_but_the_count_and_the_teachers_path(plan: Plan) -> None:
    def teacher(**changes: Any) -> Plan:
        return dataclasses.replace(plan, teacher=plan.teacher | changes)

    same = [dataclasses.replace(plan, count=99), teacher(source="/else/where")]
    same += [teacher(licence="other"), teacher(dataset="other")]
    same += [dataclasses.replace(plan, sampler=plan.sampler | {"rho": 7, "sigma_max": 80.0})]
    same += [dataclasses.replace(plan, sigmas=tuple(np.array(plan.sigmas)), shape=[2, 3, 4])]  # type: ignore[arg-type]
    other = [
        dataclasses.replace(plan, **change)
        for change in (
            {"form": "zarr" if plan.form == "webdataset" else "webdataset"},
            {"shard_size": 5},
            {"shape": (2, 4, 3)},
            {"dtype": "float32"},
            {"sigmas": (80.0, 20.0, 5.0, 0.003, 0.0)},
            {"seed": 8},
            {"batch_size": 5},
            {"sampler": plan.sampler | {"steps": 5}},
            {"sampler": plan.sampler | {"solver": "euler"}},
        )
    ]
    other += [teacher(sha256="ac" * 32), teacher(architecture=plan.teacher["architecture"] | {"other": 1})]
    if plan.classes:
        other += [dataclasses.replace(plan, classes=classes) for classes in ((0, 7), (0, 3, 7), (5,))]
    assert {p.identity() for p in same} == {plan.identity()}
    assert len({p.identity() for p in [plan, *other]}) == len(other) + 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format_version", 2),
        ("form", "hdf5"),
        ("count", 0),
        ("count", True),
        ("count", 3.0),
        ("shard_size", None),
        ("shape", [1, 2]),
        ("shape", [0, 2, 2]),
        ("shape", 7),
        ("dtype", "float8"),
        ("sigmas", [1.0]),
        ("sigmas", [1.0, 0.5]),
        ("sigmas", [1.0, 1.0, 0.0]),
        ("sigmas", [float("inf"), 0.0]),
        ("sigmas", "80"),
        ("seed", -1),
        ("seed", 2**64),
        ("batch_size", 0),
        ("sampler", {}),
        ("sampler", None),
        ("teacher", {"sha256": "ab" * 32}),
        ("teacher", []),
        ("classes", [10]),
        ("classes", [-1]),
        ("classes", [3, 3]),
        ("classes", [3.0]),
        ("classes", 3),
        ("unknown", 1),
    ],
)
def test_damaged_plan_names_file_and_key(plan: Plan, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^x/plan\.json: {key}: "):
        Plan.from_json(plan.to_json() | {key: value}, PATH)


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("sampler", "steps", 0),
        ("sampler", "sigma_max", "80"),
        ("sampler", "rho", 0),
        ("sampler", "solver", "ddim"),
        ("teacher", "sha256", "abc"),
    ],
)
def test_damaged_tables_name_the_dotted_key(plan: Plan, table: str, key: str, value: Any) -> None:
    damaged = plan.to_json()
    damaged[table][key] = value
    with pytest.raises(InputError, match=rf"^x/plan\.json: {table}\.{key}: "):
        Plan.from_json(damaged, PATH)


def test_missing_keys_are_named(plan: Plan) -> None:
    for key in set(plan.to_json()) - {"classes"}:
        values = plan.to_json()
        del values[key]
        with pytest.raises(InputError, match=f"{key}: missing"):
            Plan.from_json(values, PATH)
    with pytest.raises(InputError, match="not a JSON object"):
        Plan.from_json([], PATH)


def test_classes_are_the_teachers(plan: Plan) -> None:
    architecture = plan.teacher["architecture"]
    knowing, ignorant = (plan.teacher | {"architecture": architecture | {"label_dim": n}} for n in (2, 0))
    assert dataclasses.replace(plan, teacher=knowing, classes=(1, 0)).label_dim == 2
    for teacher, classes, accepted in (
        (knowing, (), "different classes from 0 to 1"),
        (knowing, (2,), "different classes from 0 to 1"),
        (ignorant, (0,), "none, as the teacher knows no classes"),
    ):
        message = f"classes: got {list(classes)}; accepted: {accepted}"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            dataclasses.replace(plan, teacher=teacher, classes=classes)


def test_records_without_classes_know_nothing_of_them(plan: Plan) -> None:
    """So that the files of unconditional teachers are what they always were."""
    record = ShardRecord(0, "f", 0, 4, 100, "0" * 64, "1" * 64, {}, offset=0, stride=24)
    assert "labels" not in record.to_json()
    assert ("classes" in plan.to_json()) == bool(plan.classes)


def test_labels_depend_on_seed_and_index_alone(plan: Plan) -> None:
    if not plan.classes:
        assert plan.labels(range(10)) is None
        return
    labels = plan.labels(range(10))
    assert labels is not None
    assert labels.dtype == np.int64
    for other in (dataclasses.replace(plan, count=99), dataclasses.replace(plan, shard_size=3)):
        assert np.array_equal(other.labels([9, 0, 4]), labels[[9, 0, 4]])  # type: ignore[arg-type]
    assert not np.array_equal(dataclasses.replace(plan, seed=8).labels(range(10)), labels)  # type: ignore[arg-type]
    assert dataclasses.replace(plan, classes=(5,)).labels([0, 1]).tolist() == [5, 5]  # type: ignore[union-attr]


def test_more_shards_than_names(plan: Plan) -> None:
    with pytest.raises(ValueError, match="shard_size"):
        dataclasses.replace(plan, count=4 * 10**6 + 1)


def test_shard_record() -> None:
    labels = {"file": "l", "bytes": 36, "sha256": "2" * 64}
    how = {"device": "cpu"}
    record = ShardRecord(0, "f", 0, 4, 100, "0" * 64, "1" * 64, how, labels, offset=0, stride=24)
    assert record.files == (("f", 100, "0" * 64), ("l", 36, "2" * 64))
    assert ShardRecord.from_json(json.loads(json.dumps(record.to_json())), PATH) == record
    for key, value in [("index", -1), ("sha256", "x"), ("file", None), ("stride", 1.5), ("fingerprint", [])]:
        with pytest.raises(InputError, match=rf"^x/plan\.json: {key}: "):
            ShardRecord.from_json(record.to_json() | {key: value}, PATH)
    for key, value in [("file", 3), ("bytes", -1), ("sha256", "x")]:
        with pytest.raises(InputError, match=rf"^x/plan\.json: labels\.{key}: "):
            ShardRecord.from_json(record.to_json() | {"labels": labels | {key: value}}, PATH)
    with pytest.raises(InputError, match=r"labels: got .* a table of file, bytes, sha256"):
        ShardRecord.from_json(record.to_json() | {"labels": {"file": "l"}}, PATH)

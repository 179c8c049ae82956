"""What an archive is to hold, decided before its first trajectory, and what each shard turned out to be."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.manifests.plan.state_type import STATE_TYPES, stored_dtype

FORMAT_VERSION = 1
_SCHEDULE_KEYS = ("sigma_min", "sigma_max", "rho")
_SAMPLER_KEYS = ("steps", *_SCHEDULE_KEYS, "solver")
_TEACHER_FACTS = ("source", "licence", "dataset")
_TEACHER_KEYS = ("sha256", "architecture", *_TEACHER_FACTS)
_LABELS_KEYS = ("file", "bytes", "sha256")
ENCODINGS = ("states", "residual", "quantised")
CODECS = ("none", "lz4", "zstd")
IMPORTED = "imported"
LEFT_OUT: dict[str, Any] = {
    "origin": "",
    "classes": [],
    "labels": {},
    "encoding": "states",
    "codec": "none",
    "offset": None,
    "stride": None,
}
"""Keys that are left out where they have these values, as in archives made before there were such keys."""
_Record = TypeVar("_Record", "Plan", "ShardRecord")


@dataclass(frozen=True)
class Plan:
    """Enough to generate any shard again from the teacher alone.

    `shape` is that of an image, (C, H, W); `sigmas` are the noise levels of the stored states, from the
    start to 0.0: all of the sampler's, or some; trajectory i starts from the noise of (seed, i). `encoding`
    says whether states themselves are stored, or how they differ from their noise (module `residual`),
    `codec` how a trajectory is compressed (module `codecs`). The last shard may be shorter than `shard_size`.
    `classes` are those that trajectories are drawn from; empty if the teacher's architecture has no
    label_dim. `origin` is `IMPORTED` if the noise is another program's, not that of `seed`: nothing can be
    generated again then. ValueError naming the key if a value is not accepted.
    """

    form: str
    count: int
    shard_size: int
    shape: tuple[int, int, int]
    dtype: str
    sigmas: tuple[float, ...]
    seed: int
    batch_size: int
    sampler: dict[str, Any]
    teacher: dict[str, Any]
    classes: tuple[int, ...] = ()
    encoding: str = "states"
    codec: str = "none"
    origin: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        _require("format_version", self.format_version, self.format_version == FORMAT_VERSION, "1")
        _require("form", self.form, self.form in ("zarr", "webdataset"), '"zarr", "webdataset"')
        for name in ("count", "shard_size", "batch_size"):
            value = getattr(self, name)
            _require(name, value, _is_int(value, 1, 10**9), "an integer from 1 to 10**9")
        # Shard names have six digits; with more, names would no longer sort in the order of the shards.
        _require("shard_size", self.shard_size, self.shards <= 10**6, "one that gives at most 10**6 shards")
        shape = tuple(self.shape) if isinstance(self.shape, list | tuple) else ()
        good = len(shape) == 3 and all(_is_int(n, 1, 10**6) for n in shape)
        _require("shape", self.shape, good, "three sizes, C, H, W")
        object.__setattr__(self, "shape", shape)
        _require("dtype", self.dtype, self.dtype in STATE_TYPES, _quoted(STATE_TYPES))
        _require("encoding", self.encoding, self.encoding in ENCODINGS, _quoted(ENCODINGS))
        exact = self.encoding == "states" or self.dtype != "bfloat16"
        _require("encoding", self.encoding, exact, '"states": bfloat16 cannot hold the noise exactly')
        _require("codec", self.codec, self.codec in CODECS, _quoted(CODECS))
        if self.encoding == "quantised":
            _require("dtype", self.dtype, self.dtype == "float16", '"float16" where encoding is "quantised"')
            smaller = '"lz4", "zstd" where encoding is "quantised": uncompressed, "residual" is as small'
            _require("codec", self.codec, self.codec != "none", smaller)
        _require("origin", self.origin, self.origin in ("", IMPORTED), f'"{IMPORTED}"')
        object.__setattr__(self, "sigmas", _sigmas(self.sigmas))
        _require("seed", self.seed, _is_int(self.seed, 0, 2**64 - 1), "an integer from 0 to 2**64 - 1")
        object.__setattr__(self, "sampler", _sampler(self.sampler))
        object.__setattr__(self, "teacher", _teacher(self.teacher))
        object.__setattr__(self, "classes", _classes(self.classes, self.label_dim))

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.count // self.shard_size)

    @property
    def states_shape(self) -> tuple[int, int, int, int]:
        """Shape of one trajectory: (stored states, C, H, W)."""
        return (len(self.sigmas), *self.shape)

    @property
    def schedule(self) -> dict[str, float]:
        """sigma_min, sigma_max and rho of the noise levels, of which `sigmas` may be some only."""
        return {name: self.sampler[name] for name in _SCHEDULE_KEYS}

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """numpy's type of the stored numbers."""
        return np.dtype(np.int16) if self.encoding == "quantised" else stored_dtype(self.dtype)

    @property
    def state_bytes(self) -> int:
        """Bytes of one state."""
        return math.prod(self.shape) * self.stored_dtype.itemsize

    @property
    def trajectory_bytes(self) -> int:
        """Bytes of one trajectory's states."""
        return len(self.sigmas) * self.state_bytes

    @property
    def label_dim(self) -> int:
        """Classes that the teacher knows; 0 for an unconditional one."""
        architecture = self.teacher["architecture"]
        return int(architecture.get("label_dim", 0)) if isinstance(architecture, dict) else 0

    def labels(self, indices: rng.Indices) -> NDArray[np.int64] | None:
        """The classes of trajectories (B,), functions of (seed, index); None for an unconditional teacher."""
        return rng.choice(self.seed, "labels", indices, self.classes) if self.classes else None

    def shard_range(self, k: int) -> tuple[int, int]:
        """The trajectories of shard k: first, and one past the last. ValueError if there is no such shard."""
        if not 0 <= k < self.shards:
            raise ValueError(f"shard {k} is not in 0 … {self.shards - 1}")
        return k * self.shard_size, min((k + 1) * self.shard_size, self.count)

    def identity(self) -> str:
        """Digest of all that decides a trajectory and its place.

        So of all but the count, which may grow, and what is merely said of the teacher.
        """
        return self._identity

    @functools.cached_property
    def _identity(self) -> str:
        return digest(self.identity_values())

    def identity_values(self) -> dict[str, Any]:
        """What `identity` is the digest of."""
        values = self.to_json()
        del values["count"]
        for name in _TEACHER_FACTS:
            del values["teacher"][name]
        return values

    def to_json(self) -> dict[str, Any]:
        """As JSON values, the format version first."""
        return {"format_version": self.format_version, **_shortened(self)}

    @classmethod
    def from_json(cls, values: Any, path: Path | str) -> Plan:
        """From the JSON values of the file `path`; InputError naming the file and the key otherwise."""
        if isinstance(values, dict) and values.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            raise InputError(
                f"{path}: format_version: got {values['format_version']!r}; this version of hkdpipe reads 1"
            )
        return _parse(cls, values, path)


@dataclass(frozen=True)
class ShardRecord:
    """A shard on disk. Trajectory start + i lies at byte offset + i * stride of the file: raw little-endian
    states in C order. Of compressed trajectories, which take different numbers of bytes, only the file itself
    says where they lie: `offset` and `stride` are None.

    `file` is relative to the archive, with slashes; `plan` is the plan's identity; `fingerprint`, of JSON
    values, says how they were computed (device, threads, precision, versions, batch shape): where it is the
    same, generating again gives the same bytes. `labels` is a second file, with the classes: its `file`,
    `bytes` and `sha256`; empty where there is none. ValueError naming the key if a value is not accepted.
    """

    index: int
    file: str
    start: int
    stop: int
    bytes: int
    sha256: str
    offset: int | None = field(default=None, kw_only=True)
    stride: int | None = field(default=None, kw_only=True)
    plan: str
    fingerprint: dict[str, Any]
    labels: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("index", "start", "stop", "bytes", "offset", "stride"):
            value = getattr(self, name)
            absent = name in LEFT_OUT and value is None
            _require(name, value, absent or _is_int(value, 0, 2**63 - 1), "an integer, at least 0")
        _require("file", self.file, isinstance(self.file, str), "a path")
        for name in ("sha256", "plan"):
            _require(name, getattr(self, name), _is_sha256(getattr(self, name)), "64 hexadecimal digits")
        _require("fingerprint", self.fingerprint, isinstance(self.fingerprint, dict), "a table")
        object.__setattr__(self, "labels", _labels(self.labels))

    @property
    def files(self) -> tuple[tuple[str, int, str], ...]:
        """(path relative to the archive, bytes, SHA-256) of each of the shard's files, the states' first."""
        states = (self.file, self.bytes, self.sha256)
        if not self.labels:
            return (states,)
        return states, (self.labels["file"], self.labels["bytes"], self.labels["sha256"])

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return _shortened(self)

    @classmethod
    def from_json(cls, values: Any, path: Path | str) -> ShardRecord:
        """From the JSON values of the file `path`; InputError naming the file and the key otherwise."""
        return _parse(cls, values, path)


def _parse(cls: type[_Record], values: Any, path: Path | str) -> _Record:
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a JSON object")
    names = cls.__dataclass_fields__.keys()
    for name in sorted((names ^ values.keys()) - (LEFT_OUT.keys() & names)):
        raise InputError(f"{path}: {name}: {'missing' if name in names else 'unknown key'}")
    try:
        return cls(**values)
    except (ValueError, OverflowError) as error:
        raise InputError(f"{path}: {error}") from None


def _quoted(names: tuple[str, ...]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _require(name: str, value: Any, good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{name}: got {value!r}; accepted: {what}")


def _sigmas(values: Any) -> tuple[float, ...]:
    what = "two or more decreasing noise levels, the last one 0"
    _require("sigmas", values, isinstance(values, list | tuple) and all(map(_is_number, values)), what)
    sigmas = tuple(map(float, values))
    falling = all(high > low for high, low in itertools.pairwise(sigmas))
    _require("sigmas", values, len(sigmas) >= 2 and falling and sigmas[-1] == 0.0, what)
    return sigmas


def _sampler(values: Any) -> dict[str, Any]:
    good = isinstance(values, dict) and set(values) == set(_SAMPLER_KEYS)
    _require("sampler", values, good, f"a table of {', '.join(_SAMPLER_KEYS)}")
    _require("sampler.steps", values["steps"], _is_int(values["steps"], 1, 10**6), "an integer, at least 1")
    _require("sampler.solver", values["solver"], values["solver"] in ("heun", "euler"), '"heun", "euler"')
    # 80 and 80.0 are the same noise level: as floats they are also the same identity.
    levels = {}
    for name in _SCHEDULE_KEYS:
        good = _is_number(values[name]) and values[name] > 0
        _require(f"sampler.{name}", values[name], good, "a number above 0")
        levels[name] = float(values[name])
    return {"steps": values["steps"], **levels, "solver": values["solver"]}


def _teacher(values: Any) -> dict[str, Any]:
    good = isinstance(values, dict) and set(values) == set(_TEACHER_KEYS)
    _require("teacher", values, good, f"a table of {', '.join(_TEACHER_KEYS)}")
    _require("teacher.sha256", values["sha256"], _is_sha256(values["sha256"]), "64 hexadecimal digits")
    values = _json_values(values)
    return {name: values[name] for name in _TEACHER_KEYS}


def _classes(values: Any, label_dim: int) -> tuple[int, ...]:
    classes = list(values) if isinstance(values, list | tuple) else [values]
    good = isinstance(values, list | tuple) and bool(classes) == bool(label_dim)
    good = good and all(_is_int(value, 0, label_dim - 1) for value in classes)
    known = f"different classes from 0 to {label_dim - 1}"
    accepted = known if label_dim else "none, as the teacher knows no classes"
    _require("classes", classes, good and len(set(classes)) == len(classes), accepted)
    return tuple(classes)


def _labels(values: Any) -> dict[str, Any]:
    good = isinstance(values, dict) and set(values) in (set(), set(_LABELS_KEYS))
    _require("labels", values, good, f"a table of {', '.join(_LABELS_KEYS)}")
    if values:
        _require("labels.file", values["file"], isinstance(values["file"], str), "a path")
        _require(
            "labels.bytes", values["bytes"], _is_int(values["bytes"], 0, 2**63 - 1), "an integer, at least 0"
        )
        _require("labels.sha256", values["sha256"], _is_sha256(values["sha256"]), "64 hexadecimal digits")
    return dict(values)


def _shortened(record: Plan | ShardRecord) -> dict[str, Any]:
    """The JSON values of a record, without what is left out."""
    values = _json_values(dataclasses.asdict(record))
    return {key: value for key, value in values.items() if key not in LEFT_OUT or value != LEFT_OUT[key]}


def _json_values(values: dict[str, Any]) -> dict[str, Any]:
    """The values as they come back from a JSON file (tuples become lists), so that both compare as equal."""
    try:
        result: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{', '.join(map(str, values))}: {error}") from None
    return result


def _is_int(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64 and not value.strip("0123456789abcdef")

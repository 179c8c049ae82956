"""What an archive is to hold, decided before its first trajectory, and what each shard turned out to be."""

from __future__ import annotations

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
from hkdpipe.manifests.plan.schema import LEFT_OUT, PLAN, RECORD, RULES, require
from hkdpipe.manifests.plan.state_type import stored_dtype

FORMAT_VERSION = 1
_SCHEDULE_KEYS = ("sigma_min", "sigma_max", "rho")
_TEACHER_FACTS = ("source", "licence", "dataset")
ENCODINGS, CODECS = PLAN.keys["encoding"].names, PLAN.keys["codec"].names
IMPORTED = "imported"
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
        PLAN.keys["teacher"].check("teacher", self.teacher)
        known, words = self.label_dim, "none, as the teacher knows no classes"
        words = f"different classes from 0 to {known - 1}" if known else words
        classes = list(self.classes) if isinstance(self.classes, tuple) else self.classes
        good = PLAN.keys["classes"].test(classes) and bool(classes) == bool(known)
        require("classes", classes, good and all(k < known for k in classes), words)
        PLAN.check_fields(self)
        # Shard names have six digits; with more, names would no longer sort in the order of the shards.
        require("shard_size", self.shard_size, self.shards <= 10**6, "one that gives at most 10**6 shards")
        for condition, consequence in RULES:
            if all(accepted.test(getattr(self, name)) for name, accepted in condition.keys.items()):
                for name, accepted in consequence.keys.items():
                    accepted.check(name, getattr(self, name))
        # 80 and 80.0 are the same noise level: as floats they are also the same identity.
        sigmas = tuple(map(float, self.sigmas))
        falling = sigmas[-1] == 0.0 and all(high > low for high, low in itertools.pairwise(sigmas))
        require("sigmas", self.sigmas, falling, PLAN.keys["sigmas"].words)
        sampler = self.sampler | {name: float(self.sampler[name]) for name in _SCHEDULE_KEYS}
        teacher = _json_values(self.teacher)
        for name, value in (
            ("shape", tuple(self.shape)),
            ("sigmas", sigmas),
            ("sampler", {key: sampler[key] for key in PLAN.keys["sampler"].keys}),
            ("teacher", {key: teacher[key] for key in PLAN.keys["teacher"].keys}),
            ("classes", tuple(classes)),
        ):
            object.__setattr__(self, name, value)

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
        """Digest of all that decides a trajectory and its place. So of all but the count, which may grow, and
        what is merely said of the teacher."""
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
        RECORD.check_fields(self)

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


def _shortened(record: Plan | ShardRecord) -> dict[str, Any]:
    """The JSON values of a record, without what is left out."""
    values = _json_values({name: getattr(record, name) for name in record.__dataclass_fields__})
    return {key: value for key, value in values.items() if key not in LEFT_OUT or value != LEFT_OUT[key]}


def _json_values(values: dict[str, Any]) -> dict[str, Any]:
    """The values as they come back from a JSON file (tuples become lists), so that both compare as equal."""
    try:
        result: dict[str, Any] = json.loads(json.dumps(values, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{', '.join(map(str, values))}: {error}") from None
    return result

"""Families of teachers: the networks of one project's, each a folder here that registers itself.

A family says how its files are recognised and read inertly, what its networks are built from, what they
compute, how its authors sample from them, and where a network splits into encoder and decoder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from hkdpipe.manifests.ground.discovery import discover
from hkdpipe.trainer.teachers.snapshots import Snapshot

UNFIT = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)
"""What building a network from a wrong configuration raises."""
FIRST = "edm"
"""The family of what names none: so were all files before there were others, and so EDM's still are."""


@dataclass(frozen=True)
class TeacherArchitecture:
    """What a network is built from: in archives, teachers' folders, exports and checkpoints, as JSON.

    A family's own may have fields, with defaults, of the names of the properties here, and `use_fp16` where a
    GPU computes in half precision, which fingerprints of shards tell. It raises ValueError naming the key if
    a value is none that a network can be built from.
    """

    family: ClassVar[str]
    img_resolution: int
    img_channels: int
    label_dim: int = 0

    @property
    def sigma_min(self) -> float:
        """The lowest noise level that the network takes; samplers keep to it, as to `sigma_max`."""
        return 0.0

    @property
    def sigma_max(self) -> float:
        return math.inf

    @property
    def sigma_data(self) -> float:
        """The standard deviation of the images that its preconditioning takes for granted."""
        return 0.5

    @property
    def steps(self) -> int:
        """Of Heun's method, with which its authors sample: as EDM's do."""
        return 18 if self.img_resolution <= 32 else 40

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.img_channels, self.img_resolution, self.img_resolution)

    def words(self) -> str:
        """For people to read."""
        return self.family

    def of_students(self) -> Self:
        """The same without what is for the training of teachers alone, and in single precision."""
        return self

    def network(self) -> TeacherNetwork:
        """With new weights."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable form; an unbounded sigma_max is left out."""
        values = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        if values.get("sigma_max") == math.inf:
            del values["sigma_max"]
        return values if self.family == FIRST else {"family": self.family, **values}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises TypeError on an unknown or missing key."""
        own = {key: tuple(one) if isinstance(one, list) else one for key, one in values.items()}
        given: dict[str, Any] = {key: own[key] for key in own if key != "family"}
        return cls(**given)


class TeacherNetwork(nn.Module):
    """A denoiser, preconditioning included."""

    def __init__(self, arch: TeacherArchitecture) -> None:
        super().__init__()
        self.arch = arch

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """The denoised image. x (N, C, H, W), sigma scalar or (N,), labels (N, label_dim) one-hot or None."""
        raise NotImplementedError

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the network knows: any."""
        return sigma

    def split(self) -> tuple[Encoder, Decoder]:
        """Copies of its two halves; what both need, such as an embedding, is in each of them. NotSplit where
        it has none."""
        raise NotSplit(f"its family is '{self.arch.family}'", "one whose networks have two halves")

    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())


class NotSplit(Exception):
    """Of a network without two halves: what it is, and what is accepted instead."""

    def __init__(self, found: str, accepted: str) -> None:
        super().__init__(f"{found}; accepted: {accepted}")
        self.found, self.accepted = found, accepted


class Encoder(nn.Module):
    """The first half of a network, its share of the preconditioning included."""

    def shapes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) of each observable, finest first."""
        raise NotImplementedError

    def observe(self, x: Tensor, sigma: Tensor, told: Tensor, labels: Tensor | None) -> list[Tensor]:
        """The observables of x (N, C, H, W) at sigma (N,); the embedding hears of `told` (N,) instead."""
        raise NotImplementedError


class Decoder(nn.Module):
    """The second half of a network, scaled to images."""

    def image(self, z: Sequence[Tensor], told: Tensor, labels: Tensor | None) -> Tensor:
        """Images (N, C, H, W) from observables; the embedding hears of the noise level `told` (1,)."""
        raise NotImplementedError


class Family:
    """What is registered of a family; one without files of its own leaves out what reads them."""

    name: str
    architecture: type[TeacherArchitecture]
    files: tuple[str, ...] = ()
    """In words, with their endings: what is accepted where a teacher's file is asked for."""
    classes: tuple[str, ...] = ()
    """Of its networks in snapshots (.pkl), by which these are recognised."""
    suffixes: tuple[str, ...] = ()
    """Of files that no other family has."""

    def from_snapshot(self, snapshot: Snapshot) -> TeacherNetwork:
        """Of one of `classes`; here and below, one of UNFIT says what the file is wrong in."""
        raise NotImplementedError

    def from_state_dict(self, state: Mapping[str, Tensor]) -> TeacherNetwork:
        """Of a file of torch's (.pt, .pth), whosever it is: its names tell."""
        raise ValueError(f"not a network of the family '{self.name}'")

    def from_file(self, file: Path) -> TeacherNetwork:
        """Of one of `suffixes`. Nothing in it may be run."""
        raise NotImplementedError


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    _FAMILIES[family.name] = family


def families() -> tuple[Family, ...]:
    """All that are registered, those that lie here among them."""
    discover("hkdpipe.trainer.teachers")
    return tuple(_FAMILIES.values())


def architecture_from_json(values: Mapping[str, Any]) -> TeacherArchitecture:
    """The architecture of any family, from what `to_json` gave. Raises one of UNFIT."""
    name, known = values.get("family", FIRST), {family.name: family for family in families()}
    if name not in known:
        raise ValueError(f"family: got {name!r}; accepted: {', '.join(known)}")
    return known[name].architecture.from_json(values)


def with_weights(arch: TeacherArchitecture, state: Mapping[str, Tensor]) -> TeacherNetwork:
    """The frozen network with these weights, in single precision, as its own. ValueError where names or
    shapes are not those of the network."""
    network = empty(arch)
    check_fit(state, network.state_dict())
    return frozen(network, state)


def empty(arch: TeacherArchitecture) -> TeacherNetwork:
    """The network on the meta device."""
    with torch.device("meta"):
        return arch.network()


def frozen(network: TeacherNetwork, state: Mapping[str, Tensor]) -> TeacherNetwork:
    """An empty network takes these tensors, in single precision, as its own."""
    network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return network.eval().requires_grad_(False)


def check_fit(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    """Raises ValueError where names or shapes differ."""
    if different := set(tensors) ^ set(like):
        raise ValueError(f"does not fit the network: tensor {min(different)} is missing or unknown")
    for name, value in tensors.items():
        if value.shape != like[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(value.shape)}, the network needs {tuple(like[name].shape)}"
            )

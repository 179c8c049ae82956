"""Distillation methods declare themselves: a file or a folder in trainer/methods, or a plug-in's module.

A declaration is free of torch, so that the command line explains a method without loading it: the class of
its students is imported when it is needed.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from hkdpipe.manifests.ground.discovery import discover

Source = Literal["states", "teacher", "images"]
"""'states': stored states of trajectories; 'teacher': asked while training; 'images': real ones."""


@dataclass(frozen=True)
class NoOptions:
    """Of a method without settings of its own."""


@dataclass(frozen=True)
class Method:
    """What a method says of itself."""

    name: str
    title: str
    paper: str
    """Where it is published."""
    description: str
    """In a few words: what learns, and from what."""
    student: str | type[Any]
    """The class of its students, a `Student`, or where that lies: 'package.module:Class'."""
    options: type = NoOptions
    """A frozen dataclass with a field for each of its sections of the configuration, which bears the
    section's name and holds its settings."""
    network_sections: tuple[str, ...] = ()
    """Those that the network is built from: they go with a checkpoint and an export."""
    learns_from: frozenset[Source] = frozenset({"states"})
    starts_from_teacher: bool = True
    """Whether its weights begin as the teacher's, and so are derived from them."""
    evaluations: Callable[[Any], int] = lambda options: 1
    """evaluations(options): passes of a whole U-Net, forward and backward, of a trajectory in a step."""
    check: Callable[[Any, str], None] = lambda options, no_states_between: None
    """check(options, why): raises UsageError for options that contradict each other, or that need stored
    states between start and end where `why` says that there are none ('' where there are some)."""
    sections: dict[str, type] = field(init=False, compare=False)
    """The classes of its settings, by section."""

    def __post_init__(self) -> None:
        sections = {part.name: part.default_factory for part in fields(self.options)}
        object.__setattr__(self, "sections", sections)

    @property
    def student_class(self) -> type[Any]:
        if not isinstance(self.student, str):
            return self.student
        module, _, name = self.student.partition(":")
        student: type[Any] = getattr(importlib.import_module(module), name)
        return student


_METHODS: dict[str, Method] = {}


def register(method: Method) -> Method:
    """Make a method known. ValueError where its name or one of its sections is another method's."""
    for other in _METHODS.values():
        if method.name == other.name or method.sections.keys() & other.sections.keys():
            raise ValueError(f"method '{method.name}': its name or a section of it is that of '{other.name}'")
    _METHODS[method.name] = method
    return method


def methods() -> dict[str, Method]:
    """All methods by their names, in the order of these, whichever was imported first."""
    discover("hkdpipe.trainer.methods")
    return dict(sorted(_METHODS.items()))


def descriptions() -> dict[str, str]:
    """What each method is, in words."""
    known = methods().items()
    return {name: f"{method.title}, {method.paper}: {method.description}" for name, method in known}

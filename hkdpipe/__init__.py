"""hkdpipe from Python (docs/PYTHON.md). Modules underneath may move; these names stay.

A name is imported when it is first used: `import hkdpipe` alone imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hkdpipe import whitebox
    from hkdpipe.calls import evaluate, generate_trajectories, load_config, run, train
    from hkdpipe.manifests.archive.reader import Archive, open_archive
    from hkdpipe.manifests.ground.errors import HkdpipeError
    from hkdpipe.pipeline.configuration.config import Config
    from hkdpipe.stages.shared.reporting import Silent, Summary
    from hkdpipe.trainer.students.loading import load_model
    from hkdpipe.trainer.students.student import Student
    from hkdpipe.trainer.teachers.sampler import sample_trajectory
    from hkdpipe.trainer.teachers.teacher import Teacher, load_teacher

    __version__: str

__all__ = [
    "Archive",
    "Config",
    "HkdpipeError",
    "Silent",
    "Student",
    "Summary",
    "Teacher",
    "__version__",
    "evaluate",
    "generate_trajectories",
    "load_config",
    "load_model",
    "load_teacher",
    "open_archive",
    "run",
    "sample_trajectory",
    "train",
    "whitebox",
]
_HOMES = {
    "calls": "evaluate generate_trajectories load_config run train",
    "manifests.archive.reader": "Archive open_archive",
    "manifests.ground.errors": "HkdpipeError",
    "pipeline.configuration.config": "Config",
    "stages.shared.reporting": "Silent Summary",
    "trainer.students.loading": "load_model",
    "trainer.students.student": "Student",
    "trainer.teachers.sampler": "sample_trajectory",
    "trainer.teachers.teacher": "Teacher load_teacher",
}
"""The same as the imports above, for the interpreter."""


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        value = import_module("importlib.metadata").version("hkdpipe")
    elif name == "whitebox":
        value = import_module("hkdpipe.whitebox")
    else:
        home = next((home for home, names in _HOMES.items() if name in names.split()), None)
        if home is None:
            raise AttributeError(f"module 'hkdpipe' has no attribute '{name}'")
        value = getattr(import_module(f"hkdpipe.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

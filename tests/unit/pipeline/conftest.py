"""Stages that compute nothing, so that the command line can be tried alone and without torch."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hkdpipe.pipeline.cli import main
from hkdpipe.stages.shared.reporting import Summary


class FakeStages:
    """Each stage writes a marker of its being done; `before` is called on entering a stage."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.before: Callable[[str, dict[str, Any]], None] = lambda name, arguments: None

    def _do(self, name: str, marker: Path, **arguments: Any) -> Summary:
        self.calls.append((name, arguments))
        self.before(name, arguments)
        did_nothing = marker.exists()
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text("{}")
        return Summary(
            title=f"title of {name}",
            rows=(("row of", name),),
            files=(marker,),
            next_commands=(f"after {name}",),
            data={"name": name} | ({"missing": 0} if name == "generate" else {}),
            did_nothing=did_nothing,
        )

    def generate(self, teacher: str, out: Path, settings: Any, licence: str, **work: Any) -> Summary:
        arguments = {"teacher": teacher, "out": out, "settings": settings, "licence": licence}
        return self._do("generate", out / "plan.json", **arguments, **work)

    def train(
        self, teacher: str, archive: Path, out: Path, training: Any, koopman: Any, **work: Any
    ) -> Summary:
        arguments = {"teacher": teacher, "archive": archive, "out": out, "training": training}
        return self._do("train", out / "metrics.csv", **arguments, **work)

    def evaluate(
        self,
        teacher: str,
        archive: Path,
        checkpoint: Path,
        out: Path,
        export: Path,
        settings: Any,
        **work: Any,
    ) -> Summary:
        arguments = {"archive": archive, "checkpoint": checkpoint, "out": out, "export": export}
        return self._do("evaluate", out / "metrics.json", **arguments, **work)

    def sample(self, model: Path, out: Path, count: int, seed: int, **work: Any) -> Summary:
        return self._do("sample", out / "samples.png", model=model, count=count, seed=seed, **work)

    def sample_teacher(
        self, teacher: str, out: Path, count: int, seed: int, sampling: Any, **work: Any
    ) -> Summary:
        arguments = {"teacher": teacher, "count": count, "seed": seed, "sampling": sampling}
        return self._do("sample_teacher", out / "samples.png", **arguments, **work)

    def train_teacher(self, data: str, out: Path, settings: Any, **work: Any) -> Summary:
        return self._do("train_teacher", out / "model", data=data, settings=settings, **work)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> FakeStages:
    fakes = FakeStages()
    for name, room in (
        ("generate", "generation"),
        ("train", "training"),
        ("evaluate", "evaluation"),
        ("sample", "sampling"),
        ("train_teacher", "teachers"),
    ):
        module = SimpleNamespace(**{name: getattr(fakes, name)})
        monkeypatch.setitem(sys.modules, f"hkdpipe.stages.{room}.{name}", module)
    sys.modules["hkdpipe.stages.sampling.sample"].sample_teacher = fakes.sample_teacher
    world = SimpleNamespace(first=True, size=1, rank=0)
    distributed = SimpleNamespace(
        world_from_environment=lambda: world,
        choose_device=lambda name, world: SimpleNamespace(type=f"device {name}"),
    )
    monkeypatch.setitem(sys.modules, "hkdpipe.trainer.loop.distributed", distributed)
    return fakes


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test in a folder of its own, as the only process."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


class Ran:
    """What a command line led to."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def error(self) -> str:
        """The one line of a refusal."""
        assert not self.out
        assert self.err.count("\n") == 1, self.err
        return self.err.removeprefix("hkdpipe: error: ").strip()

    @property
    def last(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def hkdpipe(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def call(*arguments: str) -> Ran:
        capfd.readouterr()
        code = main(arguments)
        return Ran(code, *capfd.readouterr())

    return call

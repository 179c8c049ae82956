from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import Called, Ran
from tiny import Inputs

from hkdpipe.pipeline.cli import main


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the processes that the tests start, so that all compute the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Of a teacher that knows ten classes."""
    made = Inputs(tmp_path_factory.mktemp("conditional"), label_dim=10)
    made.make()
    return made


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    made = Inputs(tmp_path_factory.mktemp("inputs"))
    made.make()
    return made


@pytest.fixture(params=["inputs", "conditional"])
def either(request: pytest.FixtureRequest) -> Inputs:
    """Those of a teacher without classes, and of one with them."""
    made: Inputs = request.getfixturevalue(request.param)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, of the test alone."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def called(capfd: pytest.CaptureFixture[str]) -> Called:
    """The command line in this process and in its folder: seconds faster than one of its own."""

    def call(*arguments: str) -> Ran:
        capfd.readouterr()
        return Ran(main(arguments), *capfd.readouterr())

    return call

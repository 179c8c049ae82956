from collections.abc import Iterator

import pytest
import torch
from tiny import Inputs


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

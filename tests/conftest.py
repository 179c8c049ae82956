from pathlib import Path

import pytest
from random_inception import write_random_inception


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    write_random_inception(path)
    return path

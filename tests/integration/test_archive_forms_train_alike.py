from pathlib import Path

import pytest
from tiny import Inputs, train_tiny

RESULTS = ("weights.safetensors", "ema.safetensors", "optimizer.pt", "state.json")


@pytest.mark.parametrize("fixture", ["inputs", "conditional"])
def test_both_archive_forms_give_the_same_training(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Bit for bit, so that an archive may be converted, and a training go on from the other form."""
    inputs: Inputs = request.getfixturevalue(fixture)
    for form in ("zarr", "webdataset"):
        train_tiny(inputs, tmp_path / form, form)
    checkpoints = sorted((tmp_path / "zarr" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    for checkpoint in checkpoints:
        for name in RESULTS:
            other = tmp_path / "webdataset" / "checkpoints" / checkpoint.name / name
            assert (checkpoint / name).read_bytes() == other.read_bytes(), name
    assert (tmp_path / "zarr" / "metrics.csv").read_text() == (
        tmp_path / "webdataset" / "metrics.csv"
    ).read_text()

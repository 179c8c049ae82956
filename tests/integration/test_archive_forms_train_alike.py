from pathlib import Path

from tiny import Inputs, train_tiny

RESULTS = ("weights.safetensors", "ema.safetensors", "optimizer.pt", "state.json")


def test_both_archive_forms_give_the_same_training(either: Inputs, tmp_path: Path) -> None:
    """Bit for bit, so that an archive may be converted, and a training go on from the other form."""
    for form in ("zarr", "webdataset"):
        train_tiny(either, tmp_path / form, form)
    checkpoints = sorted((tmp_path / "zarr" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    for checkpoint in checkpoints:
        for name in RESULTS:
            other = tmp_path / "webdataset" / "checkpoints" / checkpoint.name / name
            assert (checkpoint / name).read_bytes() == other.read_bytes(), name
    one, other = ((tmp_path / form / "metrics.csv").read_text() for form in ("zarr", "webdataset"))
    assert one == other

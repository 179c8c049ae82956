"""`hkdpipe sample` of an export's folder and of its ONNX model makes the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import WORK, Inputs

from hkdpipe.manifests.errors import UsageError
from hkdpipe.stages.sample import sample
from hkdpipe.trainer.checkpoint import checkpoints
from hkdpipe.trainer.methods import load_model
from hkdpipe.trainer.programs import write_onnx

CLASSES = [2, 7]


@pytest.mark.parametrize("kind", ["inputs", "conditional"])
def test_folder_and_onnx_model(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    made: Inputs = request.getfixturevalue(kind)
    checkpoint = checkpoints(made.training / "checkpoints")[-1]
    student = load_model(checkpoint)
    classes = CLASSES if student.label_dim else []
    student.save(
        tmp_path / "export", {"classes": classes}, lambda folder: write_onnx(student, folder / "model.onnx")
    )

    def sampled(model: Path, **options: Any) -> dict[str, Any]:
        sample(model, tmp_path / "out", 7, 3, **options, **WORK)
        with np.load(tmp_path / "out" / "samples.npz") as arrays:
            return dict(arrays)

    models = (tmp_path / "export", tmp_path / "export" / "model.onnx")
    one, other = (sampled(model) for model in models)
    # What differs in the last bits may round to neighbouring bytes.
    assert np.abs(one["images"].astype(int) - other["images"]).max() <= 1
    assert one["images"].std() > 1
    if not classes:
        assert "labels" not in one
        return
    assert one["labels"].tolist() == other["labels"].tolist()
    assert set(one["labels"]) == set(CLASSES)
    assert set(sampled(models[1], class_number=7)["labels"]) == {7}
    with pytest.raises(UsageError, match="--class: got 3; accepted: 2, 7"):
        sampled(models[1], class_number=3)
    alone = models[1].rename(tmp_path / "alone.onnx")
    assert set(sampled(alone, class_number=3)["labels"]) == {3}

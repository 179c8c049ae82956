"""`hkdpipe sample` makes the same images of an export's folder, and its ONNX model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import WORK, Inputs

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.stages.sampling.sample import sample
from hkdpipe.trainer.exports.programs import write_onnx
from hkdpipe.trainer.loop.checkpoint import checkpoints
from hkdpipe.trainer.students.loading import load_model

CLASSES = [2, 7]


def test_folder_and_programs(either: Inputs, tmp_path: Path) -> None:
    checkpoint = checkpoints(either.training / "checkpoints")[-1]
    student = load_model(checkpoint)
    classes = CLASSES if student.label_dim else []

    def write_program(folder: Path) -> None:
        write_onnx(student, folder / "model.onnx")

    student.save(tmp_path / "export", {"classes": classes}, write_program)

    def sampled(model: Path, **options: Any) -> dict[str, Any]:
        sample(model, tmp_path / "out", 7, 3, **options, **WORK)
        with np.load(tmp_path / "out" / "samples.npz") as arrays:
            return dict(arrays)

    one = sampled(tmp_path / "export")
    assert one["images"].std() > 1
    if classes:
        assert set(one["labels"]) == set(CLASSES)
    program = tmp_path / "export" / "model.onnx"
    other = sampled(program)
    # What differs in the last bits may round to neighbouring bytes.
    assert np.abs(one["images"].astype(int) - other["images"]).max() <= 1
    if not classes:
        assert "labels" not in other
        return
    assert one["labels"].tolist() == other["labels"].tolist()
    assert set(sampled(program, class_number=7)["labels"]) == {7}
    with pytest.raises(UsageError, match="class_number: got 3; accepted: 2, 7"):
        sampled(program, class_number=3)
    alone = program.rename(tmp_path / "alone.onnx")
    assert set(sampled(alone, class_number=3)["labels"]) == {3}

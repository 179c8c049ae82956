from pathlib import Path

import pytest
import torch

from hkdpipe.manifests.ground.atomic_files import sha256_file
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.stages.teachers.import_teacher import import_teacher
from hkdpipe.trainer.teachers.teacher import load_teacher

SNAPSHOT = Path(__file__).parents[3] / "fixtures" / "ncsnpp-cond-fp16.pkl"


def test_what_is_imported_is_the_same_teacher(tmp_path: Path) -> None:
    out = tmp_path / "new" / "teacher"
    summary = import_teacher(SNAPSHOT, out, "CC0", "noise")
    imported, original = load_teacher(out), load_teacher(SNAPSHOT)
    assert imported.sha256 == original.sha256
    assert imported.arch == original.arch
    assert imported.about == {
        "imported": {"file": SNAPSHOT.name, "sha256": sha256_file(SNAPSHOT)},
        "licence": "CC0",
        "dataset": "noise",
    }
    rows = dict(summary.rows)  # type: ignore[arg-type]
    assert rows["architecture"] == "SongUNet, edm preconditioning"
    assert (rows["parameters"], rows["images"], rows["classes"]) == ("267,395", "3x16x16", "10")
    assert rows["SHA-256 of the file"] == sha256_file(SNAPSHOT)
    assert not summary.did_nothing
    assert import_teacher(SNAPSHOT, out, "CC0", "noise").did_nothing


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"not empty, and not what ncsnpp-cond-fp16\.pkl gives"):
        import_teacher(SNAPSHOT, tmp_path, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    import_teacher(SNAPSHOT, tmp_path / "t", "", "")
    with pytest.raises(UsageError, match="not empty"):
        import_teacher(SNAPSHOT, tmp_path / "t", "CC0", "")


def test_what_is_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pkl: no such file; accepted: a snapshot of EDM's"):
        import_teacher(tmp_path / "none.pkl", tmp_path / "t", "", "")
    torch.save([], tmp_path / "x.pt")
    with pytest.raises(InputError, match="not a state dict"):
        import_teacher(tmp_path / "x.pt", tmp_path / "t", "", "")
    assert not (tmp_path / "t").exists()

"""Where files in EDM's layout are: a few in tests/fixtures, more in a folder `shared/edm-fixtures` beside the
repository or in the one that HKDPIPE_EDM_FIXTURES names; whichever are found are tested.

NAME.pkl holds a small network with random weights, NAME.npz what EDM's own code computed from it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hkdpipe.trainer.teachers.edm.recognition import PRECONDITIONING
from hkdpipe.trainer.teachers.snapshots import Snapshot, read_snapshot

_TESTS = Path(__file__).parents[1]
_FOLDERS = (
    _TESTS / "fixtures",
    Path(os.environ.get("HKDPIPE_EDM_FIXTURES", _TESTS.parents[1] / "shared" / "edm-fixtures")),
)

SNAPSHOTS = {
    file.stem: file
    for folder in reversed(_FOLDERS)
    for file in sorted(folder.glob("*.pkl"))
    if file.with_suffix(".npz").is_file()
}


def published(name: str) -> dict[str, Tensor]:
    """The arrays that EDM's code computed."""
    with np.load(SNAPSHOTS[name].with_suffix(".npz")) as arrays:
        return {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind == "f"}


def read_edm(path: Path) -> Snapshot:
    """A snapshot of a network of EDM's."""
    return read_snapshot(path, [*PRECONDITIONING])

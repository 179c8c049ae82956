"""Where files in EDM's layout are: a few in tests/fixtures, more in a folder `shared/edm-fixtures` beside the
repository or in the one that HKDPIPE_EDM_FIXTURES names; whichever are found are tested.

NAME.pkl holds a small network with random weights, NAME.npz what EDM's own code computed from it.
"""

import dataclasses
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hkdpipe.trainer.teachers.edm import Architecture
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

SMALL = Architecture(16, 3, label_dim=4, model_channels=64, channel_mult=(1, 2), num_blocks=1)
FAMILIES = {
    "ddpmpp": dataclasses.replace(SMALL, model_channels=16),
    "ncsnpp": dataclasses.replace(
        SMALL,
        model_channels=16,
        embedding_type="fourier",
        channel_mult_noise=2,
        encoder_type="residual",
        resample_filter=(1, 3, 3, 1),
        augment_dim=9,
    ),
    "adm": dataclasses.replace(SMALL, model_type="DhariwalUNet", attn_resolutions=(8,)),
}
OLDER = {
    "vp": dataclasses.replace(FAMILIES["ddpmpp"], preconditioning="vp"),
    "ve": dataclasses.replace(FAMILIES["ncsnpp"], preconditioning="ve"),
    "iddpm": dataclasses.replace(FAMILIES["adm"], preconditioning="iddpm", M=100),
}


def published(name: str) -> dict[str, Tensor]:
    """The arrays that EDM's code computed."""
    with np.load(SNAPSHOTS[name].with_suffix(".npz")) as arrays:
        return {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind == "f"}


def read_edm(path: Path) -> Snapshot:
    """A snapshot of a network of EDM's."""
    return read_snapshot(path, [*PRECONDITIONING])

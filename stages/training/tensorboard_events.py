"""TensorBoard's event files, which need the package `tensorboard`."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL.Image import Image

from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.trainer.settings.training_settings import TrainingSettings


def check_events_can_be_written() -> None:
    """UsageError without the package."""
    if importlib.util.find_spec("tensorboard") is None:
        missing = "as the package tensorboard is missing: pip install 'hkdpipe[tensorboard]'"
        raise WrongValue(Name("tensorboard", TrainingSettings), f": got true; accepted: false, {missing}")


class Events:
    """Points over the trajectories seen, in files of `folder`."""

    def __init__(self, folder: Path, seen: int) -> None:
        """Goes on at `seen`: TensorBoard drops the points of later steps, which are repeated now."""
        check_events_can_be_written()
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=seen + 1)

    def scalars(self, group: str, seen: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, seen)

    def picture(self, name: str, seen: int, picture: Image) -> None:
        self._writer.add_image(name, np.asarray(picture), seen, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()

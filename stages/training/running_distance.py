"""The Frechet distance of a student while it is trained, of a few images."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hkdpipe.manifests.archive.reader import Archive
from hkdpipe.stages.evaluation.context import evaluation_classes, evaluation_noise
from hkdpipe.stages.evaluation.reference import load_reference
from hkdpipe.stages.evaluation.seen import feature_network, quantised
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.trainer.images.labels import one_hot
from hkdpipe.trainer.metrics.frechet_distance import frechet_distance, statistics
from hkdpipe.trainer.students.student import Student


class RunningDistance:
    """Measures as an evaluation with so many samples: from its noise, with its features and reference."""

    def __init__(
        self, archive: Archive, settings: EvaluationSettings, count: int, device: torch.device
    ) -> None:
        """Raises UsageError or InputError where features or reference cannot be had."""
        self._archive, self._settings, self._count, self._device = archive, settings, count, device
        self._network = feature_network(settings, archive.shape, device)
        self.metric = self._network.space.metric
        reference = load_reference(settings.reference, archive, archive.shape)
        self._target = reference.statistics
        if reference.images is not None:
            images = reference.images
            self._target = statistics(self._features(len(images), lambda rows: images[rows % len(images)]))

    @torch.inference_mode()
    def __call__(self, student: Student) -> float:
        assert self._target is not None
        folded = student.folded()

        def made(rows: NDArray[np.int64]) -> Tensor:
            numbers = int(rows[0]), int(rows[-1]) + 1
            noise = evaluation_noise(self._settings, *numbers, folded.image_shape, self._device)
            classes = evaluation_classes(self._settings, *numbers, self._archive.plan.classes)
            labels = one_hot(classes, self._archive.plan.label_dim, self._device)
            return quantised(folded.sample(noise, labels).float())

        return frechet_distance(statistics(self._features(self._count, made)), self._target)

    def _features(
        self, count: int, images: Callable[[NDArray[np.int64]], Tensor | NDArray[np.uint8]]
    ) -> Iterator[NDArray[np.float32]]:
        """Of the images 0 .. count - 1, asked for in batches of one size."""
        size = self._settings.batch_size
        for start in range(0, count, size):
            batch = torch.as_tensor(images(np.arange(start, start + size))).to(self._device)
            yield self._network.outputs(batch)[0][: count - start].cpu().numpy()

"""Images seen through a feature network: those of subjects, which make them, and those of the reference.

What the network said of them is kept in parts until the evaluation is done, so that neither an interruption
nor a second process repeats any of it.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.manifests.ground.sections import digest
from hkdpipe.stages.evaluation.context import Context, Sampler
from hkdpipe.stages.evaluation.feature_parts import Outputs, compute_parts, joined, part_ranges, read_parts
from hkdpipe.stages.evaluation.reference import ARCHIVE, Reference
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.settings.metrics import Need, choices, metrics
from hkdpipe.trainer.metrics.feature_networks import FeatureNetwork, load_features
from hkdpipe.trainer.metrics.frechet_distance import Statistics, statistics

BatchOf = Callable[[int, int], torch.Tensor]
"""batch_of(start, stop): images uint8 (batch_size, C, H, W), of which the first stop - start count."""


@dataclass(frozen=True)
class Subject:
    """Something that makes images."""

    name: str
    nfe: int
    sampler: Sampler
    identity: str
    """Digest of its weights and of how it samples."""


def feature_network(
    settings: EvaluationSettings, shape: tuple[int, int, int], device: torch.device
) -> FeatureNetwork:
    """What images of this shape are seen through. UsageError or InputError where it cannot be had."""
    try:
        return load_features(settings.features, settings.inception, shape, device)
    except WrongValue as error:
        parts = (
            replace(part, of=EvaluationSettings) if isinstance(part, Name) else part for part in error.parts
        )
        raise WrongValue(*parts) from None


class Target:
    """The reference, seen through the network."""

    def __init__(self, context: Context, network: FeatureNetwork, reference: Reference) -> None:
        """UsageError where statistics alone do not serve the metrics asked for."""
        self.reference = reference
        self.labels = _usable_labels(context, reference)
        self._parts: tuple[Path, list[range]] | None = None
        if reference.statistics is not None:
            images_needed = {"reference features", "images"}
            if any(images_needed & {*metric.needs} for metric in context.settings.chosen):
                fit = [name for name in choices() if not images_needed & {*metrics()[name].needs}]
                alone = f": '{reference.source}' holds statistics alone; accepted with it: "
                accepted = ", ".join(f'"{name}"' for name in fit)
                raise WrongValue(Name("metrics", EvaluationSettings), alone + accepted)
            width = len(reference.statistics.mean)
            if width != network.space.dimension:
                accepted = f"of {network.space.dimension}, as '{network.space.name}' has"
                got = f": '{reference.source}' holds statistics of {width} features; accepted: {accepted}"
                raise WrongValue(Name("reference", EvaluationSettings), got)
            self.statistics: Statistics = reference.statistics
            return
        images = reference.images
        assert images is not None
        batch = context.settings.batch_size
        parts = part_ranges(len(images), batch)
        identity = digest([network.sha256, reference.sha256, batch])
        folder = context.out / "rows" / f"reference-{identity[:16]}"

        def compute(part: range) -> Outputs:
            def batch_of(start: int, stop: int) -> torch.Tensor:
                # Padded, since another batch shape changes the last bits.
                rows = np.minimum(np.arange(start, start + batch), len(images) - 1)
                return torch.from_numpy(images[rows]).to(context.device)

            return network_outputs(context, network, part, batch_of, set())

        title = f"{network.space.name} features of the reference"
        with context.reporter.phase(title, len(images), "images") as advance:
            compute_parts(folder, parts, compute, advance, wait=context.first)
        self._parts = folder, parts
        if context.first:
            self.statistics = statistics(self.features())

    def features(self) -> Iterator[NDArray[np.float32]]:
        """Of the reference's images, in blocks; not of one that is statistics alone."""
        assert self._parts is not None
        return (outputs.features for outputs in read_parts(*self._parts))

    @functools.cached_property
    def all_features(self) -> NDArray[np.float32]:
        return np.concatenate(list(self.features()))

    @property
    def images(self) -> int:
        """How many there are; 0 of statistics alone."""
        return 0 if self.reference.images is None else len(self.reference.images)


@dataclass
class Seen:
    """What a row is measured on: what the network said of a subject's images, and of the reference's."""

    context: Context
    network: FeatureNetwork
    target: Target
    parts: Callable[[], Iterator[Outputs]]

    def _range(self, number: int) -> Iterator[Outputs]:
        """Of the images of one of the `ranges`; all but the Frechet distance is of the first."""
        count = self.context.settings.samples
        return _slices(self.parts(), number * count, (number + 1) * count)

    def feature_blocks(self, number: int) -> Iterator[NDArray[np.float32]]:
        return (part.features for part in self._range(number))

    @functools.cached_property
    def first(self) -> Outputs:
        """Of all images but those of further ranges; what no metric needs may be left out."""
        return joined(list(self._range(0)))

    @property
    def in_memory(self) -> bool:
        """Whether a metric needed them all at once."""
        return "first" in vars(self)

    @functools.cached_property
    def likely(self) -> NDArray[np.float32]:
        """p(class | image), (N, classes)."""
        probabilities: NDArray[np.float32] = torch.from_numpy(self.first.logits).softmax(dim=1).numpy()
        return probabilities

    @property
    def judged(self) -> NDArray[np.int64] | None:
        """The classes seen (N,); None where the network does not know the teacher's."""
        # It knows the ten digits: of other classes it can say nothing.
        known = self.network.space.judges and self.context.archive.plan.teacher["dataset"] == "digits"
        return self.likely.argmax(axis=1) if known else None

    @property
    def asked(self) -> NDArray[np.int64] | None:
        """The classes (N,) asked for; None without classes."""
        return self.context.classes(0, self.context.settings.samples)


def _slices(parts: Iterator[Outputs], start: int, stop: int) -> Iterator[Outputs]:
    """What lies between two numbers of images."""
    first = 0
    for part in parts:
        here = slice(max(0, start - first), max(0, min(len(part.features), stop - first)))
        if here.start < here.stop:
            yield part[here]
        first += len(part.features)


def quantised(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] as uint8, rounded as `to_uint8` does."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


@torch.inference_mode()
def network_outputs(
    context: Context, network: FeatureNetwork, part: range, batch_of: BatchOf, needs: set[Need]
) -> Outputs:
    """Of a part's images, which `batch_of` gives in batches of one shape; what is needed beside features."""
    outputs = []
    for start in range(part.start, part.stop, context.settings.batch_size):
        context.check_stop()
        count = min(context.settings.batch_size, part.stop - start)
        images = batch_of(start, start + count)
        seen, judged = network.outputs(images)
        logits = judged[:count, : None if {"logits", "class logits"} & needs else 0].cpu().numpy()
        kept = images[:count].cpu().numpy() if "images" in needs else None
        outputs.append(Outputs(seen[:count].cpu().numpy(), logits, kept))
    context.check_owned()
    return joined(outputs)


def _usable_labels(context: Context, reference: Reference) -> NDArray[np.int64] | None:
    """The classes of the reference images; None where they are not those of the teacher."""
    labels, label_dim = reference.labels, context.archive.plan.label_dim
    # Those of an archive are the teacher's, of which it may have some only.
    if labels is not None and reference.source != ARCHIVE and labels.max() + 1 != label_dim:
        classes = f"has {labels.max() + 1} classes, the teacher {label_dim}"
        context.reporter.line(f"{reference.source}: {classes}: the distance is not measured by class")
        return None
    return labels

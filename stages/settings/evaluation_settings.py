"""[evaluation]: what is measured of a student. Free of torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.manifests.ground.sections import MAX_SEED, setting
from hkdpipe.stages.settings.metrics import Metric, choices, metrics
from hkdpipe.trainer.metrics.feature_spaces import SPACES

NEWER = ("kid_subsets", "kid_subset_size", "inception_score_parts", "neighbours", "matched", "student_steps")


@dataclass(frozen=True)
class EvaluationSettings:
    """[evaluation]"""

    samples: int = setting(50_000, "images behind the Frechet distance", minimum=2, kind="growing")
    seed: int = setting(
        0, "seed of the evaluation's noise, which no archive uses", minimum=0, maximum=MAX_SEED
    )
    batch_size: int = setting(256, "images in a network call", minimum=1)
    ranges: int = setting(
        1,
        "ranges of so many images each whose smallest distance counts; the papers take the best of 3",
        minimum=1,
    )
    bootstrap: int = setting(
        0, "samples redrawn so many times for the standard deviation of the distance; 0: not", minimum=0
    )
    edm_seeds: bool = setting(
        False, "image i starts from a torch generator of seed + i, as in EDM's own evaluation"
    )
    features: str = setting(
        "digits",
        "feature network: 'digits', a shipped classifier (fd_digits), or 'inception', the FID's own (fid)",
        choices=tuple(SPACES),
    )
    inception: str = setting(
        "",
        "local file with Inception's weights; '': what the environment's HKDPIPE_INCEPTION names",
        kind="operational",
    )
    reference: str = setting(
        "digits",
        "images to compare with: 'digits' or 'digits-color', a folder or .zip of pictures, an .npz of images "
        "or of EDM's statistics (mu, sigma), or 'archive': the ends of its trajectories",
    )
    metrics: tuple[str, ...] = setting(("fd", "match", "speed"), "what is measured", choices=choices)
    kid_subsets: int = setting(100, "random subsets of the samples and of the reference for 'kid'", minimum=1)
    kid_subset_size: int = setting(1000, "images of such a subset, if there are as many", minimum=2)
    inception_score_parts: int = setting(10, "parts of the samples for 'inception_score'", minimum=1)
    neighbours: int = setting(
        3, "the neighbour that a manifold's radius for 'precision_recall' reaches", minimum=1
    )
    matched: int = setting(256, "held-out trajectories for 'match', if there are as many", minimum=1)
    lpips: str = setting(
        "",
        "local file of torchvision's AlexNet weights, for LPIPS in the match; '': the one in the torch hub "
        "cache, if there is one",
    )
    weights: str = setting(
        "ema",
        "weights evaluated and exported: 'ema': the average of the training's first decay; 'ema-DECAY': "
        "that of another one; 'raw': the last ones",
    )
    student_steps: tuple[int, ...] = setting(
        (1,), "steps of the student's rows, each a network evaluation; not every method has more", minimum=1
    )
    teacher_steps: tuple[int, ...] = setting(
        (18, 8), "sampler steps of the teacher's own rows (18: 35 evaluations, 8: 15)", minimum=2
    )
    first_order_steps: tuple[int, ...] = setting(
        (), "steps of rows with the teacher's first-order sampler (DDIM in EDM's terms)", minimum=1
    )
    compared: tuple[str, ...] = setting((), "checkpoints or exports of other students, a row each")
    exports: tuple[str, ...] = setting(
        (), "written beside the model: 'program', of torch.export, and 'onnx'", choices=("program", "onnx")
    )

    def __post_init__(self) -> None:
        for metric in self.chosen:
            if metric.check:
                metric.check(self)
        rows = ["student", "teacher", *self.compared]
        if shared := [path for path in self.compared if rows.count(path) > 1]:
            accepted = "paths that differ from each other and from 'student' and 'teacher', as './student'"
            twice = f": '{shared[0]}' would be the name of two rows; accepted: {accepted}"
            raise WrongValue(Name("compared", EvaluationSettings), twice)
        if self.bootstrap == 1:
            raise WrongValue(Name("bootstrap", EvaluationSettings), ": got 1; accepted: 0, or at least 2")

    def newer(self, names: Iterable[str] = NEWER) -> dict[str, Any]:
        """Of settings that earlier versions did not have, those that are not at their defaults: only these
        count, so that what was measured stays so."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value != getattr(type(self), name)}

    @property
    def chosen(self) -> tuple[Metric, ...]:
        """The metrics asked for."""
        known = metrics()
        return tuple(known[name] for name in self.metrics)

    @property
    def sees(self) -> bool:
        """Whether they need the feature network."""
        return any(metric.row for metric in self.chosen)

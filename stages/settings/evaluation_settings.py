"""[evaluation]: what is measured of a student. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.manifests.ground.sections import MAX_SEED, setting


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
        choices=("digits", "inception"),
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
    metrics: tuple[str, ...] = setting(
        ("fd", "match", "speed"),
        "what is measured: Frechet distance, the same of an hkd student with A = 0, kernel distance, "
        "Inception score, precision and recall, match to the teacher on held-out trajectories, speed",
        choices=(
            "fd",
            "fd_without_evolution",
            "kid",
            "inception_score",
            "precision_recall",
            "match",
            "speed",
        ),
    )
    lpips: str = setting(
        "",
        "local file of torchvision's AlexNet weights, for LPIPS in the match; '': the one in the torch hub "
        "cache, if there is one",
    )
    weights: str = setting(
        "ema",
        "weights evaluated and exported: 'ema': the average of the first decay in training.ema; 'ema-DECAY': "
        "that of another one; 'raw': the last ones",
    )
    teacher_steps: tuple[int, ...] = setting(
        (18, 8), "sampler steps of the teacher's own rows (18: 35 evaluations, 8: 15)", minimum=2
    )
    first_order_steps: tuple[int, ...] = setting(
        (), "steps of rows with the teacher's first-order sampler (DDIM in EDM's terms)", minimum=1
    )
    compared: tuple[str, ...] = setting((), "checkpoints or exports of other students, a row each")
    exports: tuple[str, ...] = setting(
        (),
        "written beside the model: 'program', of torch.export, and 'onnx'",
        choices=("program", "onnx"),
    )

    def __post_init__(self) -> None:
        if "fd_without_evolution" in self.metrics and "fd" not in self.metrics:
            raise UsageError(
                f"evaluation.metrics: got {list(self.metrics)}; accepted: 'fd_without_evolution' beside 'fd'"
            )
        rows = ["student", "teacher", *self.compared]
        if shared := [path for path in self.compared if rows.count(path) > 1]:
            raise UsageError(
                f"evaluation.compared: '{shared[0]}' would be the name of two rows; accepted: paths that "
                "differ from each other and from 'student' and 'teacher', as './student'"
            )
        if self.bootstrap == 1:
            raise UsageError("evaluation.bootstrap: got 1; accepted: 0, or at least 2")
        if "precision_recall" in self.metrics and self.samples < 4:
            raise UsageError(
                f"evaluation.samples: got {self.samples}; accepted with 'precision_recall': at least 4, for "
                "three neighbours"
            )

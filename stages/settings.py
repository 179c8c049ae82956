"""Settings of stages 1 and 3, as they stand in a configuration. Free of torch."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

from hkdpipe.manifests.errors import UsageError
from hkdpipe.manifests.settings import MAX_SEED, setting


@dataclass(frozen=True)
class TeacherSettings:
    """[teacher]"""

    source: str = setting(
        "digits",
        "'digits': the teacher that ships with hkdpipe; a teacher's folder; EDM's snapshot (.pkl) or a state "
        "dict (.pt, .pth)",
    )
    licence: str = setting(
        "",
        "the licence of a teacher that does not name its own; carried into the archive's manifest, the "
        "export and its model card",
    )


_CHURN = (
    "trajectories must be deterministic; churn is for plain sampling of the teacher: "
    "hkdpipe sample --teacher TEACHER --churn 40 --out DIR"
)


@dataclass(frozen=True)
class GenerationSettings:
    """[generation]: the archive of trajectories. UsageError where `store_steps` does not fit `steps`."""

    REFUSED: ClassVar = dict.fromkeys(("churn", "s_churn", "s_min", "s_max", "s_noise"), _CHURN)

    count: int = setting(1_000_000, "trajectories in the archive", minimum=1, kind="growing")
    steps: int = setting(18, "steps of the deterministic sampler", minimum=2, maximum=100_000)
    solver: str = setting(
        "heun",
        "'heun': second order, 2 * steps - 1 network evaluations; 'euler': first order (DDIM), steps of them",
        choices=("heun", "euler"),
    )
    store_steps: tuple[int, ...] = setting(
        (),
        "after which steps the state is stored: rising numbers, the first 0 (the start), the last that of "
        "steps (the end); []: after all",
        minimum=0,
    )
    sigma_min: float = setting(
        0.002, "lowest noise level before zero, or the lowest that the teacher was made for", above=0.0
    )
    sigma_max: float = setting(
        80.0, "noise level of the start, or the highest that the teacher was made for", above=0.0
    )
    rho: float = setting(7.0, "exponent of the noise schedule", above=0.0)
    seed: int = setting(0, "seed of the noise, one index per trajectory", minimum=0, maximum=MAX_SEED)
    classes: tuple[int, ...] = setting(
        (),
        "classes drawn by a conditional teacher, each as often as the others; []: all that it knows",
        minimum=0,
    )
    format: str = setting("zarr", "form of the archive", choices=("zarr", "webdataset"))
    shard_size: int = setting(2048, "trajectories in a shard, the unit of work and of repair", minimum=1)
    dtype: str = setting(
        "float16",
        "type of the stored states; bfloat16 is no smaller than float16 and less exact",
        choices=("float16", "float32", "bfloat16"),
    )
    encoding: str = setting(
        "states",
        "what is stored of a state: itself, or 'residual': what it differs by from its noise level times the "
        "trajectory's noise, which is stored once; more exact at the same size, not for bfloat16; or "
        "'quantised': that in steps of 1/1024, as exact as float16, and far smaller with the codec it needs",
        choices=("states", "residual", "quantised"),
    )
    codec: str = setting(
        "none",
        "compression of each trajectory; a compressed one is read as a whole: 'lz4' is quick, 'zstd' smaller",
        choices=("none", "lz4", "zstd"),
    )
    batch_size: int = setting(256, "images in a network call; cut from a shard at fixed offsets", minimum=1)

    def __post_init__(self) -> None:
        stored = self.stored_steps
        rising = all(one < other for one, other in itertools.pairwise(stored))
        if not rising or stored[0] != 0 or stored[-1] != self.steps:
            raise UsageError(
                f"generation.store_steps: got {list(stored)}; accepted: rising numbers, the first 0, the "
                f"last generation.steps, which is {self.steps}; or [], for all"
            )

    @property
    def stored_steps(self) -> tuple[int, ...]:
        """The numbers of the steps after which the state is stored."""
        return self.store_steps or tuple(range(self.steps + 1))


@dataclass(frozen=True)
class CompletionSettings:
    """`hkdpipe inpaint` and `colorize`: `count` completions of each picture, in so many steps.

    The first step is from pure noise, the others from noise levels from `highest` down to `lowest`.
    """

    count: int = 4
    seed: int = 0
    steps: int = 36
    highest: float = 2.0
    lowest: float = 0.1


@dataclass(frozen=True)
class TeacherSampling:
    """`hkdpipe sample --teacher`: plain sampling, of which nothing but pictures is kept.

    Noise is added before a step (S_churn, S_min, S_max, S_noise of EDM's algorithm 2) if `churn` is above 0.
    With `edm_seeds` image i has a torch generator of its own, seed + i, as in EDM's own generator script; on
    a GPU that is the GPU's generator.
    """

    steps: int = 18
    solver: str = "heun"
    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    edm_seeds: bool = False


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

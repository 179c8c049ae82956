"""How a teacher is sampled plainly. Free of torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TeacherSampling:
    """Plain sampling of a teacher, of which nothing but pictures is kept.

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

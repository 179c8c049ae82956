"""[generation]: the archive of trajectories. Free of torch."""

import itertools
from dataclasses import dataclass
from typing import ClassVar

from hkdpipe.manifests.ground.errors import Name, Remedy, WrongValue
from hkdpipe.manifests.ground.sections import MAX_SEED, setting
from hkdpipe.manifests.plan.schema import PLAN

_CHURN = (
    "trajectories must be deterministic; churn is for plain sampling of the teacher: ",
    Remedy("TeacherSampling(churn=40)"),
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
        choices=PLAN.keys["sampler"].keys["solver"].names,
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
    format: str = setting("zarr", "form of the archive", choices=PLAN.keys["form"].names)
    shard_size: int = setting(2048, "trajectories in a shard, the unit of work and of repair", minimum=1)
    dtype: str = setting(
        "float16",
        "type of the stored states; bfloat16 is no smaller than float16 and less exact",
        choices=PLAN.keys["dtype"].names,
    )
    encoding: str = setting(
        "states",
        "what is stored of a state: itself, or 'residual': what it differs by from its noise level times the "
        "trajectory's noise, which is stored once; more exact at the same size, not for bfloat16; or "
        "'quantised': that in steps of 1/1024, as exact as float16, and far smaller with the codec it needs",
        choices=PLAN.keys["encoding"].names,
    )
    codec: str = setting(
        "none",
        "compression of each trajectory; a compressed one is read as a whole: 'lz4' is quick, 'zstd' smaller",
        choices=PLAN.keys["codec"].names,
    )
    batch_size: int = setting(256, "images in a network call; cut from a shard at fixed offsets", minimum=1)

    def __post_init__(self) -> None:
        stored = self.stored_steps
        rising = all(one < other for one, other in itertools.pairwise(stored))
        if not rising or stored[0] != 0 or stored[-1] != self.steps:
            store_steps, steps = (Name(key, type(self)) for key in ("store_steps", "steps"))
            got = f": got {list(stored)}; accepted: rising numbers, the first 0, the last "
            raise WrongValue(store_steps, got, steps, f", which is {self.steps}; or [], for all")

    @property
    def stored_steps(self) -> tuple[int, ...]:
        """The numbers of the steps after which the state is stored."""
        return self.store_steps or tuple(range(self.steps + 1))

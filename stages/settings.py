"""Settings of stages 1 and 3, as they stand in a configuration. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from hkdpipe.manifests.settings import MAX_SEED, setting


@dataclass(frozen=True)
class TeacherSettings:
    """[teacher]"""

    source: str = setting(
        "digits", "'digits': the teacher that ships with hkdpipe; or a folder made by train-teacher"
    )


@dataclass(frozen=True)
class GenerationSettings:
    """[generation]: the archive of trajectories."""

    count: int = setting(1_000_000, "trajectories in the archive", minimum=1, kind="growing")
    steps: int = setting(
        18, "steps of the deterministic Heun sampler; network evaluations: 2 * steps - 1", minimum=2
    )
    sigma_min: float = setting(0.002, "lowest noise level before zero", above=0.0)
    sigma_max: float = setting(80.0, "noise level of the start", above=0.0)
    rho: float = setting(7.0, "exponent of the noise schedule", above=0.0)
    seed: int = setting(0, "seed of the noise, one index per trajectory", minimum=0, maximum=MAX_SEED)
    classes: tuple[int, ...] = setting(
        (),
        "classes drawn by a conditional teacher, each as often as the others; []: all that it knows",
        minimum=0,
    )
    format: str = setting("zarr", "form of the archive", choices=("zarr", "webdataset"))
    shard_size: int = setting(2048, "trajectories in a shard, the unit of work and of repair", minimum=1)
    dtype: str = setting("float16", "type of the stored states", choices=("float16", "float32"))
    batch_size: int = setting(256, "images in a network call; cut from a shard at fixed offsets", minimum=1)


@dataclass(frozen=True)
class EvaluationSettings:
    """[evaluation]"""

    samples: int = setting(50_000, "images behind the Frechet distance", minimum=2, kind="growing")
    seed: int = setting(
        0, "seed of the evaluation's noise, which no archive uses", minimum=0, maximum=MAX_SEED
    )
    batch_size: int = setting(256, "images in a network call", minimum=1)
    features: str = setting("digits", "feature network of the Frechet distance", choices=("digits",))
    reference: str = setting("digits", "images to compare with: 'digits', a folder of pictures, an .npz file")
    metrics: tuple[str, ...] = setting(
        ("fd", "match", "speed"),
        "what is measured: Frechet distance, match to the teacher on held-out trajectories, speed",
        choices=("fd", "match", "speed"),
    )
    weights: str = setting("ema", "weights evaluated and exported", choices=("ema", "raw"))
    teacher_steps: tuple[int, ...] = setting(
        (18, 8), "sampler steps of the teacher's own rows (18: 35 evaluations, 8: 15)", minimum=2
    )

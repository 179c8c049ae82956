"""[kdm]: the networks and the latents of KDM. Free of torch."""

from dataclasses import dataclass, field

from hkdpipe.manifests.ground.sections import setting


@dataclass(frozen=True)
class KdmSettings:
    """[kdm]: the networks and the latents of kdm, which are new and not the teacher's."""

    width: int = setting(
        64, "channels of the U-Nets' finest level (paper: 64 at 32x32, 32 at 64x64)", minimum=8
    )
    channel_mult: tuple[int, ...] = setting((1, 2, 2), "width of each level over the finest", minimum=1)
    num_blocks: int = setting(2, "blocks a level", minimum=1)
    attn_resolutions: tuple[int, ...] = setting((16,), "resolutions with self-attention", minimum=1)
    projection: int = setting(
        0,
        "dimension of the latents by a linear projection (paper: 512 at 64x64); 0: a number for each pixel",
        minimum=0,
    )
    operator: str = setting(
        "dense",
        "the linear map: 'dense': a matrix; 'factorised': Re(P L Q) with eigenvalues |L| < 1",
        choices=("dense", "factorised"),
    )
    inverse_weight: float = setting(
        1.0, "factorised: weight of |QP - I|^2 + |PQ - I|^2, over the dimension", minimum=0.0
    )
    modulus_weight: float = setting(
        0.0, "factorised: weight of the pull of the eigenvalues to the unit circle", minimum=0.0
    )
    noise: float = setting(
        0.4, "standard deviation of the noise on latents that are decoded, in training", minimum=0.0
    )
    adversarial_weight: float = setting(
        0.01, "weight of deceiving a discriminator of patches; 0: without one", minimum=0.0
    )
    control: bool = setting(
        False, "of a conditional teacher: the class adds a vector to the mapped latent, too"
    )


@dataclass(frozen=True)
class KdmOptions:
    """The section of KDM."""

    kdm: KdmSettings = field(default_factory=KdmSettings)

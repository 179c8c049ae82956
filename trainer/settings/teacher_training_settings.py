"""How an EDM teacher is trained for an image set. Free of torch."""

from dataclasses import dataclass

from hkdpipe.manifests.ground.sections import MAX_SEED, operational, setting


@dataclass(frozen=True)
class TeacherTrainingSettings:
    """An EDM teacher for an image set."""

    model_channels: int = setting(32, "width of the finest level", minimum=8)
    channel_mult: tuple[int, ...] = setting((1, 2, 2), "width of each level over the finest", minimum=1)
    num_blocks: int = setting(1, "blocks a level", minimum=1)
    attn_resolutions: tuple[int, ...] = setting((4,), "resolutions with self-attention", minimum=1)
    conditional: bool = setting(False, "teach the classes of the images too")
    iterations: int = setting(3000, "optimiser steps", minimum=1, kind="growing")
    batch_size: int = setting(128, "images in a step", minimum=1)
    learning_rate: float = setting(2e-3, "Adam's learning rate, cosine decay to zero", above=0.0)
    noise_mean: float = setting(-1.2, "mean of the noise's ln sigma: EDM's P_mean")
    noise_std: float = setting(1.2, "standard deviation of the noise's ln sigma: EDM's P_std", above=0.0)
    ema: float = setting(0.998, "decay per step of the averaged weights", minimum=0.0, maximum=1.0)
    seed: int = setting(0, "seed of the weights, the order and the noise", minimum=0, maximum=MAX_SEED)
    checkpoint_every: int = operational(500, "steps between checkpoints", minimum=1)

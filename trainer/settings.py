"""Settings of training, as they stand in a configuration's [training] and [koopman]. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from hkdpipe.manifests.errors import UsageError
from hkdpipe.manifests.settings import MAX_SEED, setting


@dataclass(frozen=True)
class TrainingSettings:
    """[training]: what is learned from an archive, how long and how fast."""

    method: str = setting(
        "hkd",
        "hkd: Hierarchical Koopman Diffusion; kd: knowledge distillation, the teacher's denoiser trained on "
        "the start and the end alone; kdm: the Koopman Distillation Model, networks of its own between them",
        choices=("hkd", "kd", "kdm"),
    )
    budget: int = setting(1_000_000, "trajectories to see, over all processes", minimum=1, kind="growing")
    batch_size: int = setting(256, "trajectories in a step, over all processes", minimum=1)
    times: int = setting(
        1,
        "of hkd: times drawn of each trajectory in a step: 1 (the start with probability endpoint_share), or "
        "s > 1: the start and s - 1 times in between, as in the paper (5)",
        minimum=1,
    )
    endpoint_share: float = setting(
        0.5,
        "with times = 1: probability that the time drawn is the start (pure noise)",
        minimum=0.0,
        maximum=1.0,
    )
    time_sampling: str = setting(
        "uniform",
        "the times in between: 'uniform' in sigma, at the nearest stored state (paper); 'grid': every stored "
        "state alike",
        choices=("uniform", "grid"),
    )
    between_weight: float = setting(
        1.0,
        "weight of the times in between, of whose losses the mean is taken, beside 1 for the start; "
        "times - 1 makes it the sum (algorithm 1 of the paper)",
        minimum=0.0,
    )
    latent_weight: float = setting(
        0.1,
        "weight of the latent consistency of hkd: the observables evolved to the end, against those of the "
        "last state above sigma = 0, relative to these in each tensor; 0: none (paper)",
        minimum=0.0,
    )
    learning_rate: float = setting(1e-3, "Adam's learning rate", above=0.0)
    schedule: str = setting(
        "constant",
        "learning rate over the budget: constant (paper), or cosine decay to zero",
        choices=("constant", "cosine"),
    )
    warmup: int = setting(
        0, "trajectories over which the learning rate rises from zero, linearly; 0: none (paper)", minimum=0
    )
    weight_decay: float = setting(0.0, "weight decay of the networks", minimum=0.0)
    weight_decay_form: str = setting(
        "decoupled",
        "'decoupled': the weights shrink by learning_rate * weight_decay in a step (AdamW); 'coupled': "
        "weight_decay times the weights is added to the gradient (an L2 term in Adam)",
        choices=("decoupled", "coupled"),
    )
    gradient_clip: float = setting(0.0, "largest norm of the gradient; 0: unbounded (paper)", minimum=0.0)
    ema: tuple[float, ...] = setting(
        (0.9999,),
        "decay per step of each average of the weights, with the usual warm-up min(ema, (1 + k)/(10 + k)); "
        "the first is the one that is evaluated unless evaluation.weights says otherwise",
        minimum=0.0,
        maximum=1.0,
        single=True,
    )
    init_from: str = setting(
        "",
        "checkpoint (its last weights) or export of the same method and network to start from instead of the "
        "teacher; what counts is what it holds, not where it is, and once the training has begun it is not "
        "needed any more; '': none",
        kind="operational",
    )
    seed: int = setting(
        0,
        "seed of all that a training draws: reading order, times, replacements of damaged trajectories, and "
        "the weights and the noise of kdm",
        minimum=0,
        maximum=MAX_SEED,
    )
    order: str = setting(
        "full",
        "reading order of an epoch: 'full': a permutation of all trajectories; 'blocks': of the shards, then "
        "of the trajectories of every block_shards of them, for storage that dislikes random reads",
        choices=("full", "blocks"),
    )
    block_shards: int = setting(4, "with order = 'blocks': shards of a block", minimum=1)
    validation: int = setting(256, "trajectories held out: the first ones of the archive", minimum=0)
    perceptual: str = setting(
        "vgg",
        "perceptual part of the loss: LPIPS with the backbone named, 'digits': features of the shipped "
        "digits classifier, 'pseudo-huber': sqrt(|a - b|^2 + 0.03^2) - 0.03, 'none': MSE alone",
        choices=("vgg", "alex", "squeeze", "digits", "pseudo-huber", "none"),
    )
    perceptual_size: int = setting(
        64, "pixels: LPIPS compares images with a smaller side upsampled to it", minimum=1
    )
    perceptual_file: str = setting(
        "",
        "local file with torchvision's weights of the LPIPS backbone; what counts is what it holds, not "
        "where it is; '': look in the torch hub cache",
        kind="operational",
    )
    perceptual_weight: float = setting(
        1.0, "weight of the perceptual part (lambda 2 of the paper)", minimum=0.0
    )
    mse_weight: float = setting(1.0, "weight of the MSE (lambda 1 of the paper) at the start", minimum=0.0)
    mse_decades: float = setting(
        3.0,
        "the weight of the MSE falls by so many powers of ten over the budget",
        minimum=0.0,
    )
    precision: str = setting(
        "float32",
        "arithmetic: of networks and weights 'float32', or 'float64' for parity checks; 'tf32': float32, but "
        "GPUs round what they multiply to 10 bits; 'bf16' and 'fp16' of the networks alone, by autocast: "
        "weights, optimiser, sums of the loss and evolution stay in float32",
        choices=("float32", "tf32", "float64", "bf16", "fp16"),
    )
    micro_batch: int = setting(
        0,
        "trajectories that a process takes at once, adding up the gradients of a step; 0: its whole share",
        minimum=0,
        kind="operational",
    )
    channels_last: bool = setting(
        False, "keep images and weights with their channels last, as GPUs like them", kind="operational"
    )
    compile: bool = setting(
        False, "let torch.compile make the step faster; its start takes minutes", kind="operational"
    )
    recompute: bool = setting(
        False,
        "activation checkpointing: compute what is within a block of the networks once more in the backward "
        "pass, instead of keeping it in memory",
        kind="operational",
    )
    checkpoint_every: int = setting(
        100_000, "trajectories between checkpoints", minimum=1, kind="operational"
    )
    checkpoint_minutes: float = setting(
        15.0,
        "minutes between checkpoints, if that is sooner; 0: by trajectories alone",
        minimum=0.0,
        kind="operational",
    )
    fd_images: int = setting(
        0,
        "images of which the Frechet distance is measured at every checkpoint, for distance.csv, with the "
        "features and the reference of [evaluation]; 0: not",
        minimum=0,
        kind="operational",
    )
    keep_checkpoints: int = setting(
        2, "newest checkpoints kept, beside the best", minimum=1, kind="operational"
    )
    max_skipped: int = setting(
        50,
        "steps in a row without a finite loss and gradient, which are skipped, that end the training",
        minimum=1,
        kind="operational",
    )
    workers: int = setting(
        2,
        "batches that a process reads ahead, each in a thread; 0: read between the steps",
        minimum=0,
        kind="operational",
    )
    streaming: bool = setting(
        False,
        "with order = 'blocks': stream the tar shards of an archive block by block, instead of reading at "
        "random from files or, of a remote archive, from the cache",
        kind="operational",
    )
    tensorboard: bool = setting(
        False,
        "write TensorBoard's events, with pictures of held-out trajectories, beside metrics.csv; needs the "
        "package tensorboard",
        kind="operational",
    )
    on_damage: str = setting(
        "stop",
        "a shard that is missing or damaged: 'stop', or 'skip': go on with other trajectories in its place",
        choices=("stop", "skip"),
        kind="operational",
    )

    def __post_init__(self) -> None:
        if not self.ema:
            raise UsageError("training.ema: got []; accepted: at least one decay; 0 averages nothing")
        if self.fd_images == 1:
            raise UsageError("training.fd_images: got 1; accepted: 0, or at least 2, for a covariance")


@dataclass(frozen=True)
class KoopmanSettings:
    """[koopman]: the operator of hkd. Its generator starts at zero, so its evolution as the identity."""

    time: str = setting(
        "angle",
        "time coordinate of the evolution: 'angle': 2/pi atan(sigma / sigma_data); 'karras': sigma^(1/rho) "
        "rescaled to [0, 1]; 'log': ln sigma rescaled to [0, 1]; 'sigma-unit': sigma / sigma_max (paper)",
        choices=("angle", "karras", "log", "sigma-unit"),
    )
    encoder_time: str = setting(
        "sigma",
        "the encoder is told the noise level ('sigma', paper) or not ('none')",
        choices=("sigma", "none"),
    )
    decoder_time: str = setting(
        "initial",
        "the decoder's constant noise conditioning: 'initial': sigma_max; 'final': sigma_min (paper)",
        choices=("initial", "final"),
    )
    hierarchy: str = setting(
        "full",
        "tensors that evolve: 'full': all skip tensors and the bottleneck (paper); 'bottleneck': it alone; "
        "'none': no operator",
        choices=("full", "bottleneck", "none"),
    )
    sharing: str = setting(
        "location",
        "eigenvalues per channel pair and 'location' (paper); per 'channel' pair alone; 'low-rank': sums of "
        "`rank` maps of the locations, which the channel pairs of a tensor share",
        choices=("location", "channel", "low-rank"),
    )
    rank: int = setting(4, "with sharing = 'low-rank': number of maps", minimum=1)
    alpha_bound: float = setting(
        0.0,
        "the real parts of the eigenvalues stay below it in magnitude, as bound * tanh(free / bound); "
        "0: no bound (paper)",
        minimum=0.0,
    )
    learning_rate_factor: float = setting(
        30.0, "learning rate of the operators over that of the networks (paper: 1)", above=0.0
    )
    learns_from: str = setting(
        "latent",
        "'latent': the operators descend the latent consistency alone, and the networks the images' loss "
        "alone; 'all': both descend one loss (paper)",
        choices=("latent", "all"),
    )


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
class TeacherTrainingSettings:
    """`hkdpipe train-teacher`: an EDM teacher for an image set."""

    model_channels: int = setting(32, "width of the finest level", minimum=8)
    channel_mult: tuple[int, ...] = setting((1, 2, 2), "width of each level over the finest", minimum=1)
    num_blocks: int = setting(1, "blocks a level", minimum=1)
    attn_resolutions: tuple[int, ...] = setting((4,), "resolutions with self-attention", minimum=1)
    conditional: bool = setting(False, "teach the classes of the images too")
    iterations: int = setting(3000, "optimiser steps", minimum=1, kind="growing")
    batch_size: int = setting(128, "images in a step", minimum=1)
    learning_rate: float = setting(2e-3, "Adam's learning rate, cosine decay to zero", above=0.0)
    ema: float = setting(0.998, "decay per step of the averaged weights", minimum=0.0, maximum=1.0)
    seed: int = setting(0, "seed of the weights, the order and the noise", minimum=0, maximum=MAX_SEED)
    checkpoint_every: int = setting(500, "steps between checkpoints", minimum=1, kind="operational")


MethodSettings = KoopmanSettings | KdmSettings
"""The settings of a method's own section."""


def check_without_states_between(training: TrainingSettings, reason: str) -> None:
    """Raises UsageError where a training needs states in between, of which `reason` says there are none."""
    if training.method != "hkd":
        return
    for key, limit, accepted in (
        ("times", 1, "1"),
        ("latent_weight", 0, '0, with koopman.learns_from = "all"'),
    ):
        if (given := getattr(training, key)) > limit:
            raise UsageError(f"training.{key}: got {given}; accepted: {accepted}, as {reason}")


def check_operators_learn(training: TrainingSettings, koopman: KoopmanSettings) -> None:
    """Raises UsageError where the operators of a training of hkd would have nothing to learn from."""
    if training.method != "hkd" or koopman.hierarchy == "none" or koopman.learns_from != "latent":
        return
    if not training.latent_weight:
        raise UsageError("koopman.learns_from: got 'latent'; accepted with training.latent_weight = 0: 'all'")

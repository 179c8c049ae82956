"""[training]: what is learned from an archive, how long and how fast. Free of torch."""

from dataclasses import dataclass

from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.manifests.ground.sections import MAX_SEED, operational, setting
from hkdpipe.trainer.settings.method_registry import descriptions


@dataclass(frozen=True)
class TrainingSettings:
    """[training]: what is learned from an archive, how long and how fast."""

    method: str = setting("hkd", "how the student learns", choices=descriptions)
    budget: int = setting(1_000_000, "trajectories to see, over all processes", minimum=1, kind="growing")
    batch_size: int = setting(256, "trajectories in a step, over all processes", minimum=1)
    learning_rate: float = setting(1e-3, "Adam's learning rate", above=0.0)
    adam_betas: tuple[float, ...] = setting(
        (0.9, 0.999), "Adam's decays of the gradient's mean and of its square's", minimum=0.0, maximum=1.0
    )
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
        "the first is the one that is evaluated unless the evaluation's weights say otherwise",
        minimum=0.0,
        maximum=1.0,
        single=True,
    )
    init_from: str = operational(
        "",
        "checkpoint (its last weights) or export of the same method and network to start from instead of the "
        "teacher; what counts is what it holds, not where it is, and once the training has begun it is not "
        "needed any more; '': none",
    )
    images: str = operational(
        "",
        "real images, for a method that learns from them: a set as a teacher is trained on; what counts is "
        "what it holds, not where it is",
    )
    seed: int = setting(
        0,
        "seed of all that a training draws: reading order, times, replacements of damaged trajectories, and "
        "what else a method draws",
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
        "digits classifier, 'pseudo-huber': sqrt(|a - b|^2 + c^2) - c, 'none': MSE alone",
        choices=("vgg", "alex", "squeeze", "digits", "pseudo-huber", "none"),
    )
    pseudo_huber_c: float = setting(0.03, "c of 'pseudo-huber', of whole images in [-1, 1]", above=0.0)
    perceptual_size: int = setting(
        64, "pixels: LPIPS compares images with a smaller side upsampled to it", minimum=1
    )
    perceptual_file: str = operational(
        "",
        "local file with torchvision's weights of the LPIPS backbone; what counts is what it holds, not "
        "where it is; '': look in the torch hub cache",
    )
    perceptual_weight: float = setting(
        1.0, "weight of the perceptual part (lambda 2 of the paper)", minimum=0.0
    )
    mse_weight: float = setting(1.0, "weight of the MSE (lambda 1 of the paper) at the start", minimum=0.0)
    mse_decades: float = setting(
        3.0, "the weight of the MSE falls by so many powers of ten over the budget", minimum=0.0
    )
    precision: str = setting(
        "float32",
        "arithmetic: of networks and weights 'float32', or 'float64' for parity checks; 'tf32': float32, but "
        "GPUs round what they multiply to 10 bits; 'bf16' and 'fp16' of the networks alone, by autocast: "
        "weights, optimiser, sums of the loss and evolution stay in float32",
        choices=("float32", "tf32", "float64", "bf16", "fp16"),
    )
    micro_batch: int = operational(
        0,
        "trajectories that a process takes at once, adding up the gradients of a step; 0: its whole share",
        minimum=0,
    )
    channels_last: bool = operational(
        False, "keep images and weights with their channels last, as GPUs like them"
    )
    compile: bool = operational(False, "let torch.compile make the step faster; its start takes minutes")
    recompute: bool = operational(
        False,
        "activation checkpointing: compute what is within a block of the networks once more in the backward "
        "pass, instead of keeping it in memory",
    )
    checkpoint_every: int = operational(100_000, "trajectories between checkpoints", minimum=1)
    checkpoint_minutes: float = operational(
        15.0, "minutes between checkpoints, if that is sooner; 0: by trajectories alone", minimum=0.0
    )
    fd_images: int = operational(
        0,
        "images of which the Frechet distance is measured at every checkpoint, for distance.csv, with the "
        "features and the reference of [evaluation]; 0: not",
        minimum=0,
    )
    keep_checkpoints: int = operational(2, "newest checkpoints kept, beside the best", minimum=1)
    max_skipped: int = operational(
        50,
        "steps in a row without a finite loss and gradient, which are skipped, that end the training",
        minimum=1,
    )
    workers: int = operational(
        2, "batches that a process reads ahead, each in a thread; 0: read between the steps", minimum=0
    )
    streaming: bool = operational(
        False,
        "with order = 'blocks': stream the tar shards of an archive block by block, instead of reading at "
        "random from files or, of a remote archive, from the cache",
    )
    tensorboard: bool = operational(
        False,
        "write TensorBoard's events, with pictures of held-out trajectories, beside metrics.csv; needs the "
        "package tensorboard",
    )
    on_damage: str = operational(
        "stop",
        "a shard that is missing or damaged: 'stop', or 'skip': go on with other trajectories in its place",
        choices=("stop", "skip"),
    )

    def __post_init__(self) -> None:
        if not self.ema:
            raise WrongValue(
                Name("ema", type(self)), ": got []; accepted: at least one decay; 0 averages nothing"
            )
        if len(self.adam_betas) != 2 or max(self.adam_betas) == 1:
            raise WrongValue(
                Name("adam_betas", type(self)),
                f": got {list(self.adam_betas)}; accepted: two numbers below 1",
            )
        if self.fd_images == 1:
            raise WrongValue(
                Name("fd_images", type(self)), ": got 1; accepted: 0, or at least 2, for a covariance"
            )

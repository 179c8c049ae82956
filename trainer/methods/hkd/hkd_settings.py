"""[hkd]: how HKD learns; [koopman]: its operators. Free of torch."""

from dataclasses import dataclass, field

from hkdpipe.manifests.ground.errors import Name, WrongValue
from hkdpipe.manifests.ground.sections import setting


@dataclass(frozen=True)
class HkdSettings:
    """[hkd]: which states of a trajectory HKD learns from, and what from each."""

    times: int = setting(
        1,
        "times drawn of each trajectory in a step: 1 (the start with probability endpoint_share), or "
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
        "weight of the latent consistency: the observables evolved to the end, against those of the "
        "last state above sigma = 0, relative to these in each tensor; 0: none (paper)",
        minimum=0.0,
    )
    latent_every: int = setting(
        4,
        "steps from one latent consistency to the next where the operators alone learn from it; at three "
        "times the rate it serves them as well as every step, which would cost 3 % of a small network's",
        minimum=1,
    )
    latent_trajectories: int = setting(
        16,
        "trajectories of a step that take part in the latent consistency, of small batches one in four: to "
        "encode the ends of all would take a sixth of a step",
        minimum=1,
    )


@dataclass(frozen=True)
class KoopmanSettings:
    """[koopman]: the operators. Their generators start at zero, so the evolution as the identity."""

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
class HkdOptions:
    """The sections of HKD."""

    hkd: HkdSettings = field(default_factory=HkdSettings)
    koopman: KoopmanSettings = field(default_factory=KoopmanSettings)


def check_options(options: HkdOptions, no_states_between: str = "") -> None:
    """Raises UsageError where the operators would have nothing to learn from, or where the options need
    states between start and end and `no_states_between` says why there are none."""
    hkd, koopman = options.hkd, options.koopman
    times, latent_weight = Name("times", HkdSettings), Name("latent_weight", HkdSettings)
    learns_from = Name("learns_from", KoopmanSettings)
    if no_states_between and hkd.times > 1:
        raise WrongValue(times, f": got {hkd.times}; accepted: 1, as {no_states_between}")
    if no_states_between and hkd.latent_weight:
        raise WrongValue(
            latent_weight,
            f": got {hkd.latent_weight}; accepted: 0, with ",
            learns_from,
            ' = "all", as ',
            no_states_between,
        )
    if not hkd.latent_weight and koopman.hierarchy != "none" and koopman.learns_from == "latent":
        raise WrongValue(learns_from, ": got 'latent'; accepted with ", latent_weight, " = 0: 'all'")

"""[koopman]: the operators of HKD. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.manifests.ground.sections import setting
from hkdpipe.trainer.settings.training_settings import TrainingSettings


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

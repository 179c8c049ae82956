"""Hierarchical Koopman Diffusion (arXiv 2510.12220): encode, evolve linearly, decode.

x_0 = D({exp(A (tau(end) - tau(t))) z}) with {z} = E(x_t, t): every skip tensor of the teacher's U-Net and its
bottleneck evolve by a Koopman operator of their own. E and D start as the teacher's two halves.
"""

from collections.abc import Sequence
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.losses import distillation_loss as losses
from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson
from hkdpipe.trainer.methods.hkd import METHOD, koopman_operator
from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, HkdSettings, check_options
from hkdpipe.trainer.methods.hkd.koopman_operator import FixedPropagator, KoopmanOperator
from hkdpipe.trainer.numbers.precision import exact
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.teachers.families import NotSplit, TeacherArchitecture, TeacherNetwork


class HKD(Student):
    """The student: encoder, one Koopman operator per tensor, decoder."""

    method = METHOD
    options: HkdOptions

    def __init__(
        self, arch: TeacherArchitecture, options: HkdOptions, sigma_min: float, sigma_max: float, rho: float
    ) -> None:
        """Raises UsageError for a teacher whose network has no two halves."""
        super().__init__(arch, options, sigma_min, sigma_max, rho)
        settings = options.koopman
        try:
            self.encoder, self.decoder = self.arch.network().split()
        except NotSplit as error:
            raise UsageError(
                f"teacher: {error.found}; accepted for hkd: {error.accepted} (its trajectories can be "
                "generated and compared with)"
            ) from None
        self.shapes = self.encoder.shapes()
        """(C, H, W) of every observable, finest first."""
        last = len(self.shapes) - 1
        evolved = {"full": range(last + 1), "bottleneck": [last], "none": []}[settings.hierarchy]
        generator = settings.sharing, settings.rank, settings.alpha_bound
        operators = {str(index): KoopmanOperator(*self.shapes[index], *generator) for index in evolved}
        self.koopman = nn.ModuleDict(operators)

    def start_from(self, teacher: TeacherNetwork) -> None:
        """The teacher's two halves, and idle operators."""
        for half, whole in zip((self.encoder, self.decoder), teacher.split(), strict=True):
            weights = whole.state_dict()
            half.load_state_dict({name: weights[name] for name in half.state_dict()})

    def encode(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """E(x, sigma): the observables of states x (N, C, H, W) at noise levels sigma (N,), finest first.
        Here and below, labels are one-hot (N, label_dim), class numbers (N,) of an integer type, or None."""
        x, sigma = x.to(self.dtype), sigma.to(self.dtype)
        told = sigma if self.options.koopman.encoder_time == "sigma" else torch.ones_like(sigma)
        return self.encoder.observe(x, sigma, told, self._one_hot(labels))

    def evolve(
        self, z: Sequence[Tensor], start: Tensor, stop: Tensor, constant: bool = False
    ) -> list[Tensor]:
        """exp(A (tau(stop) - tau(start))) z, noise levels (N,) or (1,); `constant`: without gradient in A."""
        found = list(z)
        for name, parts in self._propagators(start, stop, constant).items():
            found[int(name)] = koopman_operator.evolved(z[int(name)], *parts)
        return found

    def _propagators(
        self, start: Tensor, stop: Tensor, constant: bool = False
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """By the numbers of the tensors that evolve; of a folded model those that it holds."""
        fixed, operators = {}, {}
        for name, module in self.koopman.items():
            if isinstance(module, FixedPropagator):
                fixed[name] = module.cosine, module.sine
            else:
                operators[name] = cast(KoopmanOperator, module)
        if not operators:
            return fixed
        with torch.set_grad_enabled(torch.is_grad_enabled() and not constant):
            dt = self.tau(stop) - self.tau(start)
            return dict(zip(operators, koopman_operator.propagators([*operators.values()], dt), strict=True))

    def decode(self, z: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """D(z): images (N, C, H, W) from observables at the end; told one constant noise level."""
        level = self.sigma_max if self.options.koopman.decoder_time == "initial" else self.sigma_min
        sigma = torch.full((1,), level, dtype=self.dtype, device=z[-1].device)
        return self.decoder.image(z, sigma, self._one_hot(labels))

    def observe(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """The observables at the end of the trajectory that passes x (N, C, H, W) at sigma (N,)."""
        end = torch.full_like(sigma[:1], self.sigma_min)
        return self.evolve(self.encode(x, sigma, labels), sigma, end)

    def predict(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decode(self.observe(x, sigma, labels), labels)

    def forward(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, observables: Tensor | None = None
    ) -> Any:
        """The prediction; with `observables`, rows of x, it and theirs at the end, for latent consistency.

        Those are what the prediction is decoded from, but with `learns_from` = "latent": then the images have
        no gradient in the operators, and the observables none but there.
        """
        z = self.encode(x, sigma, labels)
        end = torch.full_like(sigma[:1], self.sigma_min)
        reached = self.evolve(z, sigma, end, constant=self._apart)
        images = self.decode(reached, labels)
        if observables is None:
            return images
        if self._apart:
            apart = [tensor.detach()[observables] for tensor in z]
            return images, self.evolve(apart, sigma[observables], end)
        return images, [tensor[observables] for tensor in reached]

    def loss(self, module: nn.Module, batch: Batch, lesson: Lesson) -> dict[str, Tensor]:
        """The distillation loss, and 'latent', the latent consistency, in steps where it has a weight."""
        hkd, batch_size = self.options.hkd, lesson.training.batch_size
        if not hkd.latent_weight:
            return losses.distillation_loss(module, batch, lesson, hkd.between_weight)
        drawn = batch.with_states(slice(-1))
        if not len(self.koopman) or not self._compares(batch, batch_size):
            return losses.distillation_loss(module, drawn, lesson, hkd.between_weight)
        rows, one_in = _compared(batch, batch_size, hkd.latent_trajectories)
        few, times = batch.of_trajectories(rows), drawn.sigmas.shape[1]
        states = (rows[:, None] * times + np.arange(times)).ravel()
        compared = torch.from_numpy(states).to(batch.states.device)
        images, z = module(*drawn.flat(), observables=compared)
        share = losses.shares(drawn, hkd.between_weight)
        terms = losses.image_terms(images, batch.ends, share, lesson)
        with torch.no_grad():
            end = self.observe(*few.with_states(slice(-1, None)).flat())
        errors = latent_error(z, [target.repeat_interleave(times, dim=0) for target in end])
        terms["latent"] = losses.weighted_sum(errors, (one_in * share[compared]).to(errors))
        terms["loss"] = terms["loss"] + hkd.latent_weight * terms["latent"]
        return terms

    @property
    def _apart(self) -> bool:
        """Whether images teach the networks alone, and the latent consistency the operators."""
        return self.options.koopman.learns_from == "latent"

    def _compares(self, batch: Batch, batch_size: int) -> bool:
        """Whether the step has a latent consistency: each, or, where it teaches operators alone, some."""
        if batch.positions is None or not self._apart:
            return True
        step = int(batch.positions[0]) // batch_size
        every = self.options.hkd.latent_every
        return step % every == every - 1

    def check_steps(self, steps: int) -> None:
        super().check_steps(steps)
        if steps > 1 and any(isinstance(module, FixedPropagator) for module in self.koopman.values()):
            raise ValueError("this student was folded for one step")

    def folded(self, steps: int = 1) -> Self:
        """With e^{A (tau(end) - tau(start))} as a constant, where it samples from the start alone."""
        model = super().folded()
        if steps > 1:
            return model
        start, end = (
            torch.tensor([sigma], dtype=self.dtype, device=self.device)
            for sigma in (self.sigma_max, self.sigma_min)
        )
        for name, parts in self._propagators(start, end).items():
            model.koopman[name] = FixedPropagator(*parts)
        return model

    def _one_hot(self, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        return (F.one_hot(labels, self.arch.label_dim) if labels.ndim == 1 else labels).to(self.dtype)

    def tau(self, sigma: Tensor) -> Tensor:
        """The time coordinate of the evolution."""
        return koopman_operator.evolution_time(
            sigma, self.options.koopman.time, self.sigma_min, self.sigma_max, self.rho, self.arch.sigma_data
        )

    def parameter_groups(self, training: TrainingSettings) -> list[dict[str, Any]]:
        """Groups for the optimiser: the networks, and the operators with their own rate and no decay.
        UsageError where the operators would have nothing to learn from."""
        check_options(self.options)
        networks = [*self.encoder.parameters(), *self.decoder.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": networks, "lr": training.learning_rate, "weight_decay": training.weight_decay}
        ]
        if operators := list(self.koopman.parameters()):
            rate = training.learning_rate * self.options.koopman.learning_rate_factor
            groups.append({"params": operators, "lr": rate, "weight_decay": 0.0})
        return groups

    def draw_states(
        self, seed: int, positions: NDArray[np.int64], sigmas: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Numbers of the stored states to learn from, (B, times), by the samples' positions.

        `sigmas` (n + 1,) are those of the stored states, the last one 0; drawn are states 0 .. n-1. With one
        time: the start with probability `endpoint_share`, else one in between. With s: the start first.
        Where no states in between are stored, it is always the start. A column for state n - 1, to whose
        observables the others shall lead, follows where the latent consistency has a weight.
        """
        drawn = _draw_times(self.options.hkd, seed, positions, sigmas)
        if self.options.hkd.latent_weight:
            drawn = np.pad(drawn, ((0, 0), (0, 1)), constant_values=len(sigmas) - 2)
        return drawn


def _compared(batch: Batch, batch_size: int, some: int) -> tuple[NDArray[np.int64], int]:
    """Rows of the trajectories whose observables are compared, and how many each of them stands for. Chosen
    by position, they are the same for any number of processes, and no batch is without one."""
    if batch.positions is None:
        return np.arange(len(batch.states)), 1
    one_in = min(max(4, batch_size // some), some, batch_size)
    return np.flatnonzero(batch.positions % one_in == 0), one_in


def _draw_times(
    hkd: HkdSettings, seed: int, positions: NDArray[np.int64], sigmas: NDArray[np.float64]
) -> NDArray[np.int64]:
    between = np.arange(1, len(sigmas) - 1)
    if not len(between):
        return np.zeros((len(positions), hkd.times), dtype=np.int64)
    draws = rng.uniform(seed, "times", positions, hkd.times + 1)
    if hkd.time_sampling == "grid":
        states = between[(draws[:, 1:] * len(between)).astype(np.int64)]
    else:
        sigma = sigmas[-2] + draws[:, 1:] * (sigmas[0] - sigmas[-2])
        states = between[np.abs(sigma[:, :, None] - sigmas[between]).argmin(axis=2)]
    if hkd.times > 1:
        states[:, 0] = 0
    else:
        states[draws[:, 0] < hkd.endpoint_share] = 0
    return states


def latent_error(found: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """|found - target|^2 / |target|^2 of each tensor (N, C, H, W), the mean over tensors: (N,)."""

    def energy(tensor: Tensor) -> Tensor:
        return tensor.square().sum(dim=(1, 2, 3))

    pairs = ((exact(one), exact(other)) for one, other in zip(found, target, strict=True))
    errors = [energy(one - other) / energy(other) for one, other in pairs]
    return torch.stack(errors).mean(dim=0)

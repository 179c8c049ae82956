"""Hierarchical Koopman Diffusion (arXiv 2510.12220): encode, evolve linearly, decode.

x_0 = D({exp(A (tau(end) - tau(t))) z}) with {z} = E(x_t, t): every skip tensor of the teacher's U-Net and its
bottleneck evolve by a Koopman operator of their own. E and D start as the teacher's two halves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from hkdpipe.manifests import rng
from hkdpipe.manifests.errors import InputError, UsageError
from hkdpipe.manifests.files import atomic_folder, read_json, write_json
from hkdpipe.manifests.settings import parse_section
from hkdpipe.trainer.checkpoint import read_state
from hkdpipe.trainer.koopman import KoopmanOperator, evolution_time
from hkdpipe.trainer.networks import UNFIT, Architecture, PreconditionedUNet, build_unet, noise_label
from hkdpipe.trainer.settings import KoopmanSettings, TrainingSettings
from hkdpipe.trainer.teacher import read_weights

FORMAT = "hkdpipe-model"
_WEIGHTS = {"ema": "ema", "raw": "weights"}  # file names in a checkpoint


class HKD(nn.Module):
    """The student: encoder, one Koopman operator per tensor, decoder."""

    def __init__(
        self, arch: Architecture, koopman: KoopmanSettings, sigma_min: float, sigma_max: float, rho: float
    ) -> None:
        """`sigma_min`, `sigma_max`, `rho` are the schedule's of the trajectories learned from.

        `arch` is the teacher's; a student has no dropout and is not told of augmentations. Raises UsageError
        for a teacher whose preconditioning is not EDM's.
        """
        super().__init__()
        if arch.preconditioning != "edm":
            raise UsageError(
                f"teacher: its preconditioning is '{arch.preconditioning}'; accepted for hkd: 'edm' (its "
                "trajectories can be generated and compared with)"
            )
        self.arch = arch = dataclasses.replace(arch, dropout=0.0, augment_dim=0)
        self.settings = koopman
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        unet = build_unet(arch)
        self.encoder, self.decoder = unet.part("enc"), unet.part("dec")
        shapes = unet.skip_shapes()
        evolved = {"full": range(len(shapes)), "bottleneck": [len(shapes) - 1], "none": []}[koopman.hierarchy]
        self.koopman = nn.ModuleDict(
            {str(index): KoopmanOperator(*shapes[index], koopman.sharing) for index in evolved}
        )

    @classmethod
    def from_teacher(
        cls,
        teacher: PreconditionedUNet,
        koopman: KoopmanSettings,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> HKD:
        """A student with the teacher's weights and idle operators."""
        student = cls(teacher.arch, koopman, sigma_min, sigma_max, rho)
        weights = teacher.model.state_dict()
        for half in (student.encoder, student.decoder):
            half.load_state_dict({name: weights[name] for name in half.state_dict()})
        return student.to(teacher.model.map_layer0.weight.device)

    def encode(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """E(x, sigma): the observables of states x (N, C, H, W) at noise levels sigma (N,), finest first.

        Here and below, labels are one-hot (N, label_dim), class numbers (N,) of an integer type, or None.
        """
        x, sigma = x.to(self.dtype), sigma.to(self.dtype)
        told = sigma if self.settings.encoder_time == "sigma" else torch.ones_like(sigma)
        scaled = x / (sigma**2 + self.arch.sigma_data**2).sqrt()[:, None, None, None]
        return self.encoder.encode(
            scaled, self.encoder.embed(noise_label(told, len(x)), self._one_hot(labels))
        )

    def evolve(self, z: Sequence[Tensor], start: Tensor, stop: Tensor) -> list[Tensor]:
        """exp(A (tau(stop) - tau(start))) z, noise levels (N,) or (1,)."""
        dt = self.tau(stop) - self.tau(start)
        return [
            self.koopman[str(index)](tensor, dt) if str(index) in self.koopman else tensor
            for index, tensor in enumerate(z)
        ]

    def decode(self, z: Sequence[Tensor], labels: Tensor | None = None) -> Tensor:
        """D(z): images (N, C, H, W) from observables at the end; told one constant noise level."""
        level = self.sigma_max if self.settings.decoder_time == "initial" else self.sigma_min
        sigma = torch.full((1,), level, dtype=self.dtype, device=z[-1].device)
        emb = self.decoder.embed(noise_label(sigma, len(z[-1])), self._one_hot(labels))
        return self.decoder.decode(z, emb) * self.arch.sigma_data

    def predict(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The end of the trajectory that passes x (N, C, H, W) at sigma (N,)."""
        end = torch.full_like(sigma[:1], self.sigma_min)
        return self.decode(self.evolve(self.encode(x, sigma, labels), sigma, end), labels)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.predict(x, sigma, labels)

    def sample(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """One-step images from unit noise (N, C, H, W)."""
        sigma = torch.full((len(noise),), self.sigma_max, dtype=self.dtype, device=noise.device)
        return self.predict(noise.to(self.dtype) * self.sigma_max, sigma, labels)

    def _one_hot(self, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        return (F.one_hot(labels, self.arch.label_dim) if labels.ndim == 1 else labels).to(self.dtype)

    def tau(self, sigma: Tensor) -> Tensor:
        """The time coordinate of the evolution."""
        return evolution_time(sigma, self.settings.time, self.sigma_min, self.sigma_max, self.rho)

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.dtype

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (self.arch.img_channels, self.arch.img_resolution, self.arch.img_resolution)

    def parameter_groups(self, training: TrainingSettings) -> list[dict[str, Any]]:
        """Groups for the optimiser: the networks, and the operators with their own rate and no decay."""
        networks = [*self.encoder.parameters(), *self.decoder.parameters()]
        groups: list[dict[str, Any]] = [
            {"params": networks, "lr": training.learning_rate, "weight_decay": training.weight_decay}
        ]
        if operators := list(self.koopman.parameters()):
            rate = training.learning_rate * self.settings.learning_rate_factor
            groups.append({"params": operators, "lr": rate, "weight_decay": 0.0})
        return groups

    @staticmethod
    def draw_states(
        training: TrainingSettings, positions: NDArray[np.int64], sigmas: NDArray[np.float64]
    ) -> NDArray[np.int64]:
        """Numbers of the stored states to learn from, (B, training.times), by the samples' positions.

        `sigmas` (n + 1,) are those of the stored states, the last one 0; drawn are states 0 .. n-1. With one
        time: the start with probability `endpoint_share`, else one in between. With s: the start first.
        Where no states in between are stored, it is always the start.
        """
        between = np.arange(1, len(sigmas) - 1)
        if not len(between):
            return np.zeros((len(positions), training.times), dtype=np.int64)
        draws = rng.uniform(training.seed, "times", positions, training.times + 1)
        if training.time_sampling == "grid":
            states = between[(draws[:, 1:] * len(between)).astype(np.int64)]
        else:
            sigma = sigmas[-2] + draws[:, 1:] * (sigmas[0] - sigmas[-2])
            states = between[np.abs(sigma[:, :, None] - sigmas[between]).argmin(axis=2)]
        if training.times > 1:
            states[:, 0] = 0
        else:
            states[draws[:, 0] < training.endpoint_share] = 0
        return states

    def config(self) -> dict[str, Any]:
        """All but the weights, as it stands in exports and checkpoints; JSON-serialisable."""
        return {
            "format": FORMAT,
            "version": 1,
            "method": "hkd",
            "architecture": self.arch.to_json(),
            "koopman": dict(vars(self.settings)),
            "schedule": {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho},
        }

    @classmethod
    def from_config(cls, config: Any, path: Path) -> HKD:
        """The inverse of `config`, without weights. Raises InputError naming `path` if it is none."""
        try:
            if config["format"] != FORMAT or config["method"] != "hkd":
                raise InputError(f"{path}: not the configuration of an HKD model")
            koopman = parse_section(KoopmanSettings, config["koopman"], "koopman")
            return cls(Architecture.from_json(config["architecture"]), koopman, **config["schedule"])
        except (*UNFIT, UsageError) as error:
            raise InputError(f"{path}: not the configuration of an HKD model ({error})") from None

    def save(self, folder: Path, about: dict[str, Any]) -> None:
        """Write the export that `from_pretrained` reads: model.safetensors and config.json."""
        with atomic_folder(folder) as temporary:
            write_json(temporary / "config.json", {**self.config(), "about": about})
            weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
            (temporary / "model.safetensors").write_bytes(save(weights))

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, device: torch.device | str = "cpu", weights: Literal["ema", "raw"] = "ema"
    ) -> HKD:
        """Load an export, or a checkpoint (of which `weights` says which ones), for sampling.

        Raises InputError where the folder holds neither or a damaged one.
        """
        folder = Path(folder)
        if (folder / "config.json").is_file():
            config, described, file = read_json(folder / "config.json"), "config.json", "model.safetensors"
        elif (folder / "state.json").is_file():
            state = read_state(folder)
            config, described, file = state.get("model"), "state.json", f"{_WEIGHTS[weights]}.safetensors"
        else:
            raise InputError(
                f"{folder}: no such model; accepted: a checkpoint, or an export (a folder with config.json)"
            )
        model = cls.from_config(config, folder / described)
        model.load_state_dict(read_weights(folder / file, model.state_dict()))
        return model.eval().requires_grad_(False).to(device)

"""The Koopman Distillation Model (arXiv 2505.13358): encode noise, map linearly, decode.

x_0 = D(C E_T(x_T) + b). An encoder of images, E_0, gives the latent that C E_T(x_T) + b is to meet. It learns
from the first and the last state of trajectories alone, with networks of its own.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from hkdpipe.manifests.ground import rng
from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.trainer.losses.distillation_loss import Batch, Lesson, image_terms
from hkdpipe.trainer.methods.kdm import METHOD
from hkdpipe.trainer.methods.kdm.discriminator import PatchDiscriminator
from hkdpipe.trainer.methods.kdm.kdm_settings import KdmOptions, KdmSettings
from hkdpipe.trainer.methods.kdm.latent_map import DenseMap, FactorisedMap
from hkdpipe.trainer.numbers.precision import exact
from hkdpipe.trainer.settings.training_settings import TrainingSettings
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.teachers.edm import Architecture
from hkdpipe.trainer.teachers.edm.unet import SongUNet
from hkdpipe.trainer.teachers.families import TeacherArchitecture, TeacherNetwork


class KDM(Student):
    """The student: two encoders, a linear map between their latents, a decoder, and a discriminator."""

    method = METHOD
    options: KdmOptions
    between = False
    training_only = ("image_encoder", "discriminator")

    def __init__(
        self, arch: TeacherArchitecture, options: KdmOptions, sigma_min: float, sigma_max: float, rho: float
    ) -> None:
        """`arch` is the teacher's, of which only the shape of the images and the classes matter. UsageError
        where no network of the settings' kind fits them."""
        super().__init__(arch, options, sigma_min, sigma_max, rho)
        settings = options.kdm
        self.latent = settings.projection or arch.img_resolution**2
        try:
            self.image_encoder = Encoder(arch, settings)
            self.noise_encoder = Encoder(arch, settings)
            self.decoder = Decoder(arch, settings)
        except ValueError as error:
            raise UsageError(f"kdm: {error}") from None
        linear: type[DenseMap | FactorisedMap] = DenseMap if settings.operator == "dense" else FactorisedMap
        self.map = linear(self.latent)
        self.control: nn.Linear | None = None
        if settings.control and arch.label_dim:
            self.control = nn.Linear(arch.label_dim, self.latent, bias=False)
            nn.init.zeros_(self.control.weight)
        self.discriminator: PatchDiscriminator | None = None
        if settings.adversarial_weight:
            self.discriminator = PatchDiscriminator(arch.img_channels, settings.width)

    def start_from(self, teacher: TeacherNetwork) -> None:
        """Nothing: the weights are new."""

    def evolve(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The latent (N, d) of the end of the trajectory that starts at x (N, C, H, W)."""
        z: Tensor = self.map(self.noise_encoder(x.to(self.dtype), labels))
        if self.control is not None and labels is not None:
            z = z + self.control(labels.to(self.dtype))
        return z

    def folded(self, steps: int = 1) -> Self:
        """With its map as one matrix, and without the networks that sampling does not need."""
        model = super().folded().without_training_networks()
        model.map = model.map.dense()
        return model.requires_grad_(False)

    def predict(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The end of the trajectory that starts at x, at sigma_max whatever `sigma` says."""
        return self.decoder(self.evolve(x, labels), labels)

    def forward(
        self, starts: Tensor, ends: Tensor, noise: Tensor, labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What the loss is made of.

        `reconstructed` and `generated` images (N, C, H, W) are decoded from the latents of the ends and from
        those that the starts lead to, with `noise` (N, 2, d) of unit variance on them. `latent`, the mean
        square between these latents, `adversarial` and `discriminator` are (N,), the map's penalties scalars.
        """
        ends = ends.to(self.dtype)
        z, reached = self.image_encoder(ends, labels), self.evolve(starts, labels)
        noisy = torch.cat([z, reached]) + self.options.kdm.noise * torch.cat([*noise.to(z).unbind(1)])
        twice = None if labels is None else torch.cat([labels, labels])
        reconstructed, generated = self.decoder(noisy, twice).chunk(2)
        found = {
            "reconstructed": reconstructed,
            "generated": generated,
            "latent": (exact(z) - exact(reached)).square().mean(dim=1),
            **self.map.penalties(),
        }
        if self.discriminator is not None:
            found["adversarial"] = self.discriminator.deception(generated)
            found["discriminator"] = self.discriminator.judgement(ends, generated)
        return found

    def loss(self, module: nn.Module, batch: Batch, lesson: Lesson) -> dict[str, Tensor]:
        """'mse' and 'perceptual' are those of the generated images.

        The discriminator's own loss is a term of the same sum: neither it nor the others have a gradient in
        what the other side learns, so that one optimiser, for which all weights are separate, serves both.
        """
        noise = self.latent_noise(batch, lesson.training.seed)
        parts = module(batch.states[:, 0], batch.ends, noise, batch.labels)
        share = batch.ends.new_full((len(batch.ends),), 1 / len(batch.ends))
        terms, other = (
            image_terms(parts.pop(name), batch.ends, share, lesson) for name in ("generated", "reconstructed")
        )
        terms["reconstruction"] = other["loss"]
        terms |= {name: value.mean() for name, value in parts.items()}
        weights = {
            "loss": 1.0,
            "reconstruction": 1.0,
            "latent": 1.0,
            "inverse": self.options.kdm.inverse_weight,
            "modulus": self.options.kdm.modulus_weight,
            "adversarial": self.options.kdm.adversarial_weight,
            "discriminator": 1.0,
        }
        total = torch.stack([weight * terms[name] for name, weight in weights.items() if name in terms]).sum()
        return {**terms, "loss": total}

    def latent_noise(self, batch: Batch, seed: int) -> Tensor:
        """Unit noise (B, 2, d) that is a function of the samples' positions."""
        assert batch.positions is not None
        values = rng.normal(seed, "latent", batch.positions, 2 * self.latent)
        noise = torch.from_numpy(values).to(batch.ends.device, self.dtype)
        return noise.view(len(values), 2, self.latent)

    def parameter_groups(self, training: TrainingSettings) -> list[dict[str, Any]]:
        """The networks, and without weight decay the map, the control and the discriminator."""
        networks = (self.image_encoder, self.noise_encoder, self.decoder)
        decaying = [parameter for network in networks for parameter in network.parameters()]
        held = {id(parameter) for parameter in decaying}
        others = [parameter for parameter in self.parameters() if id(parameter) not in held]
        rate = training.learning_rate
        return [
            {"params": decaying, "lr": rate, "weight_decay": training.weight_decay},
            {"params": others, "lr": rate, "weight_decay": 0.0},
        ]


class Encoder(nn.Module):
    """Images to latents (N, d): a U-Net with one output channel, and a projection where the settings say."""

    def __init__(self, arch: TeacherArchitecture, settings: KdmSettings) -> None:
        super().__init__()
        self.unet = _unet(arch, settings, arch.img_channels, 1)
        pixels = arch.img_resolution**2
        self.projection = nn.Linear(pixels, settings.projection) if settings.projection else nn.Identity()

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return self.projection(self.unet(x, x.new_zeros(x.shape[0]), labels).flatten(1))


class Decoder(nn.Module):
    """Latents (N, d) to images: the projection back, and a U-Net with one input channel."""

    def __init__(self, arch: TeacherArchitecture, settings: KdmSettings) -> None:
        super().__init__()
        self.side = arch.img_resolution
        pixels = self.side**2
        self.projection = nn.Linear(settings.projection, pixels) if settings.projection else nn.Identity()
        self.unet = _unet(arch, settings, 1, arch.img_channels)

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        picture = self.projection(z).view(z.shape[0], 1, self.side, self.side)
        return self.unet(picture, z.new_zeros(z.shape[0]), labels)


def _unet(arch: TeacherArchitecture, settings: KdmSettings, channels: int, out_channels: int) -> SongUNet:
    """A U-Net of DDPM++'s kind that is told the classes and, of the noise level, always the same."""
    own = Architecture(
        img_resolution=arch.img_resolution,
        img_channels=channels,
        label_dim=arch.label_dim,
        model_channels=settings.width,
        channel_mult=settings.channel_mult,
        num_blocks=settings.num_blocks,
        attn_resolutions=settings.attn_resolutions,
    )
    return SongUNet(own, out_channels)

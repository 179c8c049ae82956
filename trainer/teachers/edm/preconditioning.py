"""D(x; sigma) = c_skip x + c_out F(c_in x; c_noise): the four preconditionings of EDM's table 1."""

from collections.abc import Callable

import torch
from torch import Tensor

from hkdpipe.trainer.teachers.edm.architecture import Architecture
from hkdpipe.trainer.teachers.edm.unet import UNet, build_unet
from hkdpipe.trainer.teachers.families import NotSplit, TeacherNetwork

Coefficients = tuple[Tensor | float, Tensor | float, Tensor | float, Tensor]
"""c_skip, c_out, c_in, each of sigma's shape or a number, and c_noise."""


class PreconditionedUNet(TeacherNetwork):
    """A denoiser: U-Net and preconditioning, as `arch` says."""

    arch: Architecture
    u: Tensor | None

    def __init__(self, arch: Architecture) -> None:
        super().__init__(arch)
        self.model = build_unet(arch)
        # The noise levels that an iDDPM network was trained on, falling, the last one 0; they come with the
        # weights.
        table = torch.zeros(arch.M + 1) if arch.preconditioning == "iddpm" else None
        self.register_buffer("u", table)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        arch = self.arch
        dtype = self.model.dtype
        x = x.to(dtype)
        sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device).reshape(-1, 1, 1, 1)
        if self.u is None:
            c_skip, c_out, c_in, c_noise = _COEFFICIENTS[arch.preconditioning](sigma, arch)
        else:
            c_skip, c_out, c_in, c_noise = self._iddpm(sigma)
        inside = torch.float16 if arch.use_fp16 and x.device.type == "cuda" else dtype
        noise_labels = c_noise.flatten().expand(x.shape[0])
        out = self.model((c_in * x).to(inside), noise_labels, labels, augment_labels)
        return x * c_skip + out[:, : arch.img_channels].to(dtype) * c_out

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Any, but for iDDPM's those of its table `u`."""
        if self.u is None:
            return sigma
        return self.u.to(sigma)[self._nearest(sigma)]

    def split(self) -> tuple[UNet, UNet]:
        """Under EDM's own preconditioning alone: the encoder's input does not depend on it otherwise."""
        if self.arch.preconditioning != "edm":
            raise NotSplit(f"its preconditioning is '{self.arch.preconditioning}'", "'edm'")
        return self.model.part("enc"), self.model.part("dec")

    def _iddpm(self, sigma: Tensor) -> Coefficients:
        index = self._nearest(sigma).to(sigma.dtype)
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), self.arch.M - 1 - index

    def _nearest(self, sigma: Tensor) -> Tensor:
        assert self.u is not None
        # In EDM the table is held in single precision, and so is the comparison.
        flat = sigma.flatten().to(self.u.dtype)
        return (flat[:, None] - self.u[None]).abs().argmin(dim=1).reshape(sigma.shape)


def _edm(sigma: Tensor, arch: Architecture) -> Coefficients:
    data = arch.sigma_data
    variance = sigma**2 + data**2
    root = variance.sqrt()
    return data**2 / variance, sigma * data / root, 1 / root, sigma.log() / 4


def _vp(sigma: Tensor, arch: Architecture) -> Coefficients:
    # The time at which the variance-preserving process has this noise level.
    grown = (1 + sigma**2).log()
    time = ((arch.beta_min**2 + 2 * arch.beta_d * grown).sqrt() - arch.beta_min) / arch.beta_d
    return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (arch.M - 1) * time


def _ve(sigma: Tensor, arch: Architecture) -> Coefficients:
    return 1.0, sigma, 1.0, (sigma / 2).log()


_COEFFICIENTS: dict[str, Callable[[Tensor, Architecture], Coefficients]] = {"edm": _edm, "vp": _vp, "ve": _ve}

"""A discriminator of patches (Isola et al., arXiv 1611.07004) and its losses."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkdpipe.trainer.numbers.precision import exact
from hkdpipe.trainer.teachers.edm.layers import GroupNorm


class PatchDiscriminator(nn.Module):
    """Four convolutions, the inner ones group-normalised; a logit for each patch: above 0 means 'real'."""

    def __init__(self, channels: int, width: int) -> None:
        """For images (C, H, W) of any size; kernels of 3 pixels, so that 8x8 ones have patches left."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            GroupNorm(2 * width, 1e-5),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 3, padding=1),
            GroupNorm(4 * width, 1e-5),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 1, H', W')."""
        return self.layers(images)

    def judgement(self, real: Tensor, fake: Tensor) -> Tensor:
        """Binary cross entropy of telling real from fake images, (N,), for the discriminator to descend. The
        images get no gradient."""
        return (_surprise(self(real.detach())) + _surprise(-self(fake.detach()))) / 2

    def deception(self, fake: Tensor) -> Tensor:
        """Binary cross entropy of taking fake images for real, (N,), for their maker to descend. The
        discriminator gets no gradient."""
        frozen = {name: parameter.detach() for name, parameter in self.named_parameters()}
        return _surprise(torch.func.functional_call(self, frozen, (fake,)))


def _surprise(logits: Tensor) -> Tensor:
    """-log sigmoid(logits), the mean over patches: (N,)."""
    return F.softplus(-exact(logits)).mean(dim=(1, 2, 3))

"""The U-Nets of EDM, each in three parts: `embed`, `encode`, `decode`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hkdpipe.trainer.teachers.edm.architecture import Architecture
from hkdpipe.trainer.teachers.edm.layers import Conv2d, GroupNorm, Linear, UNetBlock
from hkdpipe.trainer.teachers.families import Decoder, Encoder

CHANNELS_PER_HEAD = 64  # of ADM's attention


class UNet(Encoder, Decoder):
    """What both kinds share: encoder and decoder are dictionaries of layers, named as in EDM.

    `first` is the width of the first layer, `heads(channels)` the number of heads where there is attention;
    `attend_last` says whether attention in the decoder stands in the last block of a level alone; `settings`
    are those of every block.
    """

    map_layer0: Linear
    map_layer1: Linear
    map_label: Linear | None
    map_augment: Linear | None

    def __init__(
        self, arch: Architecture, first: int, heads: Callable[[int], int], attend_last: bool, **settings: Any
    ) -> None:
        super().__init__()
        self.label_dim, self.augment_dim = arch.label_dim, arch.augment_dim
        self.sigma_data = arch.sigma_data
        self.emb_channels = arch.model_channels * arch.channel_mult_emb

        settings |= {"emb_channels": self.emb_channels, "dropout": arch.dropout}

        def block(cin: int, cout: int, attention: bool = False, **resampling: Any) -> UNetBlock:
            return UNetBlock(cin, cout, num_heads=heads(cout) if attention else 0, **resampling, **settings)

        self.enc = nn.ModuleDict()
        channels, seen = first, arch.img_channels
        skips = []
        for level, mult in enumerate(arch.channel_mult):
            res = arch.img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(arch.img_channels, first, 3)
            else:
                self.enc[f"{res}x{res}_down"] = block(channels, channels, down=True)
                if arch.encoder_type == "residual":
                    self.enc[f"{res}x{res}_aux_residual"] = Conv2d(
                        seen, channels, 3, down=True, resample_filter=arch.resample_filter, fused=True
                    )
                    seen = channels
            skips.append(channels)
            for index in range(arch.num_blocks):
                self.enc[f"{res}x{res}_block{index}"] = block(
                    channels, arch.model_channels * mult, attention=res in arch.attn_resolutions
                )
                channels = arch.model_channels * mult
                skips.append(channels)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(arch.channel_mult))):
            res = arch.img_resolution >> level
            if level == len(arch.channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = block(channels, channels, attention=True)
                self.dec[f"{res}x{res}_in1"] = block(channels, channels)
            else:
                self.dec[f"{res}x{res}_up"] = block(channels, channels, up=True)
            for index in range(arch.num_blocks + 1):
                attention = res in arch.attn_resolutions and (index == arch.num_blocks or not attend_last)
                self.dec[f"{res}x{res}_block{index}"] = block(
                    channels + skips.pop(), arch.model_channels * mult, attention=attention
                )
                channels = arch.model_channels * mult
        self.last_channels = channels

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.map_layer0.weight.dtype

    def embed(
        self, noise_labels: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Embedding (N, emb) of noise labels (N,), classes (N, label_dim) and augmentations (N, augment_dim).
        Classes are one-hot, None stands for zeros; without augmentations, as when sampling, None."""
        raise NotImplementedError

    def finish(self, x: Tensor) -> Tensor:
        """The output from the decoder's last tensor."""
        raise NotImplementedError

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Every skip tensor, finest first; the last one is the bottleneck."""
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                x = aux = skips[-1] = (x + layer(aux)) / math.sqrt(2)
            else:
                x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        return skips

    def decode(self, skips: Sequence[Tensor], emb: Tensor) -> Tensor:
        """The network's output from the tensors of `encode`."""
        rest = list(skips)
        x = rest[-1]
        for layer in self.dec.values():
            if isinstance(layer, UNetBlock):
                if x.shape[1] != layer.in_channels:
                    x = torch.cat([x, rest.pop()], dim=1)
                x = layer(x, emb)
        return self.finish(x)

    def shapes(self) -> list[tuple[int, int, int]]:
        shapes = []
        for name, layer in self.enc.items():
            if not name.endswith("aux_residual"):
                size = int(name.split("x")[0])
                assert isinstance(layer, Conv2d | UNetBlock)
                shapes.append((layer.out_channels, size, size))
        return shapes

    # The two halves have EDM's preconditioning; decoded is an end, where c_skip x is nothing and c_out is
    # sigma_data but for rounding. Written as students have always computed it, to the last bit.
    def observe(self, x: Tensor, sigma: Tensor, told: Tensor, labels: Tensor | None) -> list[Tensor]:
        scaled = x / (sigma**2 + self.sigma_data**2).sqrt()[:, None, None, None]
        return self.encode(scaled, self.embed(_noise_label(told, x.shape[0]), labels))

    def image(self, z: Sequence[Tensor], told: Tensor, labels: Tensor | None) -> Tensor:
        return self.decode(z, self.embed(_noise_label(told, z[-1].shape[0]), labels)) * self.sigma_data

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        emb = self.embed(noise_labels, labels, augment_labels)
        return self.decode(self.encode(x, emb), emb)

    def part(self, name: Literal["enc", "dec"]) -> UNet:
        """A copy with the encoder or the decoder alone, and the embedding."""
        kept = ("enc", "map_") if name == "enc" else ("dec", "out_", "map_")
        half = copy.copy(self)
        half._modules = {child: module for child, module in self._modules.items() if child.startswith(kept)}
        return copy.deepcopy(half)


class SongUNet(UNet):
    """The U-Net of DDPM++ and NCSN++."""

    def __init__(self, arch: Architecture, out_channels: int) -> None:
        super().__init__(
            arch,
            first=arch.model_channels,
            heads=lambda channels: 1,
            attend_last=True,
            skip_scale=math.sqrt(0.5),
            eps=1e-6,
            adaptive_scale=False,
            resample_filter=arch.resample_filter,
            resample_projection=True,
        )
        noise_channels = arch.model_channels * arch.channel_mult_noise
        self.waves = noise_channels // 2
        self.map_noise = FourierEmbedding(self.waves) if arch.embedding_type == "fourier" else None
        self.map_label = Linear(arch.label_dim, noise_channels) if arch.label_dim else None
        self.map_augment = Linear(arch.augment_dim, noise_channels, bias=False) if arch.augment_dim else None
        self.map_layer0 = Linear(noise_channels, self.emb_channels)
        self.map_layer1 = Linear(self.emb_channels, self.emb_channels)
        res = arch.img_resolution
        self.dec[f"{res}x{res}_aux_norm"] = GroupNorm(self.last_channels, 1e-6)
        self.dec[f"{res}x{res}_aux_conv"] = Conv2d(self.last_channels, out_channels, 3, init_scale=1e-5)

    def embed(
        self, noise_labels: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        if self.map_noise is not None:
            angles = self.map_noise(noise_labels)
        else:
            angles = _positional_angles(noise_labels, self.waves, last=self.waves - 1)
        emb = torch.cat([angles.sin(), angles.cos()], dim=1)
        if self.map_label is not None:
            # EDM scales one-hot labels to unit variance.
            emb = emb + self.map_label(_labels_or_zeros(labels, emb, self.label_dim) * self.label_dim**0.5)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def finish(self, x: Tensor) -> Tensor:
        norm, conv = [layer for layer in self.dec.values() if not isinstance(layer, UNetBlock)]
        return conv(F.silu(norm(x)))


class DhariwalUNet(UNet):
    """The U-Net of ADM. A level narrower than 64 channels has no attention, as in EDM's code."""

    def __init__(self, arch: Architecture, out_channels: int) -> None:
        width = arch.model_channels
        super().__init__(
            arch,
            first=width * arch.channel_mult[0],
            heads=lambda channels: channels // CHANNELS_PER_HEAD,
            attend_last=False,
        )
        self.waves = width // 2
        self.map_augment = Linear(arch.augment_dim, width, bias=False) if arch.augment_dim else None
        self.map_layer0 = Linear(width, self.emb_channels)
        self.map_layer1 = Linear(self.emb_channels, self.emb_channels)
        self.map_label = Linear(arch.label_dim, self.emb_channels, bias=False) if arch.label_dim else None
        self.out_norm = GroupNorm(self.last_channels, 1e-5)
        self.out_conv = Conv2d(self.last_channels, out_channels, 3, init_scale=1e-5)

    def embed(
        self, noise_labels: Tensor, labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        angles = _positional_angles(noise_labels, self.waves, last=self.waves)
        emb = torch.cat([angles.cos(), angles.sin()], dim=1)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(_labels_or_zeros(labels, emb, self.label_dim))
        return F.silu(emb)

    def finish(self, x: Tensor) -> Tensor:
        return self.out_conv(F.silu(self.out_norm(x)))


class FourierEmbedding(nn.Module):
    """Angles 2 pi f t of random frequencies f, which are part of the weights."""

    freqs: Tensor

    def __init__(self, half: int, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(half) * scale)

    def forward(self, noise_labels: Tensor) -> Tensor:
        return noise_labels.outer((2 * math.pi * self.freqs).to(noise_labels.dtype))


def build_unet(arch: Architecture) -> UNet:
    """The network with new weights. Output channels: twice the image's under iDDPM's preconditioning."""
    out_channels = arch.img_channels * (2 if arch.preconditioning == "iddpm" else 1)
    return (DhariwalUNet if arch.model_type == "DhariwalUNet" else SongUNet)(arch, out_channels)


def _noise_label(sigma: Tensor, batch: int) -> Tensor:
    """EDM's c_noise = ln(sigma) / 4 as a vector (batch,)."""
    return (sigma.flatten().log() / 4).expand(batch)


def _positional_angles(noise_labels: Tensor, half: int, last: int) -> Tensor:
    """Angles t / 10000^(i / last), i = 0 .. half - 1."""
    exponents = torch.arange(half, dtype=torch.float32, device=noise_labels.device) / last
    return noise_labels.outer(((1 / 10000) ** exponents).to(noise_labels.dtype))


def _labels_or_zeros(labels: Tensor | None, like: Tensor, label_dim: int) -> Tensor:
    return like.new_zeros(1, label_dim) if labels is None else labels.to(like.dtype)

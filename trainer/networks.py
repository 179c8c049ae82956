"""The U-Net of EDM (SongUNet with the DDPM++ options) and EDM's preconditioning.

Parameter names, shapes and the order of operations are those of EDM's published state dicts, so that such
weights load without renaming and give the same numbers. Sources: Karras et al. 2022 (arXiv 2206.00364,
table 1 and appendix F); Song et al. 2021 (arXiv 2011.13456) for the architecture.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# What building a network from a wrong configuration raises.
UNFIT = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Architecture:
    """Keyword arguments of a preconditioned U-Net, named as EDM names them."""

    img_resolution: int
    img_channels: int
    label_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    sigma_data: float = 0.5

    def to_json(self) -> dict[str, Any]:
        """A JSON-serialisable form; an unbounded sigma_max is left out."""
        values = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        if math.isinf(self.sigma_max):
            del values["sigma_max"]
        return values

    @staticmethod
    def from_json(values: dict[str, Any]) -> Architecture:
        """The inverse of `to_json`. Raises TypeError on an unknown or missing key."""
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return Architecture(**given)


def _weight(shape: Sequence[int], fan_in: int, fan_out: int, scale: float) -> nn.Parameter:
    """Xavier-uniform initialisation, scaled."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    return nn.Parameter((torch.rand(*shape) * 2 - 1) * bound * scale)


class Linear(nn.Module):
    def __init__(self, in_features: int, out_features: int, init_scale: float = 1.0) -> None:
        super().__init__()
        self.in_features = in_features
        self.weight = _weight((out_features, in_features), in_features, out_features, init_scale)
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """Convolution, preceded by a resampling with the filter [1, 1] by two: nearest up, mean down.

    With `kernel` 0 it only resamples.
    """

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.up, self.down, self.kernel = up, down, kernel
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel:
            area = kernel * kernel
            shape = (out_channels, in_channels, kernel, kernel)
            self.weight = _weight(shape, in_channels * area, out_channels * area, init_scale)
            self.bias = nn.Parameter(torch.zeros(out_channels))
        if up or down:
            # In EDM's state dicts; for this filter the two operations below are exactly its effect.
            self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))

    def forward(self, x: Tensor) -> Tensor:
        # A 1x1 convolution commutes with repeating pixels, exactly, and is four times cheaper before it.
        early = self.kernel == 1
        if self.up and not early:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.down:
            x = F.avg_pool2d(x, 2)
        if self.weight is not None:
            x = F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2)
        if self.up and early:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return x


class GroupNorm(nn.GroupNorm):
    """At most 32 groups of at least 4 channels."""

    def __init__(self, num_channels: int, eps: float = 1e-5) -> None:
        super().__init__(min(32, num_channels // 4), num_channels, eps=eps)


class UNetBlock(nn.Module):
    """Residual block with an optional self-attention of one head, conditioned on an embedding (N, emb)."""

    skip_scale = math.sqrt(0.5)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.norm0 = GroupNorm(in_channels, eps=1e-6)
        self.conv0 = Conv2d(in_channels, out_channels, 3, up=up, down=down)
        self.affine = Linear(emb_channels, out_channels)
        self.norm1 = GroupNorm(out_channels, eps=1e-6)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init_scale=1e-5)
        self.skip: Conv2d | None = None
        if out_channels != in_channels or up or down:
            self.skip = Conv2d(in_channels, out_channels, 1, up=up, down=down)
        self.attention = attention
        if attention:
            self.norm2 = GroupNorm(out_channels, eps=1e-6)
            self.qkv = Conv2d(out_channels, out_channels * 3, 1, init_scale=math.sqrt(0.2))
            self.proj = Conv2d(out_channels, out_channels, 1, init_scale=1e-5)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        hidden = self.conv0(F.silu(self.norm0(x)))
        hidden = F.silu(self.norm1(hidden + self.affine(emb)[:, :, None, None]))
        hidden = self.conv1(hidden)
        x = (hidden + (x if self.skip is None else self.skip(x))) * self.skip_scale
        if self.attention:
            n, channels, height, width = x.shape
            # EDM interleaves: channel 3c + j of qkv is channel c of query, key, value j.
            q, k, v = self.qkv(self.norm2(x)).reshape(n, channels, 3, height * width).unbind(2)
            weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(channels)).softmax(dim=2)
            attended = torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape)
            x = (self.proj(attended) + x) * self.skip_scale
        return x


class SongUNet(nn.Module):
    """The U-Net of DDPM++, in three parts: `embed`, `encode`, `decode`."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.model_channels = width = arch.model_channels
        emb_channels = width * arch.channel_mult_emb
        self.map_label = Linear(arch.label_dim, width) if arch.label_dim else None
        self.map_layer0 = Linear(width, emb_channels)
        self.map_layer1 = Linear(emb_channels, emb_channels)

        self.enc = nn.ModuleDict()
        channels = width
        skips = []
        for level, mult in enumerate(arch.channel_mult):
            res = arch.img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = Conv2d(arch.img_channels, width, 3)
            else:
                self.enc[f"{res}x{res}_down"] = UNetBlock(channels, channels, emb_channels, down=True)
            skips.append(channels)
            for index in range(arch.num_blocks):
                self.enc[f"{res}x{res}_block{index}"] = UNetBlock(
                    channels, width * mult, emb_channels, attention=res in arch.attn_resolutions
                )
                channels = width * mult
                skips.append(channels)
        self.skip_channels = tuple(skips)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(arch.channel_mult))):
            res = arch.img_resolution >> level
            if level == len(arch.channel_mult) - 1:
                self.dec[f"{res}x{res}_in0"] = UNetBlock(channels, channels, emb_channels, attention=True)
                self.dec[f"{res}x{res}_in1"] = UNetBlock(channels, channels, emb_channels)
            else:
                self.dec[f"{res}x{res}_up"] = UNetBlock(channels, channels, emb_channels, up=True)
            for index in range(arch.num_blocks + 1):
                attention = index == arch.num_blocks and res in arch.attn_resolutions
                self.dec[f"{res}x{res}_block{index}"] = UNetBlock(
                    channels + skips.pop(), width * mult, emb_channels, attention=attention
                )
                channels = width * mult
        res = arch.img_resolution
        self.dec[f"{res}x{res}_aux_norm"] = GroupNorm(channels, eps=1e-6)
        self.dec[f"{res}x{res}_aux_conv"] = Conv2d(channels, arch.img_channels, 3, init_scale=1e-5)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Embedding (N, emb) of noise labels (N,) and of classes (N, label_dim), one-hot; None: zeros."""
        half = self.model_channels // 2
        freqs = torch.arange(half, dtype=torch.float32, device=noise_labels.device) / (half - 1)
        angles = noise_labels.outer(((1 / 10000) ** freqs).to(noise_labels.dtype))
        emb = torch.cat([angles.sin(), angles.cos()], dim=1)
        if self.map_label is not None:
            if class_labels is None:
                class_labels = emb.new_zeros(1, self.map_label.in_features)
            emb = emb + self.map_label(class_labels * math.sqrt(self.map_label.in_features))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Every skip tensor, finest first; the last one is the bottleneck."""
        skips: list[Tensor] = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        return skips

    def decode(self, skips: Sequence[Tensor], emb: Tensor) -> Tensor:
        """The network's output from the tensors of `encode`."""
        rest = list(skips)
        x = rest[-1]
        for name, block in self.dec.items():
            if name.endswith("aux_norm"):
                x = F.silu(block(x))
            elif isinstance(block, UNetBlock):
                if x.shape[1] != block.in_channels:
                    x = torch.cat([x, rest.pop()], dim=1)
                x = block(x, emb)
            else:
                x = block(x)
        return x

    def skip_shapes(self) -> list[tuple[int, int, int]]:
        """(C, H, W) of each tensor of `encode`."""
        sizes = [int(name.split("x")[0]) for name in self.enc]
        return [(channels, size, size) for channels, size in zip(self.skip_channels, sizes, strict=True)]

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None) -> Tensor:
        emb = self.embed(noise_labels, class_labels)
        return self.decode(self.encode(x, emb), emb)

    def part(self, name: Literal["enc", "dec"]) -> SongUNet:
        """A copy with the encoder or the decoder alone, and the embedding."""
        copied = copy.deepcopy(self)
        setattr(copied, "dec" if name == "enc" else "enc", nn.ModuleDict())
        return copied


class EDMPrecond(nn.Module):
    """D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), EDM's table 1."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.model = SongUNet(arch)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor | None = None) -> Tensor:
        """The denoised image. x (N, C, H, W), sigma scalar or (N,), labels (N, label_dim) one-hot."""
        dtype = next(self.model.parameters()).dtype
        x = x.to(dtype)
        sigma = torch.as_tensor(sigma, dtype=dtype, device=x.device).reshape(-1, 1, 1, 1)
        sigma_data = self.arch.sigma_data
        variance = sigma**2 + sigma_data**2
        out = self.model(x / variance.sqrt(), noise_label(sigma, len(x)), labels)
        return x * (sigma_data**2 / variance) + out * (sigma * sigma_data / variance.sqrt())


def noise_label(sigma: Tensor, batch: int) -> Tensor:
    """c_noise = ln(sigma) / 4 as a vector (batch,)."""
    return (sigma.flatten().log() / 4).expand(batch)


def parameters_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

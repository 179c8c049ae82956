"""The layers of EDM's U-Nets. Weights are kept in one precision and used in that of the input."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hkdpipe.trainer.numbers.precision import exact


def _weight(shape: Sequence[int], fan_in: int, fan_out: int, scale: float) -> nn.Parameter:
    """Xavier-uniform initialisation, scaled."""
    bound = math.sqrt(6 / (fan_in + fan_out))
    return nn.Parameter((torch.rand(*shape) * 2 - 1) * bound * scale)


def resampling_kernel(taps: Sequence[int]) -> Tensor:
    """The two-dimensional filter (1, 1, k, k) of sum one from one-dimensional taps."""
    row = torch.tensor([taps], dtype=torch.float32)
    return (row.T @ row / row.sum() ** 2)[None, None]


class Linear(nn.Module):
    bias: nn.Parameter | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, init_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.weight = _weight((out_features, in_features), in_features, out_features, init_scale)
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class Conv2d(nn.Module):
    """Convolution, with a resampling by two before it, or, `fused`, after it. With `kernel` 0 it only
    resamples. `resample_filter` is the one-dimensional filter, (1, 1) or longer."""

    resample_filter: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        fused: bool = False,
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.up, self.down, self.kernel, self.fused = up, down, kernel, fused
        self.out_channels = out_channels
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if kernel:
            area = kernel * kernel
            shape = (out_channels, in_channels, kernel, kernel)
            self.weight = _weight(shape, in_channels * area, out_channels * area, init_scale)
            self.bias = nn.Parameter(torch.zeros(out_channels))
        self.taps = tuple(resample_filter)
        self.box = self.taps == (1, 1)
        if up or down:
            self.register_buffer("resample_filter", resampling_kernel(self.taps))

    def forward(self, x: Tensor) -> Tensor:
        # A 1x1 convolution commutes with repeating pixels, exactly, and is four times cheaper before it.
        late = self.kernel == 1 and self.box
        if self.up and not late:
            x = self._upsample(x)
        if self.down and not self.fused:
            x = self._downsample(x, self._padding)
        if self.weight is not None and self.bias is not None:
            padding = self.kernel // 2 + (self._padding if self.fused else 0)
            # EDM adds the bias last: a filter whose taps sum to one leaves it as it is, but for rounding.
            x = F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=padding)
        if self.down and self.fused:
            x = self._downsample(x, 0)
        if self.up and late:
            x = self._upsample(x)
        return x

    @property
    def _padding(self) -> int:
        return (self.resample_filter.shape[-1] - 1) // 2 if self.up or self.down else 0

    def _upsample(self, x: Tensor) -> Tensor:
        if self.box:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        taps = (self.resample_filter * 4).to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return F.conv_transpose2d(x, taps, stride=2, padding=self._padding, groups=x.shape[1])

    def _downsample(self, x: Tensor, padding: int) -> Tensor:
        if self.box:
            return F.avg_pool2d(x, 2)
        taps = self.resample_filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, taps, stride=2, padding=padding, groups=x.shape[1])


class GroupNorm(nn.GroupNorm):
    """At most 32 groups of at least 4 channels."""

    def __init__(self, num_channels: int, eps: float) -> None:
        super().__init__(min(32, num_channels // 4), num_channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class UNetBlock(nn.Module):
    """Residual block with optional self-attention (`num_heads` 0: none), conditioned on an embedding.

    `adaptive_scale`: the embedding scales and shifts the normalised tensor (ADM), else it is added before.
    `resample_projection`: a resampling skip connection has weights even where the width stays.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        emb_channels: int,
        up: bool = False,
        down: bool = False,
        num_heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        adaptive_scale: bool = True,
        resample_filter: Sequence[int] = (1, 1),
        resample_projection: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.num_heads = in_channels, out_channels, num_heads
        self.dropout, self.skip_scale, self.adaptive_scale = dropout, skip_scale, adaptive_scale
        self.recompute = False
        """In the backward pass, instead of keeping what lies between input and output until then."""
        self.norm0 = GroupNorm(in_channels, eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, up, down, resample_filter)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1))
        self.norm1 = GroupNorm(out_channels, eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init_scale=1e-5)
        self.skip: Conv2d | None = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_projection or out_channels != in_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, up, down, resample_filter)
        if num_heads:
            self.norm2 = GroupNorm(out_channels, eps)
            self.qkv = Conv2d(out_channels, out_channels * 3, 1, init_scale=math.sqrt(0.2))
            self.proj = Conv2d(out_channels, out_channels, 1, init_scale=1e-5)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, x, emb, use_reentrant=False)
        return self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        hidden = self.conv0(F.silu(self.norm0(x)))
        condition = self.affine(emb)[:, :, None, None].to(x.dtype)
        if self.adaptive_scale:
            scale, shift = condition.chunk(2, dim=1)
            hidden = F.silu(torch.addcmul(shift, self.norm1(hidden), scale + 1))
        else:
            hidden = F.silu(self.norm1(hidden + condition))
        hidden = self.conv1(F.dropout(hidden, self.dropout, self.training))
        x = (hidden + (x if self.skip is None else self.skip(x))) * self.skip_scale
        return (self._attend(x) + x) * self.skip_scale if self.num_heads else x

    def _attend(self, x: Tensor) -> Tensor:
        n, channels, height, width = x.shape
        # EDM interleaves: channel 3c + j of a head's part of qkv is channel c of query, key, value j.
        shape = (n * self.num_heads, channels // self.num_heads, 3, height * width)
        q, k, v = self.qkv(self.norm2(x)).reshape(shape).unbind(2)
        k = k / math.sqrt(k.shape[1])
        weights = torch.einsum("ncq,nck->nqk", exact(q), exact(k)).softmax(dim=2).to(x.dtype)
        return self.proj(torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape))

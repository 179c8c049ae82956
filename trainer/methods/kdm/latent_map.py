"""The linear maps of KDM (arXiv 2505.13358) that take the latent of noise to the latent of an image."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DenseMap(nn.Module):
    """z -> C z + b for z (N, d). Starts as the identity."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dimension))
        self.bias = nn.Parameter(torch.zeros(dimension))

    def forward(self, z: Tensor) -> Tensor:
        return nn.functional.linear(z, self.weight, self.bias)

    def dense(self) -> DenseMap:
        """The same map as one matrix."""
        return self

    def penalties(self) -> dict[str, Tensor]:
        """A dense map has none."""
        return {}


class FactorisedMap(nn.Module):
    """z -> Re(P L Q) z + b, L diagonal with |L| < 1, all complex (d, d).

    Q is a free matrix that a penalty holds near the inverse of P; it starts as it, for P starts unitary.
    Complex numbers are pairs of real ones: `left` and `right` are P and Q, (2, d, d).
    """

    def __init__(self, dimension: int) -> None:
        super().__init__()
        unitary = torch.linalg.qr(torch.randn(dimension, dimension, dtype=torch.complex64)).Q
        self.left = nn.Parameter(torch.stack([unitary.real, unitary.imag]))
        self.right = nn.Parameter(torch.stack([unitary.real.T, -unitary.imag.T]))
        # Moduli of sigmoid(3) = 0.95, and phases all over the circle.
        self.free_modulus = nn.Parameter(torch.full((dimension,), 3.0))
        self.phase = nn.Parameter((torch.rand(dimension) * 2 - 1) * torch.pi)
        self.bias = nn.Parameter(torch.zeros(dimension))

    def eigenvalues(self) -> Tensor:
        """The diagonal of L, complex (d,)."""
        return torch.polar(self.free_modulus.sigmoid(), self.phase)

    def forward(self, z: Tensor) -> Tensor:
        """In the precision of the parameters, whatever the autocast."""
        with torch.autocast(z.device.type, enabled=False):
            eigenvalues = self.eigenvalues()
            modes = torch.complex(*(z.to(part.dtype) @ part.T for part in self.right)) * eigenvalues
            mapped = modes.real @ self.left[0].T - modes.imag @ self.left[1].T + self.bias
        return mapped.to(z.dtype)

    def dense(self) -> DenseMap:
        """The same map as one matrix."""
        made = DenseMap(len(self.bias)).to(self.bias)
        with torch.no_grad():
            made.weight.copy_(self(torch.eye(len(self.bias)).to(self.bias)).T - self.bias[:, None])
            made.bias.copy_(self.bias)
        return made

    def penalties(self) -> dict[str, Tensor]:
        """'inverse': (|QP - I|^2 + |PQ - I|^2) / d; 'modulus': the mean of (1 - |L|)^2."""
        with torch.autocast(self.left.device.type, enabled=False):
            left, right = torch.complex(*self.left), torch.complex(*self.right)
            identity = torch.eye(len(left), dtype=left.dtype, device=left.device)
            defects = [right @ left - identity, left @ right - identity]
            inverse = torch.stack([defect.abs().square().sum() for defect in defects]).sum() / len(left)
            modulus = (1 - self.free_modulus.sigmoid()).square().mean()
        return {"inverse": inverse, "modulus": modulus}

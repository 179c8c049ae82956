"""Luminance and chroma of colour images, in a basis whose first vector is the luminance's."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LUMINANCE = np.array([0.299, 0.587, 0.114])
"""What red, green and blue count (ITU-R BT.601); their sum is 1, so that a grey has its own luminance."""


def chroma_basis() -> NDArray[np.float64]:
    """Two unit vectors (2, 3), orthogonal to the luminance and to each other; the first one leans to red."""
    along = LUMINANCE / np.linalg.norm(LUMINANCE)
    red = np.array([1.0, 0.0, 0.0]) - along[0] * along
    red /= np.linalg.norm(red)
    return np.stack([red, np.cross(along, red)])


def luminance(images: Tensor) -> Tensor:
    """Of colour images (N, 3, H, W): (N, 1, H, W), in their range."""
    return (images * images.new_tensor(LUMINANCE)[:, None, None]).sum(dim=1, keepdim=True)


def chroma(images: Tensor) -> Tensor:
    """The coordinates (N, 2, H, W) of colour images (N, 3, H, W) in the basis; 0 of a grey."""
    # A grey of the same luminance is taken off first: no vector of the basis is orthogonal to grey itself.
    basis = torch.from_numpy(chroma_basis()).to(images)
    return torch.einsum("kc,nchw->nkhw", basis, images - luminance(images))


def into_gamut(images: Tensor) -> Tensor:
    """Colours (N, 3, H, W), those outside of [-1, 1] drawn to the grey of their luminance until inside.

    The luminance stays, where clipping would change it; what is inside stays too. A luminance outside is
    clipped itself.
    """
    grey = luminance(images).clamp(-1, 1)
    colour = images - grey
    # How far each channel may go on the side that it leans to, over how far it goes.
    room = torch.where(colour > 0, 1 - grey, 1 + grey)
    share = (room / colour.abs().clamp(min=torch.finfo(images.dtype).tiny)).amin(dim=1, keepdim=True)
    return (grey + colour * share.clamp(max=1)).clamp(-1, 1)

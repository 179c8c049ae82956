"""Perceptual distances: LPIPS through the lpips package, or its formula on the shipped digits classifier."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from hkdpipe.manifests.ground.errors import InputError, Name, Remedy, WrongValue, first_line
from hkdpipe.trainer.metrics.digits_classifier import load_classifier
from hkdpipe.trainer.numbers.precision import exact

Distance = Callable[[Tensor, Tensor], Tensor]
"""distance(a, b) of images (N, C, H, W) and (M, C, H, W) in [-1, 1]: (N,), zero for equal ones.

Each of b is compared with N / M successive ones of a, so that its features are computed once.
"""

# torchvision's classification networks and their files, as the torch hub cache names them.
BACKBONES = {
    "vgg": ("vgg16", "vgg16-397923af.pth"),
    "alex": ("alexnet", "alexnet-owt-7be5be79.pth"),
    "squeeze": ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth"),
}
SMALLEST_SIDE = {"vgg": 16, "alex": 31, "squeeze": 17}
"""Pixels: of a smaller image a backbone's poolings leave nothing."""


def perceptual_distance(
    name: str,
    file: str,
    channels: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    size: int = 64,
    huber: float = 0.03,
) -> Distance | None:
    """The distance of that name, frozen (`huber`: c of "pseudo-huber"); None for 'none'.

    LPIPS computes in float32, its networks in the precision of autocast where there is one, of images whose
    smaller side is upsampled to at least `size`. Raises InputError where the backbone's local weights are
    missing or do not fit, UsageError where the distance is not made for images of so many channels, or `size`
    is too small for the backbone.
    """
    check_perceptual(name, file, channels, size)
    if name == "none":
        return None
    if name == "digits":
        classifier = load_classifier("digits-classifier-loss").to(device, dtype)
        return lambda a, b: normalised_difference(classifier.features(a), classifier.features(b))
    if name == "pseudo-huber":
        return functools.partial(pseudo_huber, c=huber)
    return _lpips(name, backbone_file(name, file), device, size)


def check_perceptual(name: str, file: str, channels: int, size: int) -> None:
    """Raises as `perceptual_distance` does for what can be seen without building the network."""
    if name == "digits" and channels not in (1, 3):
        raise WrongValue(
            Name("perceptual"), f": 'digits' compares images of 1 or 3 channels, these have {channels}"
        )
    if name in BACKBONES:
        if size < SMALLEST_SIDE[name]:
            raise WrongValue(
                Name("perceptual_size"),
                f": got {size}; accepted: at least {SMALLEST_SIDE[name]} for '{name}'",
            )
        backbone_file(name, file)


def normalised_difference(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Sum over layers of the spatial mean of |a/|a| - b/|b||^2, norms over channels: (N,). LPIPS (arXiv
    1801.03924, equation 1) with all weights one. Features (N, C, H, W) and (M, C, H, W) a layer."""
    distances = [
        difference(_unit(exact(one)), _unit(exact(other))).square().sum(dim=1).mean(dim=(1, 2))
        for one, other in zip(a, b, strict=True)
    ]
    return torch.stack(distances).sum(dim=0)


def pseudo_huber(a: Tensor, b: Tensor, c: float = 0.03) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c, norms over a whole image."""
    return (difference(a, b).square().sum(dim=(1, 2, 3)) + c**2).sqrt() - c


def difference(a: Tensor, b: Tensor) -> Tensor:
    """a - b (N, ...), of (N, ...) and (M, ...), each of b beside N / M successive ones of a."""
    return (a.unflatten(0, (len(b), -1)) - b[:, None]).flatten(0, 1)


def _unit(features: Tensor) -> Tensor:
    # The epsilon stands inside the root: the gradient at an all-zero feature vector is then finite.
    return features * (features.square().sum(dim=1, keepdim=True) + 1e-8).rsqrt()


def lpips_at_hand(file: str, device: torch.device) -> Distance | None:
    """LPIPS with AlexNet, as its authors advise for measuring, in images upsampled to 64 pixels. None where
    no `file` is named and the torch hub cache has none; InputError for one that does not serve."""
    if not file and not _backbone_path("alex", "").is_file():
        return None
    return _lpips("alex", backbone_file("alex", file, "lpips"), device, 64)


def backbone_file(name: str, given: str, argument: str = "perceptual_file") -> Path:
    """The local file with a backbone's weights: given as `argument`, or that in the torch hub cache."""
    architecture, expected = BACKBONES[name]
    path = _backbone_path(name, given)
    if not path.is_file():
        raise InputError(
            f"{path}: missing; LPIPS needs torchvision's {architecture} weights ({expected}): put the file "
            "there, or ",
            Remedy(f"name it as {argument}"),
        )
    return path


def _backbone_path(name: str, given: str) -> Path:
    return Path(given) if given else Path(torch.hub.get_dir()) / "checkpoints" / BACKBONES[name][1]


def _lpips(name: str, file: Path, device: torch.device, size: int) -> Distance:
    import contextlib
    import io

    import lpips
    import torchvision

    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        trunk = getattr(torchvision.models, BACKBONES[name][0])(weights=None)
        trunk.load_state_dict(weights)
    except Exception as error:  # unpickling a file that is something else raises anything
        raise InputError(
            f"{file}: not torchvision's {BACKBONES[name][0]} weights ({first_line(error)})"
        ) from None
    with contextlib.redirect_stdout(io.StringIO()):  # lpips announces itself
        network = lpips.LPIPS(net=name, pnet_rand=True, verbose=False)
    # lpips cuts the trunk's `features` into slices, and names their layers by these.
    layers, named = trunk.state_dict(), network.net.state_dict()
    network.net.load_state_dict({name: layers[f"features.{name.split('.', 1)[1]}"] for name in named})
    network.eval().requires_grad_(False).to(device)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        features = [network.net(network.scaling_layer(_fit(images, size))) for images in (a, b)]
        with torch.autocast(device.type, enabled=False):
            differences = [
                linear(difference(_unit(one.float()), _unit(other.float())).square()).mean(dim=(1, 2, 3))
                for linear, one, other in zip(network.lins, *features, strict=True)
            ]
        return torch.stack(differences).sum(dim=0)

    return distance


def _fit(images: Tensor, size: int) -> Tensor:
    """Three channels, the smaller side at least `size` pixels, float32."""
    images = images.float()
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    if min(images.shape[2:]) < size:
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    return images

"""Small classifiers of scikit-learn's digits: one gives the loss its features, one the Frechet distance.

They are two networks trained apart, so that a student is not trained on its own measure.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from hkdpipe.trainer.assets import asset
from hkdpipe.trainer.images.colour import luminance
from hkdpipe.trainer.teachers.teacher import read_weights

HELD_OUT = 297
"""The last digits, which none of the shipped classifiers was trained on."""
DIGITS = ((1, 8, 8), (3, 8, 8))
"""The images that the classifiers take."""


class DigitsClassifier(nn.Module):
    """Four convolutions and a hidden layer for 8x8 images in [-1, 1], of which it sees the luminance."""

    def __init__(self) -> None:
        super().__init__()
        layers = ((1, 32, 1), (32, 64, 2), (64, 64, 1), (64, 64, 2))  # channels, and the stride
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=s, padding=1) for i, o, s in layers)
        self.hidden = nn.Linear(256, 64)
        self.logits = nn.Linear(64, 10)

    def features(self, images: Tensor) -> list[Tensor]:
        """The activations of every convolution, for a perceptual distance."""
        features = []
        x = (luminance(images) if images.shape[1] == 3 else images).to(self.logits.weight.dtype)
        for conv in self.convs:
            x = F.relu(conv(x))
            features.append(x)
        return features

    def embed(self, images: Tensor) -> Tensor:
        """The hidden layer (N, 64), for a Frechet distance."""
        return F.relu(self.hidden(self.features(images)[-1].flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        """Class scores (N, 10)."""
        return self.logits(self.embed(images))


def load_classifier(name: str) -> DigitsClassifier:
    """A shipped classifier, frozen."""
    classifier = DigitsClassifier()
    path = asset(name) / "model.safetensors"
    classifier.load_state_dict(read_weights(path, classifier.state_dict()))
    return classifier.eval().requires_grad_(False)

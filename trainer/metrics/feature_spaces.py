"""In which features distributions of images are compared. Free of torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FeatureSpace:
    name: str
    """In the configuration."""
    metric: str
    """The Frechet distance in it."""
    dimension: int
    judges: bool
    """Whether its network's classes are those of the images, so that its opinion of single images counts."""
    about: str


SPACES = {
    space.name: space
    for space in (
        FeatureSpace(
            "digits",
            "fd_digits",
            64,
            True,
            "fd_digits: the Fréchet distance in the features of a small classifier of digits; lower is "
            "better. It is not FID and compares with nothing but itself.",
        ),
        FeatureSpace(
            "inception",
            "fid",
            2048,
            False,
            "FID: the Fréchet distance in the features of the reference Inception-v3; lower is better.",
        ),
    )
}

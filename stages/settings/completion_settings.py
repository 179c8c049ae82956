"""How pictures are completed. Free of torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CompletionSettings:
    """Inpainting and colorization: `count` completions of each picture, in so many steps.

    The first step is from pure noise, the others from noise levels from `highest` down to `lowest`.
    """

    count: int = 4
    seed: int = 0
    steps: int = 36
    highest: float = 2.0
    lowest: float = 0.1

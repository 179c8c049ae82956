"""The factor that keeps gradients in the range of half precision."""

import torch
from torch import Tensor

START, GROW_AFTER, LARGEST = 2.0**16, 2000, 2.0**127


class LossScale:
    """Halved by a step whose gradient is not finite, doubled after so many steps without one. As torch's
    GradScaler; on the device, so that nothing waits for it, and told what is finite by the loop."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.tensor(START, device=device)
        self.steps = torch.tensor(0, device=device)
        """Finite ones since the value changed."""

    def update(self, spoilt: Tensor) -> None:
        """After a step; `spoilt` is a bool on the device."""
        steps = self.steps + 1
        grown = steps == GROW_AFTER
        larger = torch.where(grown, (2 * self.value).clamp(max=LARGEST), self.value)
        self.value = torch.where(spoilt, self.value / 2, larger)
        self.steps = torch.where(spoilt | grown, 0, steps)

    def numbers(self) -> dict[str, float]:
        return {"value": self.value.item(), "steps": self.steps.item()}

    def restore(self, numbers: dict[str, float]) -> None:
        self.value = self.value.new_tensor(numbers["value"])
        self.steps = self.steps.new_tensor(int(numbers["steps"]))

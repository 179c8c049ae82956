"""Knowledge distillation, the baseline: the teacher's denoiser learns to map a start to its end in one step.

x_0 = D(x_T; sigma_max), the skip connection c_skip x included, for a teacher of any preconditioning.
"""

from typing import Any

from torch import Tensor

from hkdpipe.trainer.methods.kd import METHOD
from hkdpipe.trainer.students.student import Student
from hkdpipe.trainer.teachers.families import TeacherArchitecture, TeacherNetwork


class KD(Student):
    """The student is a denoiser like its teacher."""

    method = METHOD

    def __init__(
        self, arch: TeacherArchitecture, options: Any, sigma_min: float, sigma_max: float, rho: float
    ) -> None:
        super().__init__(arch, options, sigma_min, sigma_max, rho)
        self.denoiser = self.arch.network()

    def start_from(self, teacher: TeacherNetwork) -> None:
        """All of the teacher's weights but those for augmentations."""
        weights = teacher.state_dict()
        self.denoiser.load_state_dict({name: weights[name] for name in self.denoiser.state_dict()})

    def predict(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma, labels)

    forward = predict

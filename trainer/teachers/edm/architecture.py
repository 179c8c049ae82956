"""What a network is built from, in EDM's names."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from hkdpipe.trainer.teachers.families import FIRST, TeacherArchitecture

if TYPE_CHECKING:
    from hkdpipe.trainer.teachers.edm.preconditioning import PreconditionedUNet

_CHOICES = {
    "model_type": ("SongUNet", "DhariwalUNet"),
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "residual"),
    "preconditioning": ("edm", "vp", "ve", "iddpm"),
}


@dataclass(frozen=True)
class Architecture(TeacherArchitecture):
    """Keyword arguments of a preconditioned U-Net, named as EDM names them."""

    family: ClassVar[str] = FIRST
    model_type: str = "SongUNet"
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    embedding_type: str = "positional"
    """Of the noise level; DhariwalUNet has 'positional' only, as for the next three."""
    channel_mult_noise: int = 1
    encoder_type: str = "standard"
    resample_filter: tuple[int, ...] = (1, 1)
    augment_dim: int = 0
    dropout: float = 0.0
    """While training; students have none."""
    use_fp16: bool = False
    """Computed in half precision on a GPU, as EDM does."""
    preconditioning: str = "edm"
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    sigma_data: float = 0.5
    beta_d: float = 19.9
    """Of 'vp', as `beta_min`; `M` of 'vp' and 'iddpm'."""
    beta_min: float = 0.1
    M: int = 1000

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; accepted: {', '.join(choices)}")
        if self.model_type == "DhariwalUNet":
            for name in ("embedding_type", "channel_mult_noise", "encoder_type", "resample_filter"):
                if getattr(self, name) != (value := getattr(Architecture, name)):
                    raise ValueError(f"{name}: got {getattr(self, name)!r}; DhariwalUNet has {value!r}")
        halvings = len(self.channel_mult) - 1
        if self.img_resolution <= 0 or self.img_resolution % (1 << halvings):
            raise ValueError(
                f"img_resolution: got {self.img_resolution}; accepted: what can be halved {halvings} times"
            )

    def words(self) -> str:
        return f"{self.model_type}, {self.preconditioning} preconditioning"

    def of_students(self) -> Architecture:
        return replace(self, dropout=0.0, augment_dim=0, use_fp16=False)

    def network(self) -> PreconditionedUNet:
        from hkdpipe.trainer.teachers.edm.preconditioning import PreconditionedUNet

        return PreconditionedUNet(self)

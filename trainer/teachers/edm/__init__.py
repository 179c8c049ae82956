"""EDM's family: the U-Nets of DDPM++, NCSN++ and ADM, and the preconditionings around them.

Parameter names, shapes and the order of operations are those of EDM's published state dicts, so that such
weights load without renaming and give the same numbers. Sources: Karras et al. 2022 (arXiv 2206.00364,
table 1 and appendix F); Song et al. 2021 (arXiv 2011.13456) and Dhariwal and Nichol 2021 (arXiv
2105.05233) for the architectures.
"""

from hkdpipe.trainer.teachers.edm.architecture import Architecture
from hkdpipe.trainer.teachers.edm.preconditioning import PreconditionedUNet
from hkdpipe.trainer.teachers.edm.recognition import Edm
from hkdpipe.trainer.teachers.edm.unet import UNet, build_unet
from hkdpipe.trainer.teachers.families import register

__all__ = ["Architecture", "PreconditionedUNet", "UNet", "build_unet"]

register(Edm())

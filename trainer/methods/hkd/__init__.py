"""Hierarchical Koopman Diffusion (arXiv 2510.12220)."""

from hkdpipe.trainer.methods.hkd.hkd_settings import HkdOptions, check_options
from hkdpipe.trainer.settings.method_registry import Method, register

METHOD = register(
    Method(
        name="hkd",
        title="Hierarchical Koopman Diffusion",
        paper="arXiv 2510.12220",
        description="the teacher's U-Net, whose skip tensors evolve linearly, from all states",
        student="hkdpipe.trainer.methods.hkd.hkd:HKD",
        options=HkdOptions,
        network_sections=("koopman",),
        # The encoder's forward pass of the latent consistency is not counted.
        evaluations=lambda options: options.hkd.times,
        check=check_options,
    )
)

"""The Koopman Distillation Model (arXiv 2505.13358)."""

from hkdpipe.trainer.methods.kdm.kdm_settings import KdmOptions
from hkdpipe.trainer.settings.method_registry import Method, register

METHOD = register(
    Method(
        name="kdm",
        title="Koopman Distillation Model",
        paper="arXiv 2505.13358",
        description="networks of its own and a linear map between their latents, from the start and the end",
        student="hkdpipe.trainer.methods.kdm.kdm:KDM",
        options=KdmOptions,
        network_sections=("kdm",),
        starts_from_teacher=False,
        # Of its own U-Nets: two encoders, and the decoder of both latents; the discriminator not counted.
        evaluations=lambda options: 4,
    )
)

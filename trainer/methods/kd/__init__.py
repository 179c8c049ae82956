"""Knowledge distillation: the baseline of the HKD and KDM papers."""

from hkdpipe.trainer.settings.method_registry import Method, register

METHOD = register(
    Method(
        name="kd",
        title="knowledge distillation",
        paper="arXiv 2101.02388",
        description="the teacher's denoiser, from the start and the end",
        student="hkdpipe.trainer.methods.kd.kd:KD",
    )
)

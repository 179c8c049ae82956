"""Looking into models of hkd and editing by their operators: a tensor and a figure from each call."""

from hkdpipe.stages.sampling.students import load_hkd, sampling_labels, sampling_noise
from hkdpipe.stages.settings.completion_settings import CompletionSettings
from hkdpipe.stages.whitebox.notebook import edit, inpaint, mask_bands, spectrum
from hkdpipe.trainer.whitebox.bands import BANDS, Band

__all__ = [
    "BANDS",
    "Band",
    "CompletionSettings",
    "edit",
    "inpaint",
    "load_hkd",
    "mask_bands",
    "sampling_labels",
    "sampling_noise",
    "spectrum",
]

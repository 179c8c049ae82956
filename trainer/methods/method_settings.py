"""The settings of a method's own section."""

from __future__ import annotations

from hkdpipe.trainer.methods.hkd.hkd_settings import KoopmanSettings
from hkdpipe.trainer.methods.kdm.kdm_settings import KdmSettings

MethodSettings = KoopmanSettings | KdmSettings

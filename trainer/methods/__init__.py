"""Distillation methods, one file each."""

from __future__ import annotations

from hkdpipe.trainer.methods.hkd import HKD

METHODS = {"hkd": HKD}

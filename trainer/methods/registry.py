"""Distillation methods, one file each."""

from __future__ import annotations

from pathlib import Path

import torch

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.methods.hkd.hkd import HKD
from hkdpipe.trainer.methods.kd import KD
from hkdpipe.trainer.methods.kdm.kdm import KDM
from hkdpipe.trainer.methods.student import Student, Weights, saved_model

METHODS: dict[str, type[Student]] = {method.name: method for method in (HKD, KD, KDM)}


def load_model(folder: str | Path, device: torch.device | str = "cpu", weights: Weights = "ema") -> Student:
    """Load an export, or a checkpoint (of which `weights` says which ones), of any method, for sampling.

    Raises InputError where the folder holds neither or a damaged one.
    """
    saved = saved_model(Path(folder), weights)
    method = saved.config.get("method") if isinstance(saved.config, dict) else None
    if not isinstance(method, str) or method not in METHODS:
        raise InputError(
            f"{saved.described}: not the configuration of a model; methods: {', '.join(METHODS)}"
        )
    return METHODS[method].restored(saved, device)

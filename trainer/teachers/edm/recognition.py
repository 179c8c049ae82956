"""The architecture behind a state dict of EDM's, from the names and shapes of its tensors.

EDM's files don't hold the defaults of what training passed to the network, so the tensors themselves are
the better witness; what a snapshot says beside them is compared.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from hkdpipe.trainer.teachers.edm.architecture import Architecture
from hkdpipe.trainer.teachers.edm.layers import Conv2d, resampling_kernel
from hkdpipe.trainer.teachers.families import Family, TeacherNetwork, with_weights
from hkdpipe.trainer.teachers.snapshots import Snapshot

PRECONDITIONING = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm"}
_FILTERS = {2: (1, 1), 4: (1, 3, 3, 1)}
_CONSTANTS = ("sigma_min", "sigma_max", "sigma_data", "beta_d", "beta_min", "M")
# Of _init_kwargs: without effect on inference, or seen by the names of the tensors.
_IGNORED = ("label_dropout", "attn_resolutions", "epsilon_t", "C_1", "C_2")
_COMPARED = ("num_heads", "skip_scale", "adaptive_scale", "num_groups", "eps")


class Edm(Family):
    """EDM's networks, and those of ADM and of DDPM++ and NCSN++ as EDM publishes them."""

    name = Architecture.family
    architecture = Architecture
    files = ("a snapshot of EDM's (.pkl)", "a state dict of an EDM network (.pt, .pth)")
    classes = tuple(PRECONDITIONING)

    def from_snapshot(self, snapshot: Snapshot) -> TeacherNetwork:
        network = with_weights(architecture_of_snapshot(snapshot), snapshot.state_dict)
        check_layers(network, snapshot.modules)
        return network

    def from_state_dict(self, state: Mapping[str, Tensor]) -> TeacherNetwork:
        network = with_weights(architecture_of_state_dict(state), state)
        check_layers(network, {})
        return network


def architecture_of_state_dict(state: Mapping[str, Tensor], **known: Any) -> Architecture:
    """The architecture whose network has these tensors (`known`: what they cannot tell, such as dropout).

    Without `known`, the preconditioning is taken for iDDPM's if its table is there, else for EDM's. Raises
    ValueError when the names are not those of EDM's networks.
    """
    blocks: dict[int, int] = {}
    attention = []
    for name in state:
        if found := re.fullmatch(r"model\.enc\.(\d+)x\1_block(\d+)\.conv0\.weight", name):
            res, index = int(found[1]), int(found[2])
            blocks[res] = max(blocks.get(res, 0), index + 1)
            if index == 0 and f"model.enc.{res}x{res}_block0.qkv.weight" in state:
                attention.append(res)
    if sum(blocks.values()) > len(state):
        raise ValueError("blocks are numbered that are not there: not a network of EDM's")
    if not blocks:
        raise ValueError("no tensor 'model.enc.RxR_block0.conv0.weight': not a network of EDM's")
    res = max(blocks)
    try:
        first = state[f"model.enc.{res}x{res}_conv.weight"]
        emb_channels, noise_channels = state["model.map_layer0.weight"].shape
        dhariwal = "model.out_conv.weight" in state
        width = noise_channels if dhariwal else first.shape[0]
        outs = [state[f"model.enc.{r}x{r}_block0.conv1.weight"].shape[0] for r in sorted(blocks)[::-1]]
        filters = [value.shape[-1] for name, value in state.items() if name.endswith(".resample_filter")]
        values: dict[str, Any] = {
            "img_resolution": res,
            "img_channels": first.shape[1],
            "model_type": "DhariwalUNet" if dhariwal else "SongUNet",
            "model_channels": width,
            "channel_mult": tuple(_quotient(out, width) for out in outs),
            "channel_mult_emb": _quotient(emb_channels, width),
            "channel_mult_noise": _quotient(noise_channels, width),
            "num_blocks": blocks[res],
            "attn_resolutions": tuple(sorted(attention, reverse=True)),
            "embedding_type": "fourier" if "model.map_noise.freqs" in state else "positional",
            "encoder_type": "residual" if any("_aux_residual" in name for name in state) else "standard",
            "resample_filter": _FILTERS[filters[0] if filters else 2],
        }
        for key, name in (("label_dim", "map_label"), ("augment_dim", "map_augment")):
            weight = state.get(f"model.{name}.weight")
            if weight is not None:
                values[key] = weight.shape[1]
    except KeyError as error:
        raise ValueError(f"no tensor {error}: not a network of EDM's") from None
    if "u" in state:
        table = state["u"]
        values |= {"preconditioning": "iddpm", "M": len(table) - 1}
        values |= {"sigma_min": float(table[-2]), "sigma_max": float(table[0])}
    return Architecture(**(values | known))


def architecture_of_snapshot(snapshot: Snapshot) -> Architecture:
    """The architecture of a snapshot's network. ValueError where its settings contradict its tensors."""
    settings = {**snapshot.init_kwargs, **snapshot.attributes}
    known: dict[str, Any] = {
        "preconditioning": PRECONDITIONING[snapshot.class_name],
        "dropout": float(settings.get("dropout", 0.0)),
        "use_fp16": bool(settings.get("use_fp16", False)),
    }
    for name in _CONSTANTS:
        if name in settings:
            known[name] = int(settings[name]) if name == "M" else float(settings[name])
    arch = architecture_of_state_dict(snapshot.state_dict, **known)
    names = {field.name for field in fields(Architecture)}
    for name, value in snapshot.init_kwargs.items():
        if name in _IGNORED:
            continue
        if name != "decoder_type" and name not in names:
            raise ValueError(f"unknown setting {name} = {value!r}")
        found = getattr(arch, name, "standard")
        given = tuple(value) if isinstance(value, list) else value
        if given != found and not (given is None and not found):
            raise ValueError(f"{name}: the file says {value!r}, its tensors {found!r}")
    return arch


def check_layers(network: TeacherNetwork, said_of: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare what the loaded layers compute with what the file says of them, by their names. ValueError
    where it differs: a network of code that was changed."""
    for name, module in network.named_modules():
        if isinstance(module, Conv2d) and (module.up or module.down):
            taps = module.resample_filter.float()
            if not torch.allclose(taps, resampling_kernel(module.taps), rtol=0, atol=1e-6):
                raise ValueError(f"{name}.resample_filter: accepted: that of {module.taps}")
        said = said_of.get(name, {})
        for key in _COMPARED:
            ours, theirs = getattr(module, key, None), said.get(key)
            if ours is not None and theirs is not None and not math.isclose(ours, theirs, rel_tol=1e-6):
                raise ValueError(f"{name}.{key}: the file says {theirs!r}, accepted: {ours!r}")


def _quotient(value: int, by: int) -> int:
    if by < 1 or value % by:
        raise ValueError(f"{value} channels are not a multiple of {by}")
    return value // by

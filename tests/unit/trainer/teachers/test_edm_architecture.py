import dataclasses
from collections.abc import Callable

import pytest
import torch
from edm_fixtures import FAMILIES, OLDER, SNAPSHOTS, read_edm

from hkdpipe.manifests.ground.errors import InputError
from hkdpipe.trainer.teachers import teacher as teachers
from hkdpipe.trainer.teachers.edm import Architecture, PreconditionedUNet
from hkdpipe.trainer.teachers.edm.recognition import architecture_of_snapshot, architecture_of_state_dict
from hkdpipe.trainer.teachers.snapshots import Snapshot

PUBLISHED = SNAPSHOTS["ncsnpp-cond-fp16"]


@pytest.mark.parametrize("arch", [*FAMILIES.values(), *OLDER.values()], ids=[*FAMILIES, *OLDER])
def test_architecture_is_seen_by_the_tensors(arch: Architecture) -> None:
    """But for what leaves no trace in them."""
    known = {key: getattr(arch, key) for key in ("preconditioning", "sigma_min", "sigma_max", "M")}
    present = {res for level in range(2) if (res := 16 >> level) in arch.attn_resolutions}
    network = PreconditionedUNet(dataclasses.replace(arch, attn_resolutions=tuple(sorted(present))))
    assert architecture_of_state_dict(network.state_dict(), **known) == network.arch


def test_wider_and_deeper_networks_are_told_apart() -> None:
    arch = Architecture(
        32,
        1,
        model_channels=8,
        channel_mult=(2, 3, 4, 4),
        channel_mult_emb=3,
        num_blocks=2,
        attn_resolutions=(16, 8),
    )
    with torch.device("meta"):
        assert architecture_of_state_dict(PreconditionedUNet(arch).state_dict()) == arch


def test_architecture_of_a_snapshot() -> None:
    arch = architecture_of_snapshot(read_edm(PUBLISHED))
    expected = {
        "img_resolution": 16,
        "label_dim": 10,
        "model_channels": 16,
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "augment_dim": 9,
        "use_fp16": True,
        "dropout": 0.13,
        "preconditioning": "edm",
        "sigma_data": 0.5,
    }
    assert {key: getattr(arch, key) for key in expected} == expected


def doubled_filter(snapshot: Snapshot) -> None:
    name = next(name for name in snapshot.state_dict if name.endswith("resample_filter"))
    snapshot.state_dict[name] = snapshot.state_dict[name] * 2


def no_first_layer(snapshot: Snapshot) -> None:
    del snapshot.state_dict["model.enc.16x16_conv.weight"]


def other_heads(snapshot: Snapshot) -> None:
    snapshot.modules["model.enc.16x16_block0"]["num_heads"] = 4


def other_width(snapshot: Snapshot) -> None:
    snapshot.init_kwargs["model_channels"] = 32


def unknown_setting(snapshot: Snapshot) -> None:
    snapshot.init_kwargs["flash"] = True


def skip_decoder(snapshot: Snapshot) -> None:
    snapshot.init_kwargs["decoder_type"] = "skip"


def foreign_tensor(snapshot: Snapshot) -> None:
    snapshot.state_dict["model.extra"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (doubled_filter, r"\S+\.resample_filter: accepted: that of \(1, 3, 3, 1\)"),
        (no_first_layer, "no tensor 'model.enc.16x16_conv.weight': not a network of EDM's"),
        (other_heads, r"model.enc.16x16_block0.num_heads: the file says 4, accepted: 1"),
        (other_width, "model_channels: the file says 32, its tensors 16"),
        (unknown_setting, "unknown setting flash = True"),
        (skip_decoder, "decoder_type: the file says 'skip', its tensors 'standard'"),
        (foreign_tensor, "does not fit the network: tensor model.extra is missing or unknown"),
    ],
)
def test_snapshot_that_contradicts_itself_is_refused(
    change: Callable[[Snapshot], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = read_edm(PUBLISHED)
    change(snapshot)
    monkeypatch.setattr(teachers, "read_snapshot", lambda *_: snapshot)
    with pytest.raises(InputError, match=f"not a network that hkdpipe knows: {message}$"):
        teachers.load_teacher(PUBLISHED)


def test_blocks_that_are_numbered_and_not_there_are_refused() -> None:
    """By counting, rather than by building so many."""
    with pytest.raises(ValueError, match="blocks are numbered that are not there"):
        architecture_of_state_dict({"model.enc.8x8_block1000000000.conv0.weight": torch.zeros(1)})

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hkdpipe.manifests.errors import InputError
from hkdpipe.trainer.methods import METHODS, load_model
from hkdpipe.trainer.methods.kd import KD
from hkdpipe.trainer.networks import PreconditionedUNet
from hkdpipe.trainer.settings import TrainingSettings


def test_methods_are_those_that_can_be_chosen() -> None:
    field = {field.name: field for field in dataclasses.fields(TrainingSettings)}["method"]
    assert tuple(METHODS) == field.metadata["choices"]
    assert all(METHODS[name].name == name for name in METHODS)


@pytest.mark.parametrize(
    "config", [[], None, {}, {"method": "other"}, {"method": ["kd"]}, {"format": "hkdpipe-teacher"}]
)
def test_model_of_no_method(tmp_path: Path, network: PreconditionedUNet, config: Any) -> None:
    KD.from_teacher(network).save(tmp_path / "export", {})
    described = tmp_path / "export/config.json"
    described.write_text(json.dumps(config))
    with pytest.raises(InputError) as raised:
        load_model(tmp_path / "export")
    assert str(raised.value) == f"{described}: not the configuration of a model; methods: hkd, kd, kdm"


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path}: no such model"):
        load_model(tmp_path)

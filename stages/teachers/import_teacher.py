"""Convert a teacher's file into the folder that every stage reads fastest."""

from pathlib import Path
from typing import Any

import torch

from hkdpipe.manifests.ground.atomic_files import make_folders, read_json_if_there, sha256_file
from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.stages.shared.reporting import Summary
from hkdpipe.trainer.teachers.teacher import accepted_files, load_teacher, save_teacher


def import_teacher(file: Path, out: Path, licence: str, dataset: str) -> Summary:
    """Write `out` from a file of any family; single precision, so that nothing is lost.

    Does nothing where `out` is what the same file gave before. Raises UsageError where it is anything else,
    InputError where the file is not a teacher's.
    """
    if not file.is_file():
        raise InputError(f"{file}: no such file; accepted: {accepted_files()}")
    sha256 = sha256_file(file)
    imported = {"file": file.name, "sha256": sha256}
    about: dict[str, Any] = {"imported": imported, "licence": licence, "dataset": dataset}
    did_nothing = out.exists() and any(out.iterdir())
    config = read_json_if_there(out / "config.json")
    if did_nothing and not (isinstance(config, dict) and config.get("about") == about):
        raise UsageError(f"{out}: not empty, and not what {file.name} gives; choose another folder")
    teacher = load_teacher(file)
    if not did_nothing:
        make_folders(out.parent)
        save_teacher(out, teacher.network, about, torch.float32)
    arch = teacher.arch
    return Summary(
        title="import-teacher",
        rows=(
            ("architecture", arch.words()),
            ("parameters", f"{teacher.network.parameter_count():,}"),
            ("images", "x".join(map(str, teacher.image_shape))),
            ("classes", str(arch.label_dim or "none")),
            ("SHA-256 of the file", sha256),
            ("licence", licence or "not given"),
        ),
        files=(out,),
        data={"teacher": str(out), "architecture": arch.to_json(), "sha256": sha256, "steps": arch.steps},
        did_nothing=did_nothing,
    )

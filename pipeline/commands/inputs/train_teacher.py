"""hkdpipe train-teacher: an EDM teacher for a set of pictures."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from hkdpipe.manifests.ground.sections import accepted, parse_section
from hkdpipe.pipeline.configuration.config import toml_value
from hkdpipe.pipeline.options import FOLDER, command_line, work_options
from hkdpipe.pipeline.session import Session
from hkdpipe.pipeline.stage_calls import Work
from hkdpipe.stages.shared.reporting import Summary
from hkdpipe.trainer.settings.teacher_training_settings import TeacherTrainingSettings

_FIELDS = dataclasses.fields(TeacherTrainingSettings)
_HINTS = typing.get_type_hints(TeacherTrainingSettings)


def _setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each setting, with its documentation. Lists are given with commas."""
    for field in reversed(_FIELDS):
        name = f"--{field.name.replace('_', '-')}"
        if _HINTS[field.name] is bool:
            words = f"{field.metadata['doc']} (default: no)"
            command = click.option(name, field.name, is_flag=True, default=None, help=words)(command)
            continue
        default = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        words = f"{field.metadata['doc']} ({accepted(_HINTS[field.name], field.metadata)}; default {default})"
        command = click.option(name, field.name, metavar="VALUE", help=words)(command)
    return command


def parse_settings(given: dict[str, str | bool | None]) -> TeacherTrainingSettings:
    """The settings of the options given, the others by default."""

    def value(field: dataclasses.Field[Any], given: str | bool) -> Any:
        if isinstance(given, bool):
            return given
        return toml_value(f"[{given}]" if isinstance(field.default, tuple) else given)

    values = {field.name: value(field, text) for field in _FIELDS if (text := given[field.name]) is not None}
    return parse_section(TeacherTrainingSettings, values, "train-teacher")


@click.command("train-teacher", short_help="Train an EDM teacher.")
@click.option(
    "--data",
    metavar="DATA",
    required=True,
    help="'digits', 'digits-color', or a folder, .zip or .npz of pictures.",
)
@click.option(
    "--out",
    type=FOLDER,
    metavar="DIR",
    required=True,
    help="Folder of the training; DIR/export is the teacher.",
)
@_setting_options
@work_options
def command(data: str, out: Path, session: Session, **given: str | bool | None) -> None:
    """Train an EDM teacher on a set of pictures.

    \b
      hkdpipe train-teacher --data digits --out teacher
      hkdpipe train-teacher --data my-images --conditional --out teacher
      hkdpipe generate-trajectories --teacher teacher/export --out archive --set generation.count=10000
    """
    settings = parse_settings(given)

    def call(work: Work) -> Summary:
        from hkdpipe.stages.teachers.train_teacher import train_teacher

        return train_teacher(data, out, settings, **work.how)

    summary = session.perform("train-teacher", out, call)
    inputs = ("--teacher", out / "export", "--out", "ARCHIVE")
    session.report(summary, command_line("generate-trajectories", *inputs))

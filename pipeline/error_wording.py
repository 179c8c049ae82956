"""Errors from below in the words of the command line: its options, keys and commands."""

from __future__ import annotations

import dataclasses

import click

from hkdpipe.manifests.ground.errors import HkdpipeError, Name, Remedy

REMEDIES = {
    "generate it again": "run hkdpipe generate-trajectories again",
    "TeacherSampling(churn=40)": "hkdpipe sample --teacher TEACHER --churn 40 --out DIR",
    "a repair": "hkdpipe verify {archive} --repair",
    "name it as perceptual_file": "name it with --set training.perceptual_file=FILE",
    "name it as lpips": "name it with --set evaluation.lpips=FILE",
    "no compilation": "set training.compile=false",
    "importing them again": "hkdpipe convert PAIRS {archive} --format {form} --teacher TEACHER",
}


def worded(error: HkdpipeError, command: click.Command | None) -> str:
    """What an error says to who typed `command` (None: another command than one of hkdpipe's)."""
    return error.worded(lambda name: _word(name, command), _command)


def _command(remedy: Remedy) -> str:
    return REMEDIES[remedy.words].format_map(remedy.values)


def _word(name: Name, command: click.Command | None) -> str:
    from hkdpipe.pipeline.configuration.config import sections
    from hkdpipe.trainer.settings.teacher_training_settings import TeacherTrainingSettings

    for section, settings in {**sections(), "train-teacher": TeacherTrainingSettings}.items():
        if name.of is settings:
            return f"{section}.{name.field}"
    for parameter in command.params if command is not None else ():
        if parameter.name == name.field:
            return parameter.opts[0] if isinstance(parameter, click.Option) else parameter.human_readable_name
    # A lower floor knows an argument's name, and not the section that it comes from.
    keys = [f"{section}.{name.field}" for section, cls in sections().items() if _has_key(cls, name.field)]
    return keys[0] if name.of is None and len(keys) == 1 else name.field


def _has_key(settings: type, key: str) -> bool:
    return any(field.name == key for field in dataclasses.fields(settings))

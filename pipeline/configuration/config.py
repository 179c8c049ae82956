"""A run's configuration: where it comes from, what it may hold, and how it is written down."""

from __future__ import annotations

import dataclasses
import importlib.resources
import itertools
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hkdpipe.manifests.ground.errors import InputError, Name, UsageError, WrongValue
from hkdpipe.manifests.ground.sections import nearest, parse_section
from hkdpipe.stages.settings.evaluation_settings import EvaluationSettings
from hkdpipe.stages.settings.generation_settings import GenerationSettings
from hkdpipe.stages.settings.teacher_settings import TeacherSettings
from hkdpipe.trainer.settings.method_registry import methods
from hkdpipe.trainer.settings.training_settings import TrainingSettings


@dataclass(frozen=True)
class Config:
    """One field per section of the TOML file, and those of the methods by their names."""

    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    of_methods: Mapping[str, Any] = field(default_factory=dict)
    """Settings by section, of every method's sections that are not at their defaults."""

    def section(self, name: str) -> Any:
        """The settings of a section."""
        return self.of_methods.get(name) or getattr(self, name, None) or sections()[name]()

    @property
    def options(self) -> Any:
        """Those of the training's method."""
        method = methods()[self.training.method]
        return method.options(**{name: self.section(name) for name in method.sections})

    @property
    def used(self) -> tuple[str, ...]:
        """The sections that count: all but those of other methods."""
        return (*_BEFORE, *methods()[self.training.method].sections, "evaluation")


_BEFORE = ("teacher", "generation", "training")


def sections() -> dict[str, type]:
    """The classes of all sections, those of every method among them, in the order of a file."""
    hints = typing.get_type_hints(Config)
    of_methods = (method.sections.items() for method in methods().values())
    return {
        **{name: hints[name] for name in _BEFORE},
        **dict(itertools.chain.from_iterable(of_methods)),
        "evaluation": hints["evaluation"],
    }


_SHIPPED = importlib.resources.files("hkdpipe.pipeline.configuration")


def resolve(preset: str | None, file: Path | None, stored: Path | None, overrides: Sequence[str]) -> Config:
    """The preset or the file; without them the stored configuration where it exists; else the defaults.

    `overrides` ('section.key=value', the value in TOML, where a bare word is a string) win over all of them.
    """
    if preset is not None and file is not None:
        raise UsageError("--preset and --config: give one of them")
    if preset is not None:
        values = read_preset(preset)
    elif file is not None:
        values = read_toml(file)
    elif stored is not None and stored.exists():
        values = read_toml(stored)
    else:
        values = {}
    check_sections(values, sections())
    override(values, overrides, sections())
    return parse(values)


def parse(values: Mapping[str, Any]) -> Config:
    """The configuration that a TOML file's values make."""
    _check_moved(values)
    parsed = parse_sections(values, sections())
    own = {name: parsed.pop(name) for name in [*parsed] if name not in (*_BEFORE, "evaluation")}
    changed = {name: settings for name, settings in own.items() if settings != type(settings)()}
    config = Config(**parsed, of_methods=changed)
    validate(config)
    return config


def _check_moved(values: Mapping[str, Any]) -> None:
    """Refuse a key of [training] that a method's section has: there it stood before methods had their own."""
    known = _keys(TrainingSettings)
    moved = {
        key: section
        for method in methods().values()
        for section, settings in method.sections.items()
        for key in _keys(settings) - known
    }
    for key in values.get("training", {}):
        if key in moved:
            raise UsageError(f"training.{key}: unknown key; it moved: write {moved[key]}.{key}")


def _keys(settings: type) -> set[str]:
    return {key.name for key in dataclasses.fields(settings)}


def validate(config: Config) -> None:
    """Refuse values that are fine one by one and contradict each other, whatever is to be done."""
    generation = config.generation
    if generation.sigma_min >= generation.sigma_max:
        raise UsageError(
            f"generation.sigma_min: got {generation.sigma_min}; accepted: "
            f"below generation.sigma_max, which is {generation.sigma_max}"
        )


def validate_run(config: Config) -> None:
    """Refuse a training that the rest of the same configuration cannot serve."""
    generation, training = config.generation, config.training
    if training.validation >= generation.count:
        raise UsageError(
            f"training.validation: got {training.validation}; accepted: "
            f"below generation.count, which is {generation.count}"
        )
    without = "generation.store_steps leaves out all states in between"
    methods()[training.method].check(config.options, without if len(generation.stored_steps) == 2 else "")


def presets(folder: str = "presets") -> list[str]:
    """Names of the presets that ship, of runs or of 'comparisons'."""
    return sorted(
        Path(entry.name).stem for entry in (_SHIPPED / folder).iterdir() if entry.name.endswith(".toml")
    )


def read_preset(name: str, folder: str = "presets") -> dict[str, Any]:
    """What one of them holds."""
    if name not in presets(folder):
        raise WrongValue(Name("preset"), f": no preset '{name}'{nearest(name, presets(folder))}")
    return tomllib.loads((_SHIPPED / folder / f"{name}.toml").read_text(encoding="utf-8"))


def dump(config: Config) -> str:
    """As TOML, which `resolve` reads back exactly; other methods' sections where they are not at defaults."""
    import tomli_w

    return tomli_w.dumps(tables(config))


def tables(config: Config) -> dict[str, dict[str, Any]]:
    """By section, as `dump` writes them."""
    written = dict.fromkeys([*config.used, *config.of_methods])
    return {name: dataclasses.asdict(config.section(name)) for name in written}


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file of the user's: InputError if it is missing, UsageError if it cannot be read."""
    try:
        return tomllib.loads(path.read_bytes().decode())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None


def check_sections(values: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise UsageError where a TOML file has something else than the known sections at its top."""
    for name, section in values.items():
        if name not in known:
            raise UsageError(f"{name}: unknown section{nearest(name, known)}")
        if not isinstance(section, dict):
            raise UsageError(f"{name}: got a value; accepted: a section, [{name}]")


def parse_sections(values: Mapping[str, Any], known: Mapping[str, type]) -> dict[str, Any]:
    """Every known section, at its defaults where nothing is said. UsageError as `parse_section`."""
    return {name: parse_section(cls, values.get(name, {}), name) for name, cls in known.items()}


def toml_value(text: str) -> Any:
    """A value as it would stand in a TOML file; what is not TOML is a string as it stands."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return parsed["value"] if len(parsed) == 1 else text


def override(values: dict[str, Any], overrides: Sequence[str], known: Iterable[str]) -> None:
    """Put 'section.key=value' into the values of a TOML file that has the known sections."""
    for text in overrides:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot:
            raise UsageError(f"--set: got '{text}'; accepted: section.key=value, as in training.budget=20000")
        if section not in known:
            raise UsageError(f"{section}: unknown section{nearest(section, known)}")
        values.setdefault(section, {})[key] = toml_value(value.strip())

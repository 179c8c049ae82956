import dataclasses
import json
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest

from hkdpipe.manifests.ground.errors import InputError, UsageError
from hkdpipe.manifests.ground.sections import choices_of
from hkdpipe.pipeline.configuration.config import (
    Config,
    dump,
    presets,
    resolve,
    sections,
    toml_value,
    validate_run,
)
from hkdpipe.pipeline.error_wording import worded
from hkdpipe.pipeline.explain import describe, explain

KEYS = [(name, field) for name, cls in sections().items() for field in dataclasses.fields(cls)]
IDS = [f"{name}.{field.name}" for name, field in KEYS]


def other_value(field: dataclasses.Field[Any], hint: Any) -> Any:
    """An accepted value that is not the default."""
    if field.name in (lists := {"store_steps": (0, 7, 18), "adam_betas": (0.0, 0.99)}):
        return lists[field.name]
    if choices := choices_of(field.metadata):
        others = [choice for choice in choices if choice != field.default]
        if isinstance(field.default, tuple):
            return field.default[:1] or tuple(others[:1])
        return others[0] if others else field.default
    if isinstance(field.default, tuple):
        number = field.metadata["maximum"] or 3
        return (*field.default, "a path" if str in typing.get_args(hint) else number)
    if hint is str:
        return 'a "quoted" \\ path é'
    if hint is bool:
        return not field.default
    if hint is int:
        return field.default + 2  # of images with a covariance 1 is none
    upper = field.metadata["maximum"]
    return field.default / 3 if upper is not None or field.default else 1e-05


@pytest.mark.parametrize(("section", "field"), KEYS, ids=IDS)
def test_every_key_can_be_set_and_survives_writing(section: str, field: Any, tmp_path: Path) -> None:
    value = other_value(field, typing.get_type_hints(sections()[section])[field.name])
    config = resolve(None, None, None, [f"{section}.{field.name}={json.dumps(value, ensure_ascii=False)}"])
    assert getattr(config.section(section), field.name) == value
    path = tmp_path / "config.toml"
    path.write_text(dump(config), encoding="utf-8")
    assert resolve(None, path, None, ()) == config
    path.write_text(explain(config), encoding="utf-8")
    assert resolve(None, path, None, ()) == config


def test_defaults_are_explained_by_a_file_of_defaults() -> None:
    text = explain(Config())
    assert set(tomllib.loads(text)) == set(sections())
    assert "# (an integer, at least 1; default 1000000; may grow later)\ncount = 1000000" in text
    assert max(map(len, text.splitlines())) <= 110
    assert describe(Config())["evaluation"]["features"]["later"] == "may change at any time"


def test_the_given_source_wins_over_the_stored_one_and_overrides_over_all(tmp_path: Path) -> None:
    stored, file = tmp_path / "stored.toml", tmp_path / "file.toml"
    stored.write_text("[training]\nbudget = 5\n")
    file.write_text("[training]\nbudget = 6\n")
    assert resolve(None, None, tmp_path / "none.toml", ()) == Config()
    assert resolve(None, None, stored, ()).training.budget == 5
    assert resolve(None, file, stored, ()).training.budget == 6
    assert resolve("digits", None, stored, ()) == resolve("digits", None, None, ()) != Config()
    overrides = ("training.budget=7", "training.budget = 8")
    assert resolve("digits", None, stored, overrides).training.budget == 8


@pytest.mark.parametrize("name", presets())
def test_presets_are_accepted(name: str) -> None:
    config = resolve(name, None, None, ())
    assert config != Config()
    validate_run(config)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1_000", 1000),
        ("1e-3", 1e-3),
        ("true", True),
        ("hkd", "hkd"),
        ('"5"', "5"),
        ('["fd"]', ["fd"]),
        ("/a path/x.toml", "/a path/x.toml"),
        ("1\nx = 2", "1\nx = 2"),
        ("", ""),
    ],
)
def test_toml_values(text: str, value: Any) -> None:
    assert toml_value(text) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.bugdet=1", "training.bugdet: unknown key; did you mean 'budget'?"),
        ("trainig.budget=1", "trainig: unknown section; did you mean 'training'?"),
        ("training.budget=0", "training.budget: got 0; accepted: an integer, at least 1"),
        ("training.budget=1.5", "training.budget: got 1.5; accepted: an integer, at least 1"),
        ("training.budget=many", 'training.budget: got "many"; accepted: an integer, at least 1'),
        *(
            (
                f"training.budget={digit * 5000}",
                f'training.budget: got "{digit * 5000}"; accepted: an integer, at least 1',
            )
            for digit in "1["
        ),
        (
            "generation.sigma_max=1" + "0" * 400,
            f"generation.sigma_max: got 1{'0' * 400}; accepted: a number, above 0",
        ),
        (
            "generation.steps=10000000000",
            "generation.steps: got 10000000000; accepted: an integer, at least 2, at most 100000",
        ),
        ("evaluation.bootstrap=1", "evaluation.bootstrap: got 1; accepted: 0, or at least 2"),
        ("training.adam_betas=[0.9]", "training.adam_betas: got [0.9]; accepted: two numbers below 1"),
        ("training.ema=[]", "training.ema: got []; accepted: at least one decay; 0 averages nothing"),
        ("training.fd_images=1", "training.fd_images: got 1; accepted: 0, or at least 2, for a covariance"),
        ("training.learning_rate=nan", "training.learning_rate: got NaN; accepted: a number, above 0"),
        (
            "training.a.b=1",
            "training.a.b: unknown key; known: "
            + ", ".join(sorted(field.name for field in dataclasses.fields(sections()["training"]))),
        ),
        ("budget", "--set: got 'budget'; accepted: section.key=value, as in training.budget=20000"),
        ("budget=3", "--set: got 'budget=3'; accepted: section.key=value, as in training.budget=20000"),
        (
            "generation.sigma_min=80",
            "generation.sigma_min: got 80.0; accepted: below generation.sigma_max, which is 80.0",
        ),
        *(
            (
                f"generation.store_steps={given}",
                f"generation.store_steps: got {given}; accepted: rising numbers, the first 0, the last "
                "generation.steps, which is 18; or [], for all",
            )
            for given in ("[1, 18]", "[0, 17]", "[0, 5, 5, 18]", "[0]", "[0, 19, 18]")
        ),
        *(
            (
                f"generation.{key}=40",
                f"generation.{key}: refused: trajectories must be deterministic; churn is for plain sampling "
                "of the teacher: hkdpipe sample --teacher TEACHER --churn 40 --out DIR",
            )
            for key in ("churn", "s_churn", "s_noise")
        ),
    ],
)
def test_refused_overrides(override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(None, None, None, [override])
    assert worded(caught.value, None) == message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["generation.count=256"],
            "training.validation: got 256; accepted: below generation.count, which is 256",
        ),
        (
            ["generation.store_steps=[0, 18]", "hkd.times=2"],
            "hkd.times: got 2; accepted: 1, as generation.store_steps leaves out all states in between",
        ),
        (
            ["hkd.latent_weight=0"],
            "koopman.learns_from: got 'latent'; accepted with hkd.latent_weight = 0: 'all'",
        ),
    ],
)
def test_what_a_run_would_refuse_may_serve_a_single_stage(overrides: list[str], message: str) -> None:
    config = resolve(None, None, None, overrides)
    with pytest.raises(UsageError) as caught:
        validate_run(config)
    assert worded(caught.value, None) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[training]\nbudget = \n", "not TOML: Invalid value (at line 2, column 10)"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"a = " + b"[" * 5000, "not TOML: maximum recursion depth exceeded"),
    ],
)
def test_files_that_are_not_toml(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        resolve(None, path, None, ())
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "count = 3",
            "count: unknown section; known: evaluation, generation, hkd, kdm, koopman, teacher, training",
        ),
        ("training = 3", "training: got a value; accepted: a section, [training]"),
    ],
)
def test_files_without_sections(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content)
    with pytest.raises(UsageError) as caught:
        resolve(None, path, None, ())
    assert str(caught.value) == message


def test_sources_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine\.toml: no such file"):
        resolve(None, tmp_path / "mine.toml", None, ())
    with pytest.raises(UsageError, match=r"preset: no preset 'digit'; did you mean 'digits'\?"):
        resolve("digit", None, None, ())
    with pytest.raises(UsageError, match=r"preset: no preset '\.\./x'; known: afhqv2, .*, digits, "):
        resolve("../x", None, None, ())
    with pytest.raises(UsageError, match="--preset and --config: give one of them"):
        resolve("digits", tmp_path / "mine.toml", None, ())

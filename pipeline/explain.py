"""Every key of a configuration in words, as `hkdpipe config --explain` prints them."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
import typing
from collections.abc import Callable, Mapping
from typing import Any

from hkdpipe.manifests.ground.sections import accepted
from hkdpipe.pipeline.cluster.cluster_file import SECTIONS as CLUSTER_SECTIONS
from hkdpipe.pipeline.cluster.cluster_file import Cluster
from hkdpipe.pipeline.configuration.config import Config, sections

_LATER = {
    "identity": "fixed once its stage has begun",
    "growing": "may grow later",
    "operational": "may change at any time",
}


def describe(config: Config) -> dict[str, dict[str, dict[str, Any]]]:
    """By section and key: value, default, accepted values, documentation, and what may happen to it later."""
    described = _described(config.section, sections())
    for name, cls in sections().items():
        for field in dataclasses.fields(cls):
            # [evaluation] is evaluated again when it changes.
            kind = "operational" if name == "evaluation" else field.metadata["kind"]
            described[name][field.name]["later"] = _LATER[kind]
    return described


def explain(config: Config) -> str:
    """The configuration as a TOML file in which a comment stands above each key."""
    return _commented(describe(config))


def explain_cluster() -> str:
    """The cluster file with every key at its default, in the same form."""
    return _commented(_described(functools.partial(getattr, Cluster()), CLUSTER_SECTIONS))


def _described(
    section: Callable[[str], Any], sections: Mapping[str, type]
) -> dict[str, dict[str, dict[str, Any]]]:
    described: dict[str, dict[str, dict[str, Any]]] = {}
    for name, cls in sections.items():
        hints = typing.get_type_hints(cls)
        described[name] = {
            field.name: {
                "value": getattr(section(name), field.name),
                "default": field.default,
                "accepted": accepted(hints[field.name], field.metadata, explained=True),
                "doc": field.metadata["doc"],
            }
            for field in dataclasses.fields(cls)
        }
    return described


def _commented(described: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = []
    for name, keys in described.items():
        lines.append(f"[{name}]")
        for key, about in keys.items():
            said = [about["accepted"], f"default {_toml(about['default'])}"]
            if "later" in about:
                said.append(about["later"])
            lines += _comment(about["doc"])
            lines += _comment(f"({'; '.join(said)})")
            lines += [f"{key} = {_toml(about['value'])}", ""]
    return "\n".join(lines)


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, 100, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )


def _toml(value: Any) -> str:
    import tomli_w

    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()

"""Typed, validated settings: one frozen dataclass per configuration section, each field made by `setting`.

A field's kind says what may happen to it once its stage has begun: `identity` values decide the result
and may not change, `growing` values may only grow, `operational` values are free.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, TypeVar

from hkdpipe.manifests.ground.errors import Remedy, UsageError

MAX_SEED = 2**64 - 1
Kind = Literal["identity", "growing", "operational"]
Section = TypeVar("Section")
_BOUNDS = {"minimum": "at least", "above": "above", "maximum": "at most"}


def setting(
    default: Any,
    doc: str,
    *,
    choices: Collection[Any] | Callable[[], Collection[Any]] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    single: bool = False,
    kind: Kind = "identity",
) -> Any:
    """A dataclass field with its documentation and accepted values (`above` is an exclusive minimum).

    `choices` that others register are given as a function, asked when a value is checked. `single`: a list
    of one may be given as its item.
    """
    bounds = {"minimum": minimum, "above": above, "maximum": maximum}
    metadata = {"doc": doc, "choices": choices, **bounds, "single": single, "kind": kind}
    return dataclasses.field(default=default, metadata=metadata)


operational = functools.partial(setting, kind="operational")


def parse_section(cls: type[Section], values: Mapping[str, Any], section: str) -> Section:
    """Build a section from TOML values.

    Raises UsageError, naming the key as `section.key`, on an unknown key (with the nearest known one, or
    with why there is none, where the section's REFUSED says so), a wrong type or a value outside of what is
    accepted.
    """
    refused: Mapping[str, Sequence[str | Remedy]] = getattr(cls, "REFUSED", {})
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    parsed = {}
    for key, value in values.items():
        if key in refused:
            raise UsageError(f"{section}.{key}: refused: ", *refused[key])
        if key not in fields:
            raise UsageError(f"{section}.{key}: unknown key{nearest(key, fields)}")
        parsed[key] = _check(f"{section}.{key}", value, hints[key], fields[key].metadata)
    return cls(**parsed)


def nearest(word: str, known: typing.Iterable[str]) -> str:
    """A suggestion to append to a message about an unknown word; lists what is known if nothing is near."""
    known = sorted(known)
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{match[0]}'?" if match else f"; known: {', '.join(known)}"


def accepted(hint: Any, metadata: Mapping[str, Any], explained: bool = False) -> str:
    """In words, what a setting takes: 'an integer, at least 1'; `explained`: with what its choices are."""
    if (choices := choices_of(metadata)) is not None:
        about = choices if explained and isinstance(choices, Mapping) else {}
        said = {name: f" ({about[name]})" if name in about else "" for name in choices}
        known = ", ".join(json.dumps(name) + said[name] for name in choices)
        return f"one of {known}" if not _item(hint) else f"a list of {known}"
    names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
    item = _item(hint)
    words = f"a list, each {names[item]}" if item else names[hint]
    if item and metadata["single"]:
        words = f"{names[item]} or {words}"
    for bound, meaning in _BOUNDS.items():
        if (limit := metadata[bound]) is not None:
            words += f", {meaning} {limit if isinstance(limit, int) else format(limit, 'g')}"
    return words


def choices_of(metadata: Mapping[str, Any]) -> Collection[Any] | None:
    """What a setting may be, if only certain values; of a mapping, with what they are."""
    choices = metadata["choices"]
    return choices() if callable(choices) else choices


def _item(hint: Any) -> type | None:
    """The item type of a `tuple[X, ...]` hint, else None."""
    return typing.get_args(hint)[0] if isinstance(hint, types.GenericAlias) else None


def _check(name: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    def refuse() -> UsageError:
        got = json.dumps(value, default=str)
        return UsageError(f"{name}: got {got}; accepted: {accepted(hint, metadata)}")

    item = _item(hint)
    if item:
        entries = [value] if metadata["single"] and not isinstance(value, list | tuple) else value
        if not isinstance(entries, list | tuple):
            raise refuse()
        return tuple(_check_one(entry, item, metadata, refuse) for entry in entries)
    return _check_one(value, hint, metadata, refuse)


def _check_one(value: Any, hint: type, metadata: Mapping[str, Any], refuse: Any) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            raise refuse() from None
    if type(value) is not hint or (isinstance(value, float) and not math.isfinite(value)):
        raise refuse()
    choices, (least, above, most) = choices_of(metadata), (metadata[bound] for bound in _BOUNDS)
    low = (least is not None and value < least) or (above is not None and value <= above)
    if low or (most is not None and value > most) or (choices is not None and value not in choices):
        raise refuse()
    return value


def of_kind(settings: Any, kind: Kind) -> dict[str, Any]:
    """The settings of one kind, by name."""
    return {
        field.name: getattr(settings, field.name)
        for field in dataclasses.fields(settings)
        if field.metadata["kind"] == kind
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one of dotted keys, a.b, in the order they stand."""
    dotted: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        dotted |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return dotted


def digest(values: Any) -> str:
    """SHA-256 of a JSON-serialisable value in canonical form: equal values, equal digests."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()

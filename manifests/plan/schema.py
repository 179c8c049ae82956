"""What plans and records hold is described once, in manifest.schema.json; this is the check by it.

Of JSON Schema, the keywords that stand there are known. Each schema becomes a function once, as an archive
may have 10**6 records.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DEFS = json.loads(Path(__file__).with_name("manifest.schema.json").read_text(encoding="utf-8"))["$defs"]


@dataclass(frozen=True)
class Accepted:
    """What a schema takes: in words, as a test, by name, and of a table, by key."""

    words: str
    test: Callable[[Any], bool]
    names: tuple[str, ...]
    keys: dict[str, Accepted]

    def check(self, name: str, value: Any) -> None:
        """ValueError naming the value, or the one in a table, that is not accepted."""
        if not self.test(value):
            require(name, value, False, self.words)
        for key, accepted in self.keys.items():
            accepted.check(f"{name}.{key}", value[key])

    def check_fields(self, record: Any) -> None:
        """ValueError naming the first of a dataclass' fields that is not accepted."""
        for name, accepted in self.keys.items():
            value = getattr(record, name)
            if name not in LEFT_OUT or value != LEFT_OUT[name]:
                accepted.check(name, value)


def require(name: str, value: Any, good: bool, words: str) -> None:
    """ValueError naming the value and, in words, what is accepted, unless the value is good."""
    if not good:
        raise ValueError(f"{name}: got {value!r}; accepted: {words}")


def by_schema(schema: dict[str, Any]) -> Accepted:
    """What a schema takes, beside the default of what may be left out."""
    if "$ref" in schema:
        return by_schema(_DEFS[schema["$ref"].removeprefix("#/$defs/")])
    if "anyOf" in schema:
        return by_schema(schema["anyOf"][-1])
    keys = {key: by_schema(entry) for key, entry in schema.get("properties", {}).items()}
    item = by_schema(schema["items"]).test if "items" in schema else bool
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    few, many = schema.get("minItems", 0), schema.get("maxItems", math.inf)
    above, unique = schema.get("exclusiveMinimum", -math.inf), schema.get("uniqueItems", False)
    # Not `search`: to Python, a $ also stands before a newline at the end.
    fits, names = re.compile(schema.get("pattern", "(?s:.*)")).fullmatch, tuple(schema.get("enum", ()))
    tests: dict[str, Callable[[Any], bool]] = {
        "integer": lambda value: type(value) is int and low <= value <= high,
        "number": lambda value: is_number(value) and low <= value <= high and value > above,
        "string": lambda value: isinstance(value, str) and fits(value) is not None,
        "array": lambda value: (
            (isinstance(value, list | tuple) and few <= len(value) <= many and all(map(item, value)))
            and not (unique and len(set(value)) < len(value))
        ),
        "object": lambda value: isinstance(value, dict) and (not keys or value.keys() == keys.keys()),
        "enum": lambda value: value in names,
        "anything": lambda value: True,
    }
    kind = schema.get("type", "enum" if names else "anything")
    words = f"a table of {', '.join(keys)}" if keys else ", ".join(f'"{name}"' for name in names)
    return Accepted(schema.get("description", words), tests[kind], names, keys)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


PLAN, RECORD = by_schema(_DEFS["plan"]), by_schema(_DEFS["shard"])
RULES = [(by_schema(rule["if"]), by_schema(rule["then"])) for rule in _DEFS["plan"]["allOf"]]
"""Where a plan's fields are the first, they are the second."""
LEFT_OUT: dict[str, Any] = {
    key: entry["default"]
    for table in (_DEFS["plan"], _DEFS["shard"])
    for key, entry in table["properties"].items()
    if "default" in entry
}
"""Keys that are left out where they have these values, as in archives made before there were such keys."""

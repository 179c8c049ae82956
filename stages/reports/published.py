"""Numbers that papers report (published.toml), to stand beside measured ones."""

import re
import tomllib
from pathlib import Path
from typing import Any

PUBLISHED = "fid"
"""What these numbers are."""
OTHERS = "as listed in arXiv 2510.12220"


def published(dataset: str, shape: tuple[int, int, int], conditional: bool) -> list[dict[str, Any]]:
    """Rows of `name`, `nfe`, `fid` and `source` for the data set that a teacher says it was trained on, with
    images of that shape (C, H, W); none for one that the papers do not have."""
    tables = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
    for table in tables.values():
        if re.match(table["pattern"], dataset.lower()) and shape == tuple(table["shape"]):
            names = ("name", "nfe", PUBLISHED, "source")
            found = table["conditional" if conditional else "rows"]
            return [dict(zip(names, (*row, OTHERS)[:4], strict=True)) for row in found]
    return []

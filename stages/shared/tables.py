"""Tables as .csv files."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from hkdpipe.manifests.ground.atomic_files import write_atomic

Row = Mapping[str, str | int | float]


def write_table(path: Path, rows: Sequence[Row], form: str = "") -> None:
    """Rows of the same columns under their names; floats in a `form`, else with all their digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(format(cell, form) if isinstance(cell, float) else cell for cell in row.values())
    write_atomic(path, text.getvalue().encode())

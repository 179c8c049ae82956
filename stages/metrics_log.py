"""metrics.csv of a training: one row per report, continued after an interruption without doubled rows."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from hkdpipe.manifests.errors import InputError
from hkdpipe.manifests.files import write_atomic


class MetricsLog:
    """Appends rows (seen, values...) to a CSV file whose columns the first row sets."""

    def __init__(self, path: Path, seen: int) -> None:
        """Continue at `seen`: rows of later steps, which are repeated now, are dropped, as is a torn one."""
        self.path = path
        self.columns: list[str] = []
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        rows = list(csv.reader(line for line in lines if line.endswith("\n")))
        if not rows:
            path.unlink()
            return
        if rows[0][:1] != ["seen"]:
            raise InputError(f"{path}: not the metrics of a training; move it away, or choose another folder")
        whole = [row for row in rows[1:] if len(row) == len(rows[0]) and row[0].isdecimal()]
        kept = [row for row in whole if int(row[0]) <= seen]
        # A training that begins anew may have other columns.
        self.columns = rows[0] if kept else []
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([rows[0], *kept])
        write_atomic(path, text.getvalue().encode())

    def append(self, seen: int, values: dict[str, float]) -> None:
        with self.path.open("a" if self.columns else "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not self.columns:
                self.columns = ["seen", *values]
                writer.writerow(self.columns)
            writer.writerow([seen, *(f"{values[column]:.8g}" for column in self.columns[1:])])

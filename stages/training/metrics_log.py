"""metrics.csv of a training: one row per report, continued after an interruption without doubled rows."""

import csv
import io
from pathlib import Path

from hkdpipe.manifests.ground.atomic_files import write_atomic
from hkdpipe.manifests.ground.errors import InputError


class MetricsLog:
    """Appends rows (seen, values...) to a CSV file, whose cells are empty where a row has no such value."""

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
        self._write(rows[0], kept)
        # A training that begins anew may have other columns.
        self.columns = rows[0] if kept else []

    def append(self, seen: int, values: dict[str, float]) -> None:
        if not self.columns:
            self._write(["seen", *values], [])
        elif added := [name for name in values if name not in self.columns]:
            before = list(csv.reader(self.path.read_text(encoding="utf-8").splitlines()))[1:]
            self._write([*self.columns, *added], [[*row, *[""] * len(added)] for row in before])
        cells = (f"{values[column]:.8g}" if column in values else "" for column in self.columns[1:])
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([seen, *cells])

    def _write(self, columns: list[str], rows: list[list[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        write_atomic(self.path, text.getvalue().encode())
        self.columns = columns

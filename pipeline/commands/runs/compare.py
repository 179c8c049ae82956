"""hkdpipe compare: methods and ablations side by side, on one archive."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hkdpipe.manifests.ground.atomic_files import make_folders, read_json_if_there, write_atomic, write_json
from hkdpipe.manifests.ground.claims import Claims
from hkdpipe.manifests.ground.errors import HkdpipeError, InUseError, UsageError
from hkdpipe.pipeline import stage_calls as stages
from hkdpipe.pipeline.configuration.comparison_plan import Comparison, Trial, resolve_comparison, trials
from hkdpipe.pipeline.configuration.config import dump, resolve, validate_run
from hkdpipe.pipeline.configuration.run_directory import RunDir, changes, kind_of
from hkdpipe.pipeline.configuration.run_record import read_record
from hkdpipe.pipeline.error_wording import worded
from hkdpipe.pipeline.options import FOLDER, folder_or_url, work_options
from hkdpipe.pipeline.progress import print_table
from hkdpipe.pipeline.session import Session, one_process_only
from hkdpipe.pipeline.stage_calls import Work

if TYPE_CHECKING:
    from hkdpipe.stages.reports.comparison_tables import Line

_TITLES = {"trajectories": "at equal trajectories seen", "evaluations": "at equal network evaluations"}


@click.command("compare", short_help="Methods and ablations side by side.")
@click.option("--preset", metavar="NAME", help="A comparison that ships with hkdpipe: digits-ablation.")
@click.option("--config", "file", type=FOLDER, metavar="FILE", help="A comparison of your own, in TOML.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Set one key of all rows, over preset and file; may be repeated.",
)
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="Folder; the same command resumes.")
@click.option(
    "--archive",
    type=folder_or_url,
    metavar="ARCHIVE",
    help="Archive to learn from, a folder or a URL, instead of making one in DIR.",
)
@work_options
def command(
    preset: str | None,
    file: Path | None,
    overrides: tuple[str, ...],
    out: Path,
    archive: Path | str | None,
    session: Session,
) -> None:
    """Train methods and ablations on one archive, with equal budgets and seeds, and tabulate what they reach.

    \b
    The rows of the HKD paper's ablation, KD and KDM, on digits:
      hkdpipe compare --preset digits-ablation --out runs/ablation
    The same command again goes on, and another one beside it helps:
      OMP_NUM_THREADS=1 hkdpipe compare --preset digits-ablation --out runs/ablation &
      OMP_NUM_THREADS=1 hkdpipe compare --preset digits-ablation --out runs/ablation
    Less of it:
      hkdpipe compare --preset digits-ablation --out quick --set comparison.seeds=0 \\
        --set training.budget=8000
    """
    one_process_only("compare")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out: {out} is not a folder")
    comparison = resolve_comparison(preset, file, overrides)
    with session.working() as work:
        planned = trials(comparison)
        _check(comparison, planned, out)
        place = archive or out / "trajectories"
        if archive is None:
            stages.generate(comparison.base, out / "trajectories", work, wait=True)
        _check_archive(place, out)
        elsewhere, failed = 0, []
        for number, trial in enumerate(planned, 1):
            if _result(out, trial) is None:
                work.reporter.line(f"{number} of {len(planned)}: {trial.title}")
                try:
                    _perform(trial, out, place, work)
                except InUseError as error:
                    work.reporter.line(f"{error}: left to it")
                    elsewhere += 1
                    continue
                except HkdpipeError as error:
                    # One that diverges says nothing of the others; a wrong input or a request to stop does.
                    if error.exit_code != HkdpipeError.exit_code:
                        raise
                    work.reporter.line(f"{trial.title}: failed: {worded(error, None)}")
                    failed.append(trial.title)
                    continue
                _write_tables(comparison, planned, out)
        lines = _write_tables(comparison, planned, out)
    if session.as_json:
        counts = {"left_to_others": elsewhere, "failed": failed}
        print(json.dumps({"out": str(out), **counts, **_as_json(comparison, lines)}))
    elif not session.quiet:
        for title, header, rows in _tables(comparison, lines):
            print_table(title, header, tuple(rows))
        print(f"wrote {out / 'comparison.md'}")
        if elsewhere:
            print(
                f"{elsewhere} of {len(planned)} trainings are another process's, which completes the tables"
            )
    if failed:
        raise HkdpipeError(f"trainings failed, and the tables lack them: {'; '.join(failed)}")


def _check(comparison: Comparison, planned: Sequence[Trial], out: Path) -> None:
    """Refuse what cannot be trained, and what has been begun in `out` with other settings."""
    for config in comparison.rows.values():
        validate_run(config)
        stages.check_stages_fit(config)
    for trial in planned:
        run = RunDir(out / trial.folder)
        if not run.config.exists():
            continue
        for change in changes(resolve(None, None, run.config, ()), trial.config):
            if kind_of(change.key) != "operational":
                raise UsageError(
                    f"{change.key}: {run.path} has {json.dumps(change.stored)}, given "
                    f"{json.dumps(change.given)}: keep the value, or take another --out"
                )


def _check_archive(archive: Path | str, out: Path) -> None:
    """Refuse another archive than the one that the trainings in `out` learn from; of the first, note it."""
    from hkdpipe.manifests.archive.reader import open_archive

    with open_archive(archive) as opened:
        found = {"identity": opened.identity, "trajectories": len(opened)}
    make_folders(out)
    with Claims(out) as claims, claims.waiting("archive"):
        begun_with = read_json_if_there(out / "archive.json")
        if begun_with is None:
            write_json(out / "archive.json", found)
        elif begun_with != found:
            raise UsageError(
                f"--archive: {archive} has other trajectories than what the trainings in {out} learn from; "
                "keep that one, or take another --out"
            )


def _perform(trial: Trial, out: Path, archive: Path | str, work: Work) -> None:
    """Train and evaluate, from where it was interrupted. InUseError where another process does."""
    from hkdpipe.stages.reports.comparison_tables import trial_numbers

    with RunDir(out / trial.folder).owned() as run:
        if _result(out, trial) is not None:
            return
        run.adopt(trial.config)
        stages.train(trial.config, archive, run.training, work, run)
        stages.evaluate(trial.config, archive, run.checkpoints, run.evaluation, run.export, work, run)
        seconds = read_record(run.record, work.reporter.warn)["stages"]["training"]["seconds"]
        numbers = trial_numbers(run.evaluation, trial.evaluations)
        run.check_owned()
        # Last: it says that all the rest is done.
        write_json(run.path / "result.json", {**numbers, "seconds": seconds})


def _result(out: Path, trial: Trial) -> dict[str, float] | None:
    """What a training has led to; None before it has."""
    found = read_json_if_there(out / trial.folder / "result.json")
    return found if isinstance(found, dict) else None


def _write_tables(comparison: Comparison, planned: Sequence[Trial], out: Path) -> list[Line]:
    """comparison.json, .csv and .md of what is done so far, by this process and by others."""
    import pandas as pd

    from hkdpipe.stages.reports.comparison_tables import Line, flat, markdown

    make_folders(out)
    # One process at a time, so that the last one leaves the tables of all.
    with Claims(out) as claims, claims.waiting("tables"):
        done = [(trial, result) for trial in planned if (result := _result(out, trial)) is not None]
        lines = [
            Line(row, equal, [result for trial, result in done if trial.row == row and equal in trial.equal])
            for equal in comparison.settings.equal
            for row in comparison.rows
        ]
        trained = [
            {"folder": str(trial.folder), "row": trial.row, "equal": trial.equal, "numbers": result}
            for trial, result in done
        ]
        write_json(out / "comparison.json", {**_as_json(comparison, lines), "trainings": trained})
        rows = [flat(line) for line in lines]
        write_atomic(out / "comparison.csv", pd.DataFrame(rows).to_csv(index=False).encode())
        text = "\n".join(markdown(*table) for table in _tables(comparison, lines))
        write_atomic(out / "comparison.md", text.encode())
    return lines


def _as_json(comparison: Comparison, lines: Sequence[Line]) -> dict[str, Any]:
    from hkdpipe.stages.reports.comparison_tables import flat

    return {
        "seeds": comparison.settings.seeds,
        "rows": {name: dump(config) for name, config in comparison.rows.items()},
        "lines": [flat(line) for line in lines],
    }


def _tables(
    comparison: Comparison, lines: Sequence[Line]
) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Title, header and rows of each."""
    from hkdpipe.stages.reports.comparison_tables import columns
    from hkdpipe.trainer.metrics.feature_spaces import SPACES

    metric = SPACES[comparison.base.evaluation.features].metric
    for equal in comparison.settings.equal:
        yield _TITLES[equal], *columns([line for line in lines if line.equal == equal], metric)

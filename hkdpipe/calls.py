"""The stages as functions: what the commands do, with a configuration and folders as arguments.

Beside them, all take: `device` ("auto": a GPU if there is one), `reporter` (what shows the progress; None: as
the commands do, on stderr; `hkdpipe.Silent()`: nothing) and `stop`, which is asked at safe points whether to
end with `Interrupted`. The same call goes on. Several processes (torchrun, srun) find one another by
themselves where the stage is distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.pipeline import stage_calls
from hkdpipe.pipeline.configuration.config import (
    Config,
    check_sections,
    parse,
    read_preset,
    read_toml,
    sections,
    validate_run,
)
from hkdpipe.pipeline.configuration.run_directory import RunDir
from hkdpipe.pipeline.configuration.run_record import record_changes
from hkdpipe.pipeline.options import folder_or_url
from hkdpipe.pipeline.progress import make_reporter
from hkdpipe.trainer.loop.world import world_from_environment

if TYPE_CHECKING:
    from hkdpipe.stages.shared.reporting import Reporter, Summary


def load_config(source: str | Path | None = None, **changes: Mapping[str, Any]) -> Config:
    """A preset ("digits") or a TOML file (its path ends in .toml), with changes to its sections; without
    either the defaults.

        load_config("digits", training={"budget": 100_000}, evaluation={"samples": 1000})

    Raises UsageError where a value is not accepted, InputError where the file is missing.
    """
    if source is None:
        values: dict[str, Any] = {}
    elif str(source).endswith(".toml"):
        values = read_toml(Path(source))
    else:
        values = read_preset(str(source))
    for given in (values, changes):
        check_sections(given, sections())
    for section, keys in changes.items():
        values[section] = {**values.get(section, {}), **{key: _as_toml(keys[key]) for key in keys}}
    return parse(values)


def _as_toml(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_toml(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def generate_trajectories(
    config: Config,
    archive: str | Path,
    *,
    device: str = "auto",
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Stage 1: the archive `archive` of trajectories of the teacher, or what it still lacks."""
    return stage_calls.generate(config, Path(archive), _work(device, reporter, stop))


def train(
    config: Config,
    archive: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Stage 2: a student learned from an archive, a folder or a URL, in `out` (checkpoints/, metrics.csv)."""
    work = _work(device, reporter, stop)
    return stage_calls.train(config, folder_or_url(str(archive)), Path(out), work)


def evaluate(
    config: Config,
    archive: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    export: str | Path | None = None,
    *,
    device: str = "auto",
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Stage 3: tables, pictures and a report in `out`, the model in `export` (None: in `out`/export).

    `checkpoint` is one, or a folder of them, whose newest is taken.
    """
    folder, work = Path(out), _work(device, reporter, stop)
    exported = folder / "export" if export is None else Path(export)
    place = folder_or_url(str(archive))
    return stage_calls.evaluate(config, place, Path(checkpoint), folder, exported, work)


def run(
    config: Config,
    run_dir: str | Path,
    *,
    device: str = "auto",
    reporter: Reporter | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Summary]:
    """All three stages in a run directory, skipping what is done: what each did, by its name.

    Raises UsageError where the directory's results are of another configuration.
    """
    if world_from_environment().size != 1:
        raise UsageError("run: started as one of several processes; accepted: one, or the stages one by one")
    validate_run(config)
    with RunDir(Path(run_dir)).owned() as owned:
        work = _work(device, reporter, stop)
        record_changes(owned.record, owned.adopt(config), work.reporter.line)
        stage_calls.check_stages_fit(config)
        archive = owned.trajectories
        return {
            "generation": stage_calls.generate(config, archive, work, owned),
            "training": stage_calls.train(config, archive, owned.training, work, owned),
            "evaluation": stage_calls.evaluate(
                config, archive, owned.checkpoints, owned.evaluation, owned.export, work, owned
            ),
        }


def _work(device: str, reporter: Reporter | None, stop: Callable[[], bool]) -> stage_calls.Work:
    return stage_calls.work_on(device, reporter or make_reporter(quiet=False), stop)

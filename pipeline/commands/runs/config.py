"""hkdpipe config: print, explain and check a configuration."""

from __future__ import annotations

import json

import click

from hkdpipe.manifests.ground.errors import UsageError
from hkdpipe.pipeline.configuration.config import dump, resolve, tables, validate_run
from hkdpipe.pipeline.configuration.run_directory import RunDir, check_change
from hkdpipe.pipeline.options import Given, configuration_options, json_option


@click.command("config", short_help="Print, explain or check a configuration.")
@click.option("--explain", "explained", is_flag=True, help="Each key with its meaning and what it accepts.")
@click.option(
    "--check", is_flag=True, help="Print nothing but whether a run may use it, in --run-dir if given."
)
@configuration_options
@json_option
def command(given: Given, explained: bool, check: bool, as_json: bool) -> None:
    """Print, explain or check a configuration; what is printed is a TOML file for --config.

    \b
      hkdpipe config --explain > mine.toml
      hkdpipe config --preset digits --set training.budget=400000
      hkdpipe config --check --config mine.toml --run-dir runs/mine
    """
    if explained and check:
        raise UsageError("--explain and --check: give one of them")
    config = given.resolve()
    if check:
        validate_run(config)
        run = RunDir(given.run_dir) if given.run_dir else None
        if run is not None and run.config.exists():
            check_change(resolve(None, None, run.config, ()), config, run.begun(config))
        print(json.dumps({"accepted": True}) if as_json else "the configuration is accepted")
    elif explained:
        from hkdpipe.pipeline.explain import describe, explain

        print(json.dumps(describe(config)) if as_json else explain(config).rstrip())
    else:
        print(json.dumps(tables(config)) if as_json else dump(config).rstrip())

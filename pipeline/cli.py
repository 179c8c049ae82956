"""The command `hkdpipe`: the group of commands, and the place where an error becomes a line and a code."""

from __future__ import annotations

import atexit
import errno
import importlib
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from hkdpipe.manifests.ground.errors import HkdpipeError, Interrupted
from hkdpipe.manifests.ground.sections import nearest
from hkdpipe.pipeline.error_wording import worded
from hkdpipe.trainer.loop.world import launcher, told_rank

COMMANDS = {
    "run": "runs",
    "generate-trajectories": "runs",
    "train": "runs",
    "evaluate": "runs",
    "verify": "inputs",
    "convert": "inputs",
    "compare": "runs",
    "status": "runs",
    "submit": "jobs",
    "cancel": "jobs",
    "sample": "models",
    "analyze": "models",
    "trajectory": "models",
    "interpolate": "models",
    "edit": "models",
    "inpaint": "models",
    "colorize": "models",
    "config": "runs",
    "train-teacher": "inputs",
    "import-teacher": "inputs",
}
"""In the order of the help, with the room of commands/ that each lies in: it is the object `command` of the
module of its name, imported when it is needed."""

_USER_ERRNOS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(
            f"hkdpipe.pipeline.commands.{COMMANDS[cmd_name]}.{cmd_name.replace('-', '_')}"
        )
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.UsageError(f"no command '{args[0]}'{nearest(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.version_option(package_name="hkdpipe", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Turn a pretrained EDM diffusion model into a one-step, white-box generator.

    \b
    The whole method on a small example, on a CPU:
      hkdpipe run --preset digits
    The same in steps, each of which resumes where it was stopped:
      hkdpipe generate-trajectories --preset digits --run-dir runs/digits
      hkdpipe train --run-dir runs/digits
      hkdpipe evaluate --run-dir runs/digits
    Training on all GPUs of a machine:
      torchrun --no-python --nproc-per-node gpu hkdpipe train --run-dir runs/digits
    As jobs of a SLURM cluster:
      hkdpipe submit --preset digits --run-dir runs/digits --cluster cluster.toml
    Where a run stands, and every key of its configuration:
      hkdpipe status --run-dir runs/digits
      hkdpipe config --explain

    \b
    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 input missing or damaged,
    4 in use by another process, 75 interrupted: the same command goes on.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: this process's) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = cli.main(args=arguments, prog_name="hkdpipe", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "hkdpipe"
        return _fail(f"{error.format_message()} (see {where} --help)", 2)
    except (Interrupted, KeyboardInterrupt, click.Abort) as error:
        return _interrupted(error, arguments)
    except HkdpipeError as error:
        return _fail(worded(error, _command(arguments)), error.exit_code)
    except BrokenPipeError:
        # Whoever read the output has gone; Python's own flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _os_error(error)
    return code if isinstance(code, int) else 0


def _command(arguments: Sequence[str]) -> click.Command | None:
    return cli.get_command(click.Context(cli), arguments[0]) if arguments else None


def _fail(message: str, code: int) -> int:
    rank = told_rank()
    if launcher():
        # It ends the others when one has failed. Whom that finds on the way out shall not look stopped.
        atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)
    speaker = "hkdpipe: error" if rank == "0" else f"hkdpipe: error (rank {rank})"
    click.echo(f"{speaker}: {' '.join(message.splitlines())}", err=True)
    return code


def _interrupted(error: BaseException, arguments: Sequence[str]) -> int:
    if told_rank() == "0":
        started = launcher()
        again = f"the same {started.name} command" if started else shlex.join(["hkdpipe", *arguments])
        what = f"interrupted ({error})" if isinstance(error, Interrupted) else "interrupted"
        click.echo(f"hkdpipe: {what}; to go on: {again}", err=True)
        # For a job's script, which sees the exit code of torchrun alone.
        if told := os.environ.get("HKDPIPE_STOPPED"):
            Path(told).touch()
    return Interrupted.exit_code


def _os_error(error: OSError) -> int:
    place = f"{error.filename}: " if error.filename is not None else ""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _fail(f"{place}disk full ({reason}); free some space and give the same command again", 1)
    if error.errno == errno.ENOENT:
        return _fail(f"{place}{reason}", 3)
    return _fail(f"{place}{reason}", 2 if error.errno in _USER_ERRNOS else 1)

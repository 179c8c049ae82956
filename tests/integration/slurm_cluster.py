"""A SLURM cluster of its own on this machine: every daemon a child of the test, everything in one folder.

The nodes are `n1`, `n2`, ... on the loopback interface. Needs Debian's slurmctld, slurmd, slurm-client and
munge; works as root or as any one user, whom all daemons and jobs then belong to.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from commands import PATIENCE, Ran, environment

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "shellcheck")
SETTINGS = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=0
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
JobRequeue=1
KillWait=30
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=30
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
# `cred_expire` is also how long a job rests before it is started again. JobFileAppend, RequeueExit and the
# like are left as they come: the scripts must not need them.


def missing_programs() -> list[str]:
    """What a cluster needs and this machine lacks. Daemons may not be on an ordinary user's path."""
    return [name for name in PROGRAMS if not _program(name)]


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Cluster:
    def __init__(self, root: Path, nodes: int = 2, cpus: int = 2) -> None:
        self.root = root
        self.nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self._cpus = cpus
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._settings = root / "slurm.conf"

    def environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in environment().items() if not key.startswith("SLURM_")}
        return {**inherited, "SLURM_CONF": str(self._settings)}

    def call(self, *command: str, folder: Path | None = None) -> Ran:
        """Run a command that knows of this cluster."""
        done = subprocess.run(
            command,
            cwd=folder or self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def ask(self, *command: str) -> str:
        """What a command says that must succeed."""
        ran = self.call(*command)
        assert ran.code == 0, f"{command}: {ran.err}"
        return ran.out.strip()

    def states(self, job: str) -> set[str]:
        """The states that the job's tasks are in."""
        return set(self.ask("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").split())

    def wait_for(self, reached: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
        deadline = time.monotonic() + patience
        while not reached():
            assert time.monotonic() < deadline, f"{what}: still not; {self.ask('squeue', '-t', 'all')}"
            time.sleep(0.05)

    def wait_for_end(self, job: str) -> set[str]:
        """Until every task is over; returns their states."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}
        self.wait_for(lambda: self.states(job) <= over, f"end of job {job}")
        return self.states(job)

    def start(self) -> None:
        self.root.chmod(0o755)
        for name in ("state", *(f"spool-{node}" for node in self.nodes)):
            (self.root / name).mkdir()
        secret = self.root / "munge"
        secret.mkdir(mode=0o700)
        (secret / "key").write_bytes(os.urandom(128))
        (secret / "key").chmod(0o400)
        ports = free_ports(1 + len(self.nodes))
        host = socket.gethostname().partition(".")[0]
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={self._cpus}"
            for node, port in zip(self.nodes, ports[1:], strict=True)
        ]
        settings = {"root": self.root, "host": host, "port": ports[0], "user": getpass.getuser()}
        self._settings.write_text(SETTINGS.format(**settings, nodes="\n".join(nodes)))
        meeting = f"{self.root}/munge.socket"
        self._start(
            "munged",
            *("--foreground", "--force", f"--key-file={secret}/key", f"--seed-file={secret}/seed"),
            *(f"--socket={meeting}", f"--pid-file={self.root}/munged.pid", f"--log-file={secret}/log"),
        )
        self.wait_for(lambda: self.call("munge", "-n", "-S", meeting).code == 0, "munged", 30)
        self._start("slurmctld", "-D", "-c")
        for node in self.nodes:
            self._start("slurmd", "-D", "-N", node)
        idle = ["sinfo", "-h", "-t", "idle", "-o", "%D"]
        self.wait_for(lambda: self.call(*idle).out.strip() == str(len(self.nodes)), "idle nodes", 30)

    def stop(self) -> None:
        """End the jobs and then the daemons; kills what is left of either."""
        if "slurmctld" in self._daemons:
            self.call("scancel", "--full", "--signal=KILL", f"--user={getpass.getuser()}")
            self.call("scancel", f"--user={getpass.getuser()}")
            with contextlib.suppress(AssertionError):
                self.wait_for(lambda: not self.call("squeue", "-h").out.strip(), "empty queue", 10)
        for process in reversed(self._daemons.values()):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._daemons.clear()
        for number in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)

    def _start(self, program: str, *options: str) -> None:
        path = _program(program)
        assert path is not None
        name = "-".join([program, *options[-1:]]) if program == "slurmd" else program
        with (self.root / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                [path, *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.environment(),
                start_new_session=True,
            )

    def _left(self) -> Iterator[int]:
        """Processes that still belong to this cluster, jobs and their keepers."""
        mine = f"SLURM_CONF={self._settings}".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mine in (folder / "environ").read_bytes().split(b"\0"):
                    yield int(folder.name)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]

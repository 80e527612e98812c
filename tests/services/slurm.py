"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd, each in a namespace of its own.

Everything it writes lies in one directory. It needs root, and Debian's slurm-wlm (22.05 was tried).
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "unshare")
NODES = ("node1", "node2")
UP_S, DOWN_S = 60.0, 30.0
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={run}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={run}/state
SlurmdSpoolDir={run}/spool.%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd.%n.pid
SlurmctldLogFile={run}/slurmctld.log
SlurmdLogFile={run}/slurmd.%n.log
PlugStackConfig={run}/plugstack.conf
CommunicationParameters=NoAddrCache,NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,requeue_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MinJobAge=3600
FirstJobId={first}
KillWait=5
OverTimeLimit=5
CompleteWait=0
InactiveLimit=0
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=10
SlurmctldDebug=info
SlurmdDebug=info
SlurmdParameters=config_overrides
NodeName=node1 NodeAddr=127.0.0.1 Port={node1} CPUs=6 RealMemory=4096 Gres=gpu:3 State=UNKNOWN
NodeName=node2 NodeAddr=127.0.0.1 Port={node2} CPUs=6 RealMemory=4096 Gres=gpu:3 State=UNKNOWN
PartitionName=low  Nodes=node1,node2 Default=YES PriorityTier=1  PreemptMode=REQUEUE GraceTime=120 MaxTime=INFINITE State=UP
PartitionName=high Nodes=node1,node2 Default=NO  PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
ENTER = 'hostname "$1" && mount --bind "$2/hosts" /etc/hosts && exec slurmd -N "$1"'


def missing() -> str | None:
    """Why SLURM cannot be started here; None if it can."""
    absent = [program for program in PROGRAMS if _find(program) is None]
    if absent:
        return f"SLURM is not installed ({', '.join(absent)} missing): apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "a SLURM of two nodes needs root"
    if subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode:
        return "this machine gives no namespaces for the two nodes"
    return None


class Slurm:
    """The running cluster; ``start`` it once, ``stop`` it always.

    Args:
        run: Directory for everything it writes.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self.environment = os.environ | {"SLURM_CONF": f"{run}/slurm.conf", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

    def start(self) -> None:
        """Returns when both nodes are idle."""
        for name in ("state", *(f"spool.{node}" for node in NODES)):
            (self._run / name).mkdir(parents=True)
        host = socket.gethostname().split(".")[0]
        ports = dict(zip(("controller", *NODES), _free_ports(3), strict=True))
        (self._run / "slurm.conf").write_text(CONF.format(run=self._run, host=host, first=1 + secrets.randbelow(9000), **ports))
        (self._run / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={self._run}/gpu[0-2]\n")  # they only count
        for gpu in range(3):
            (self._run / f"gpu{gpu}").touch()
        (self._run / "plugstack.conf").touch()
        (self._run / "hosts").write_text(f"127.0.0.1 localhost {host} node1 node2\n::1 localhost\n")
        key = self._run / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        files = {"key-file": "key", "socket": "socket", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self._run}/munge.{name}" for option, name in files.items()]
        self.do("munged", *options, f"--pid-file={self._run}/munged.pid", "--num-threads=2", "--force")
        self.do("slurmctld", "-c")
        for node in NODES:
            self.start_node(node)
        self.wait_for_nodes()

    def start_node(self, node: str) -> None:
        """Starts the daemon of a node, which daemonises itself."""
        self.do("unshare", "--uts", "--mount", "sh", "-c", ENTER, "sh", node, str(self._run))

    def kill_node(self, node: str) -> None:
        """Kills the daemon of a node and everything that runs under it, as when the machine fails."""
        pid = int((self._run / f"slurmd.{node}.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        for process in self._processes(node):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def wait_for_nodes(self) -> None:
        """Waits until both nodes are there, and none is still clearing up after a job."""
        deadline = time.monotonic() + UP_S
        while not {*self.do("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split()} <= {"idle", "mix", "alloc"}:
            assert time.monotonic() < deadline, self.do("sinfo", "-N", "-l") + self.logs()
            time.sleep(0.1)

    def do(self, *command: str, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
        """Runs a command of SLURM's; what it prints."""
        given = self.environment | (environment or {})
        done = subprocess.run(command, env=given, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "".join(f"\n--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self._run.glob("*.log")))

    def stop(self) -> None:
        """Cancels all jobs and stops the daemons that ``start`` has started."""
        for signal_ in ((), ("--full", "--signal=KILL")):
            with suppress(AssertionError, subprocess.TimeoutExpired):
                self.do("scancel", *signal_, "--user=root")
        for name in (*(f"slurmd.{node}" for node in NODES), "slurmctld", "munged"):
            _end(self._run / f"{name}.pid")
        for node in NODES:
            for process in self._processes(node):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def _processes(self, node: str) -> list[int]:
        """What runs of jobs on a node: tasks know their node, and where their SLURM's configuration lies."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                words = path.read_bytes().split(b"\0")
                if f"SLURM_CONF={self._run}/slurm.conf".encode() in words and f"SLURMD_NODENAME={node}".encode() in words:
                    found.append(int(path.parent.name))
        steps = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/comm") if _reads(p, "slurmstepd")]
        return [*(pid for pid in steps if _hostname(pid) == _hostname_of(found)), *found] if found else []


def _reads(path: Path, text: str) -> bool:
    with suppress(OSError):
        return path.read_text().strip() == text
    return False


def _hostname(pid: int) -> str:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/uts")
    return "gone"


def _hostname_of(pids: list[int]) -> str:
    return next((name for name in map(_hostname, pids) if name != "gone"), "none")


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _end(pid_file: Path) -> None:
    try:
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + DOWN_S
        while _alive(pid):
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.05)
    except (FileNotFoundError, ValueError, ProcessLookupError):
        return


def _alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False

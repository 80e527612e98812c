"""The batch scripts without a SLURM: programs of its names that record how they are called, and ranks that end as a test says."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.dist.processes import ROOT

# Each writes its command line to the file $CALLS; $ON_SRUN, $ON_RANK, $ON_SHOW, $ON_REQUEUE and $ON_SMI are what they do besides.
SRUN = """
[[ " $* " != *" -c "* ]] || { while [[ $1 == --* ]]; do shift; done; exec "$@"; }
eval "${ON_SRUN:-}"
tasks=2; nodes=2
for word in "$@"; do case $word in --ntasks=*) tasks=${word#*=} ;; --nodes=*) nodes=${word#*=} ;; esac; done
while [[ $1 == --* ]]; do shift; done
for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i SLURM_NODEID=$((i * nodes / tasks)) "$@" & all+=($!); done
for pid in "${all[@]}"; do wait "$pid" || code=$?; done
exit "${code:-0}"
"""
SCONTROL = """
case "$1 $2" in
    "show hostnames") printf 'node%s\\n' {1..9999} ;;
    "show job") eval "${ON_SHOW:-}"; echo "JobId=7 JobState=${STATE:-RUNNING}" ;;
    requeue*) eval "${ON_REQUEUE:-}" ;;
esac
"""
SLEEP = 'exec /bin/sleep "$([[ $1 == 0.* ]] && echo "$1" || echo 0.02)"'  # for whole seconds a moment
APPTAINER = 'while [[ $1 != *.sif ]]; do shift; done; shift; exec "$@"'
PYTHON = 'if [[ $1 == -c ]]; then echo "versions: pretended"; else eval "${ON_RANK:-}"; fi'


@dataclass(frozen=True)
class Ended:
    """A batch script that has ended: its exit code, its output, and how it called SLURM's programs."""

    code: int
    output: str
    calls: list[str]

    def called(self, *words: str) -> list[str]:
        """The calls that begin with these words."""
        return [call for call in self.calls if call.split()[: len(words)] == list(words)]


class Pretended:
    """Runs batch scripts in a working directory, by default the checkout.

    Args:
        folder: directory of the programs and the logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = {"srun": SRUN, "scontrol": SCONTROL, "scancel": "", "apptainer": APPTAINER, "nvidia-smi": 'eval "${ON_SMI:-}"'}
        for name, text in programs.items():
            self.program(f"bin/{name}", f'echo "{name} $*" >>"$CALLS"\n{text}')
        self.program("bin/sleep", SLEEP)
        self.program("venv/bin/python", PYTHON)
        self.program("bin/python", PYTHON)

    def program(self, name: str, text: str) -> Path:
        """Writes a bash script that can be run."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{text}\n")
        path.chmod(0o755)
        return path

    def run(self, *words: str, script: str = "generate", cwd: Path = ROOT, **environment: str) -> Ended:
        """Runs a script with arguments: two nodes of one rank each, unless variables say otherwise."""
        calls = self.folder / "calls"
        calls.write_text("")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "HYBRIDIFF_"))}
        given = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "CALLS": str(calls),
            "SLURM_SUBMIT_DIR": str(ROOT),
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NAME": "pretended",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": "2",
            "HYBRIDIFF_ENV": f"venv:{self.folder}/venv",
            "HYBRIDIFF_LOGS": str(self.folder / "logs"),
        }
        done = subprocess.run(
            ["bash", ROOT / f"slurm/{script}.sbatch", *words],
            env=kept | given | environment,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        return Ended(done.returncode, done.stdout, calls.read_text().splitlines())

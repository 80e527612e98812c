# shellcheck shell=bash
# Where python comes from, and what a job runs on, for its log; read by slurm/common.sh.

PYTHON=python
PREFIX=()   # goes before python inside a task
SRUN=()     # options of srun
SETUP=""    # what was activated, for the log

# Finds python by HYBRIDIFF_ENV.
activate() {
    local word
    [[ -n ${HYBRIDIFF_ENV:-} || ! -x .venv/bin/python ]] || HYBRIDIFF_ENV="venv:$PWD/.venv"
    for word in ${HYBRIDIFF_ENV:-}; do
        case $word in
            venv:*) [[ -x ${word#venv:}/bin/python ]] || fail "HYBRIDIFF_ENV: no python in ${word#venv:}/bin"
                    PYTHON=${word#venv:}/bin/python; PATH=${word#venv:}/bin:$PATH ;;
            module:*) load_module "${word#module:}" ;;
            apptainer:*) [[ -e ${word#apptainer:} ]] || fail "HYBRIDIFF_ENV: no image ${word#apptainer:}"
                    PREFIX=(apptainer exec --nv --bind "$(mounts)" --pwd "$PWD" "${word#apptainer:}") ;;
            pyxis:*) SRUN+=(--container-image="${word#pyxis:}" --container-mounts="$(mounts)" --container-workdir="$PWD") ;;
            *) fail "HYBRIDIFF_ENV has '$word'; allowed: venv:PATH module:NAME apptainer:IMAGE pyxis:IMAGE" ;;
        esac
    done
    SETUP=${HYBRIDIFF_ENV:-python in PATH}
}

# Loads a module; batch scripts may start without the command "module", and it reads variables that are not set.
load_module() {
    local file
    set +u
    for file in "${MODULESHOME:-}/init/bash" /etc/profile.d/lmod.sh /etc/profile.d/modules.sh; do
        # shellcheck source=/dev/null
        if ! type module >/dev/null 2>&1 && [[ -r $file ]]; then source "$file" || true; fi
    done
    module load "$1" || fail "HYBRIDIFF_ENV: no module $1"
    set -u
}

# What a container sees of the node, as "here:inside,here:inside".
mounts() {
    local word all="$PWD:$PWD"
    [[ $LOGS == "$PWD"/* ]] || all+=",$LOGS:$LOGS"
    for word in ${HYBRIDIFF_MOUNTS:-}; do
        [[ $word == *:* ]] && all+=",$word" || all+=",$word:$word"
    done
    echo "$all"
}

# What the job runs on, at the head of its log.
show_environment() {
    echo "=== job $(this_job), run $((${SLURM_RESTART_COUNT:-0} + 1)), $(date -Is)"
    echo "nodes:     $SLURM_JOB_NODELIST, $RANKS ranks each; logs of ranks: $LOGS"
    echo "python:    $SETUP; launcher $LAUNCHER; rendezvous $MASTER_ADDR:$MASTER_PORT"
    env | grep -E '^(NCCL|GLOO|CUDA|OMP|HF)_' | sed -E 's/(TOKEN|KEY|SECRET)([^=]*)=.*/\1\2=***/' | sort || true
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv,noheader || true
        nvidia-smi topo -m || true
    else
        echo "GPUs:      none (no nvidia-smi on $(hostname))"
    fi
    versions || echo "versions:  not known, $PYTHON did not answer"
}

# The versions that the ranks will see: with Pyxis those of the image, which only srun enters.
versions() {
    local inside=()
    [[ ${SRUN[*]} != *--container-image=* ]] || inside=(srun --nodes=1 --ntasks=1 --export=ALL "${SRUN[@]}")
    timeout 300 "${inside[@]}" "${PREFIX[@]}" "$PYTHON" -c '
import shutil
from importlib.metadata import PackageNotFoundError, version
def of(name):
    try: return version(name)
    except PackageNotFoundError: return "absent"
nccl = "unused"
if shutil.which("nvidia-smi"):
    import torch
    nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.cuda.is_available() else "unused, as torch finds no GPU"
print("versions: ", *(f"{name} {of(name)}" for name in ("hybridiff", "torch", "lightning", "diffusers")), "NCCL", nccl)
'
}

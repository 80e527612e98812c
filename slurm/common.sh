# shellcheck shell=bash
# What generate.sbatch and array.sbatch share; they read this file from the checkout that they are submitted in.
# Nothing here needs editing; bash 4.4 or newer reads it. Variables that it looks at, all with defaults:
#   HYBRIDIFF_ENV    how python is found, words apart by spaces (default: .venv of the checkout if there is one, else python):
#                    venv:/path  module:name/version  apptainer:/path.sif  pyxis:/path.sqsh
#   HYBRIDIFF_MOUNTS what containers see besides the checkout, words apart by spaces: /path or /path:/path/inside
#   RANKS_PER_NODE   default: one per GPU of --gpus-per-node, else --ntasks-per-node, else one per GPU there is, else 1
#   LAUNCHER         srun (recommended: one task per rank) or torchrun (one task per node)
#   MAX_REQUEUES     default 100
#   MAX_FRUITLESS    default 3: not requeued any more after so many runs in a row that have added nothing to the corpus

PYTHON=python
PREFIX=()   # goes before python inside a task
SRUN=()     # options of srun
SETUP=""    # what was activated, for the log

AGAIN=85      # generate.py: stopped by a signal with work left
KILLED=143    # SIGTERM before generate.py could handle it
UNHANDLED=138 # USR1 likewise
SHOWN=16      # logs of ranks, at the end of the job's
TELL_S=5      # between two warnings of the ranks
ASKED=12      # times that SLURM is asked while it does not answer
ASK_S=5       # between two of them

WARNED=""  # whether the time limit is near: the warning may come half a minute early, so at any moment from here on
TELLER=""  # what tells it to the ranks
trap 'WARNED=yes' USR1

fail() { echo "slurm: error: $*" >&2; exit 2; }

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

# How many ranks a node has: as many as GPUs were asked for, of which an exclusive job may get more.
ranks_per_node() {
    local ranks=${SLURM_GPUS_PER_NODE:-${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}}
    echo "${RANKS_PER_NODE:-${ranks##*:}}"  # 8 from a100:8
}

# A port on this node, the first of the job and rank 0's, that nothing listens on. It starts from the job's number, so that
# jobs on one node differ, and lies below the ports that Linux gives to outgoing connections.
free_port() {
    local port=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0}) % 10000))
    while (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    echo "$port"
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

# The job's number, for scontrol: in an array the plain number of its last task means the whole array.
this_job() { [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] && echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" || echo "$SLURM_JOB_ID"; }

# Calls a program of SLURM's, again for about a minute while it fails.
ask() {
    local left
    for ((left = ASKED; left > 0; left--)); do
        if "$@"; then return 0; fi
        ((left == 1)) || sleep "$ASK_S"
    done
    return 1
}

# Puts the job back into the queue, where the next run does what is left.
requeue() {
    local most=${MAX_REQUEUES:-100} fruitless=${MAX_FRUITLESS:-3} state
    if ! state=$(ask scontrol show job --oneliner "$(this_job)"); then
        echo "=== stopped; not requeued, as SLURM does not say whether it is cancelled: submit the same again, nothing is lost"
    elif [[ $state != *JobState=RUNNING* ]]; then
        echo "=== stopped; not requeued, as the job is cancelled or requeued already"
    elif ((${SLURM_RESTART_COUNT:-0} >= most)); then
        echo "=== stopped; not requeued, after $most times"
    elif (($(fruitless_runs) >= fruitless)); then
        echo "=== stopped; not requeued, as $fruitless runs in a row have added nothing: is the time too short for one shard?"
    else
        echo "=== stopped with work left; to be requeued, $(date -Is)"
        ask scontrol requeue "$(this_job)" || echo "=== SLURM does not requeue it: submit the same again, nothing is lost"
    fi
}

# How many runs in a row, this one included, have added nothing to the corpus, as far as the first rank has said.
fruitless_runs() {
    local file=${LOGS%/*}/fruitless before="-" count=0 left
    [[ ! -e $file ]] || read -r before count <"$file"
    left=$(find "$LOGS" -name '*-rank0.log' -exec sed -n 's/^shards left: *\([0-9]*\).*/\1/p' {} + | tail -n 1)
    if [[ -n $left && $left != "$before" ]]; then count=0; else count=$((count + 1)); fi
    echo "${left:-$before} $count" >"$file"
    echo "$count"
}

# Sets what the rest looks at. Call it first, in the directory of the checkout.
prepare() {
    ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "bash is $BASH_VERSION; allowed: 4.4 or newer"
    LOGS=$(realpath -m "${HYBRIDIFF_LOGS:-logs}/${SLURM_JOB_NAME}-$(this_job)/run$((${SLURM_RESTART_COUNT:-0} + 1))")
    mkdir -p "$LOGS"
    LAUNCHER=${LAUNCHER:-srun}
    [[ $LAUNCHER == srun || $LAUNCHER == torchrun ]] || fail "LAUNCHER is '$LAUNCHER'; allowed: srun, torchrun"
    activate
    RANKS=$(ranks_per_node)
    [[ $RANKS =~ ^[1-9][0-9]*$ ]] || fail "a node would have '$RANKS' ranks; allowed: RANKS_PER_NODE as a number from 1 on"
    read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST") || fail "scontrol knows no host of $SLURM_JOB_NODELIST"
    MASTER_PORT=$(free_port)
    export MASTER_ADDR MASTER_PORT LOGS LAUNCHER PYTHONUNBUFFERED=1 CUDA_DEVICE_ORDER=PCI_BUS_ID
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    show_environment
}

# Runs generate.py with the given arguments on all ranks of the job; sets CODE to srun's exit code.
run() {
    local tasks=$RANKS command=("${PREFIX[@]}" "$PYTHON" jobs/generate.py "$@")
    if [[ $LAUNCHER == torchrun ]]; then
        tasks=1
        command=("${PREFIX[@]}" "$PYTHON" -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$RANKS"
            --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
            --no-python bash slurm/rank.sh "$PYTHON" jobs/generate.py "$@")
    elif [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        SRUN+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")  # which srun does not inherit from sbatch any more
    fi
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * tasks))" --ntasks-per-node="$tasks" --export=ALL \
        --distribution=block --kill-on-bad-exit=1 --unbuffered "${SRUN[@]}" bash slurm/rank.sh "${command[@]}" &
    STEP=$!
    trap warn USR1
    [[ -z $WARNED ]] || warn
    while kill -0 "$STEP" 2>/dev/null; do wait "$STEP" || true; done  # a signal ends a wait, not the step
    wait "$STEP" && CODE=0 || CODE=$?
    trap "" USR1
}

# The warning before the time limit, which comes to this script (--signal=B:USR1): tells the ranks, and tells them again every
# few seconds while the step runs, as ranks that still import their libraries ignore it.
warn() {
    [[ -z $TELLER ]] || return 0
    echo "=== the time limit is near: the ranks are told to stop, $(date -Is)"
    while kill -0 "$STEP" 2>/dev/null; do
        scancel --signal=USR1 "$(this_job)" || true  # to the ranks, not to this script
        sleep "$TELL_S"
    done &
    TELLER=$!
}

# Whether srun could not start the ranks though the run before could: SLURM 22.05 may lose count of a requeued job's GPUs
# ("Invalid generic resource"), and finds them again when it is requeued once more.
never_started() {
    local before=${LOGS%/*}/run${SLURM_RESTART_COUNT:-0}
    [[ $CODE != 0 ]] && ! compgen -G "$LOGS/*.log" >/dev/null && compgen -G "$before/*.log" >/dev/null
}

# Shows how the ranks ended, requeues the job if there is work left, and ends with the job's exit code.
finish() {
    local codes logs file stopped="" first="" lines=4 ranks=$((SLURM_JOB_NUM_NODES * RANKS))
    mapfile -t codes < <(find "$LOGS" -name '*.code' -printf '%T@ %p\n' | sort -n | cut -d ' ' -f 2-)
    for file in "${codes[@]}"; do
        case $(<"$file") in
            0) ;;
            "$AGAIN" | "$KILLED" | "$UNHANDLED") stopped=yes ;;  # perhaps because of another rank's end
            *) first=${first:-$file} ;;
        esac
    done
    if [[ -n $first ]]; then
        CODE=$(<"$first")
    elif ((${#codes[@]} < ranks)); then  # srun knows why, or nobody
        ((CODE != 0)) || CODE=1
    elif [[ -n $stopped ]]; then
        CODE=$AGAIN
    fi
    [[ $CODE == 0 || $CODE == "$AGAIN" ]] || lines=25
    mapfile -t logs < <({ [[ -z $first ]] || echo "${first%.code}.log"
                          find "$LOGS" -name '*.log' -size +0 | sort -V; } | awk '!seen[$0]++')
    for file in "${logs[@]:0:SHOWN}"; do
        echo "--- $file"
        tail -n "$lines" "$file"
    done
    echo "=== exit code $CODE${first:+, of ${first##*/}}, $(date -Is)"
    if ((${#codes[@]} < ranks)); then echo "=== only ${#codes[@]} of $ranks ranks told how they ended"; fi
    if [[ $CODE == "$AGAIN" ]] || never_started; then requeue; fi
    exit "$CODE"
}

# shellcheck shell=bash
# What generate.sbatch and array.sbatch share; they read this file from the checkout that they are submitted in.
# Nothing here needs editing. Variables that it looks at, all with defaults:
#   HYBRIDIFF_ENV    how python is found, words apart by spaces (default: .venv of the checkout if there is one, else python):
#                    venv:/path  module:name/version  apptainer:/path.sif  pyxis:/path.sqsh
#   RANKS_PER_NODE   default: one per GPU of --gpus-per-node, else --ntasks-per-node, else one per GPU there is, else 1
#   LAUNCHER         srun (recommended: one task per rank) or torchrun (one task per node)
#   MAX_REQUEUES     default 100

PYTHON=python
PREFIX=()   # goes before python inside a task
SRUN=()     # options of srun
SETUP=""    # what was activated, for the log

AGAIN=85    # generate.py: stopped by a signal with work left
KILLED=143  # SIGTERM before generate.py could handle it
WARNED=138  # of wait, when USR1 comes
SHOWN=16    # logs of ranks, at the end of the job's
TELL_S=5    # between two warnings of the ranks

fail() { echo "slurm: error: $*" >&2; exit 2; }

# Finds python by HYBRIDIFF_ENV.
activate() {
    local word
    [[ -n ${HYBRIDIFF_ENV:-} || ! -x .venv/bin/python ]] || HYBRIDIFF_ENV="venv:$PWD/.venv"
    for word in ${HYBRIDIFF_ENV:-}; do
        case $word in
            venv:*) [[ -x ${word#venv:}/bin/python ]] || fail "HYBRIDIFF_ENV: no python in ${word#venv:}/bin"
                    PYTHON=${word#venv:}/bin/python; PATH=${word#venv:}/bin:$PATH ;;
            module:*) module load "${word#module:}" || fail "HYBRIDIFF_ENV: no module ${word#module:}" ;;
            apptainer:*) [[ -e ${word#apptainer:} ]] || fail "HYBRIDIFF_ENV: no image ${word#apptainer:}"
                    PREFIX=(apptainer exec --nv --bind "$PWD" --pwd "$PWD" "${word#apptainer:}") ;;
            pyxis:*) SRUN+=(--container-image="${word#pyxis:}" --container-mounts="$PWD:$PWD" --container-workdir="$PWD") ;;
            *) fail "HYBRIDIFF_ENV has '$word'; allowed: venv:PATH module:NAME apptainer:IMAGE pyxis:IMAGE" ;;
        esac
    done
    SETUP=${HYBRIDIFF_ENV:-python in PATH}
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
    echo "=== job ${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}, run $((${SLURM_RESTART_COUNT:-0} + 1)), $(date -Is)"
    echo "nodes:     $SLURM_JOB_NODELIST, $RANKS ranks each; logs of ranks: $LOGS"
    echo "python:    $SETUP; launcher ${LAUNCHER:-srun}; rendezvous $MASTER_ADDR:$MASTER_PORT"
    env | grep -E '^(NCCL|GLOO|CUDA|OMP|HF)_' | sed -E 's/(TOKEN|KEY|SECRET)([^=]*)=.*/\1\2=***/' | sort || true
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv,noheader || true
        nvidia-smi topo -m || true
    else
        echo "GPUs:      none (no nvidia-smi on $(hostname))"
    fi
    "${PREFIX[@]}" "$PYTHON" - <<'END' || true
from importlib.metadata import version, PackageNotFoundError
def of(name):
    try: return version(name)
    except PackageNotFoundError: return "absent"
print("versions: ", *(f"{name} {of(name)}" for name in ("hybridiff", "torch", "lightning", "diffusers", "nvidia-nccl-cu12")))
END
}

# The job's number, for scontrol: in an array the plain number of its last task means the whole array.
this_job() { [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] && echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" || echo "$SLURM_JOB_ID"; }

# Whether the job may go on: it is neither cancelled nor being requeued by somebody else.
still_ours() { scontrol show job --oneliner "$(this_job)" 2>/dev/null | grep -q 'JobState=RUNNING'; }

# Puts the job back into the queue, where the next run does what is left.
requeue() {
    if ! still_ours; then echo "=== stopped; not requeued, as the job is cancelled or requeued already"; return; fi
    if ((${SLURM_RESTART_COUNT:-0} >= ${MAX_REQUEUES:-100})); then echo "=== stopped; not requeued, after $MAX_REQUEUES times"; return; fi
    echo "=== stopped with work left; requeued, $(date -Is)"
    scontrol requeue "$(this_job)"
}

# Sets what the rest looks at. Call it first, in the directory of the checkout.
prepare() {
    [[ -f jobs/generate.py ]] || fail "no jobs/generate.py in $PWD; submit in the checkout, or with --chdir=CHECKOUT"
    activate
    RANKS=$(ranks_per_node)
    LOGS=${HYBRIDIFF_LOGS:-logs}/${SLURM_JOB_NAME}-$(this_job)/run$((${SLURM_RESTART_COUNT:-0} + 1))
    mkdir -p "$LOGS"
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$(free_port)
    export MASTER_ADDR MASTER_PORT LOGS PYTHONUNBUFFERED=1 CUDA_DEVICE_ORDER=PCI_BUS_ID OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    show_environment
}

# Runs generate.py with the given arguments on all ranks of the job; sets CODE to its exit code.
# The warning before the time limit comes to this script (--signal=B:USR1), which tells the ranks, and tells them again every
# few seconds, as ranks that still import their libraries ignore it.
run() {
    local step tasks=$RANKS command=("${PREFIX[@]}" "$PYTHON" jobs/generate.py "$@")
    if [[ ${LAUNCHER:-srun} == torchrun ]]; then
        tasks=1
        command=("${PREFIX[@]}" "$PYTHON" -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$RANKS"
            --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
            --no-python bash slurm/rank.sh "$PYTHON" jobs/generate.py "$@")
    fi
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * tasks))" --ntasks-per-node="$tasks" \
        --distribution=block --kill-on-bad-exit=1 --unbuffered "${SRUN[@]}" bash slurm/rank.sh "${command[@]}" &
    step=$!
    # shellcheck disable=SC2064  # the step of now
    trap "warn $step &" USR1
    CODE=$WARNED
    while [[ $CODE == "$WARNED" ]]; do  # the trap ends a wait, not the step
        wait "$step" && CODE=0 || CODE=$?
    done
    trap - USR1
}

# Tells the ranks that the time limit is near, for as long as the step runs.
warn() {
    echo "=== the time limit is near: the ranks are told to stop, $(date -Is)"
    while kill -0 "$1" 2>/dev/null; do
        scancel --signal=USR1 "$(this_job)" || true  # to the ranks, not to this script
        sleep "$TELL_S"
    done
}

# Whether srun could not start the ranks though the run before could: SLURM 22.05 may lose count of a requeued job's GPUs ("Invalid
# generic resource"), and finds them again when it is requeued once more.
never_started() {
    [[ $CODE != 0 ]] && ! compgen -G "$LOGS/*.log" >/dev/null && compgen -G "${LOGS%/*}/run${SLURM_RESTART_COUNT:-0}/*.log" >/dev/null
}

# Shows how the ranks ended, requeues the job if there is work left, and ends with the exit code of the rank that failed first:
# what came after it, such as SLURM's SIGTERM to the others, is a consequence.
finish() {
    local log lines=4 first
    first=$(find "$LOGS" -name '*.code' -printf '%T@ %p\n' | sort -n | head -n 1 | cut -d ' ' -f 2-)
    if [[ $CODE != 0 && -n $first ]]; then CODE=$(<"$first"); fi
    [[ $CODE == 0 || $CODE == "$AGAIN" ]] || lines=25
    find "$LOGS" -name '*.log' -size +0 | sort -V | head -n "$SHOWN" | while read -r log; do
        echo "--- $log"
        tail -n "$lines" "$log"
    done
    echo "=== exit code $CODE${first:+, first of ${first##*/}}, $(date -Is)"
    if [[ $CODE == "$AGAIN" || $CODE == "$KILLED" ]] || never_started; then requeue; fi
    exit "$CODE"
}

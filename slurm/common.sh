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

# shellcheck source=slurm/environment.sh
source slurm/environment.sh
# shellcheck source=slurm/ending.sh
source slurm/ending.sh

TELL_S=5   # between two warnings of the ranks

WARNED=""  # whether the time limit is near: the warning may come half a minute early, so at any moment from here on
TELLER=""  # what tells it to the ranks
trap 'WARNED=yes' USR1

fail() { echo "slurm: error: $*" >&2; exit 2; }

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

# The job's number, for scontrol: in an array the plain number of its last task means the whole array.
this_job() { [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] && echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" || echo "$SLURM_JOB_ID"; }

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

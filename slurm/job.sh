# shellcheck shell=bash
# What a batch script does: finds python, starts the ranks, warns them before the time limit, requeues the job.
# generate.sbatch and array.sbatch, which define "fail", read this file. Nothing here needs editing; it needs bash 4.4 or newer.
# Variables, all with defaults:
#   HYBRIDIFF_ENV    how python is found, words separated by spaces (default: .venv of the working directory if there is one,
#                    else python): venv:/path  module:name/version  apptainer:/path.sif  pyxis:/path.sqsh
#   HYBRIDIFF_MOUNTS what containers see besides the working directory, words separated by spaces: /path or /path:/path/inside
#   HYBRIDIFF_SLURM  the folder of this file (default: slurm/ of the directory in which sbatch was called)
#   HYBRIDIFF_LOGS   the folder of the ranks' logs (default: logs)
#   RANKS_PER_NODE   default: one per GPU of --gpus-per-node, else --ntasks-per-node, else one per GPU of the node, else 1
#   LAUNCHER         srun (recommended: one task per rank) or torchrun (one task per node)
#   MAX_REQUEUES     default 100
#   MAX_FRUITLESS    default 3: no requeue after so many runs in a row that added nothing to the corpus

RESUME=85         # exit code of "hybridiff generate": stopped by a signal with work left
TROUBLE=1         # its exit code after an error, such as storage that was away; a mistake in what was given is another code
KILLED=143        # SIGTERM before it could be handled
UNHANDLED=138     # SIGUSR1 before it could be handled
WARN_EVERY_S=5    # between two warnings of the ranks
SLURM_TRIES=12    # calls of SLURM's programs while they fail
SLURM_RETRY_S=5   # between two of them
SHOWN_LOGS=16     # ranks whose last lines the job's log shows

PYTHON=python
CONTAINER=()      # comes before python inside a task
SRUN_OPTIONS=()
WARNED=""         # whether the time limit is near: SLURM may warn half a minute early, so perhaps before the ranks are started
WARNER=""         # the process that repeats the warning
trap 'WARNED=yes' USR1

# The job's number for scontrol: in an array the plain number of its last task would mean the whole array.
this_job() { [[ -n ${SLURM_ARRAY_TASK_ID:-} ]] && echo "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID" || echo "$SLURM_JOB_ID"; }

# ---------------------------------------------------------------- start

# Sets what the other functions read. Call it first, in the working directory of the job.
prepare() {
    ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "bash is $BASH_VERSION; allowed: 4.4 or newer"
    LOGS=$(realpath -m "${HYBRIDIFF_LOGS:-logs}/${SLURM_JOB_NAME}-$(this_job)/run$((${SLURM_RESTART_COUNT:-0} + 1))")
    mkdir -p "$LOGS"
    LAUNCHER=${LAUNCHER:-srun}
    [[ $LAUNCHER == srun || $LAUNCHER == torchrun ]] || fail "LAUNCHER is '$LAUNCHER'; allowed: srun, torchrun"
    find_python
    RANKS=$(ranks_per_node)
    [[ $RANKS =~ ^[1-9][0-9]*$ ]] || fail "a node would have '$RANKS' ranks; allowed: RANKS_PER_NODE as a number from 1 on"
    read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST") || fail "scontrol knows no host of $SLURM_JOB_NODELIST"
    MASTER_PORT=$(free_port)
    export MASTER_ADDR MASTER_PORT LOGS LAUNCHER PYTHONUNBUFFERED=1 CUDA_DEVICE_ORDER=PCI_BUS_ID
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    log_environment
}

# Finds python as HYBRIDIFF_ENV says.
find_python() {
    local word
    [[ -n ${HYBRIDIFF_ENV:-} || ! -x .venv/bin/python ]] || HYBRIDIFF_ENV="venv:$PWD/.venv"
    for word in ${HYBRIDIFF_ENV:-}; do
        case $word in
            venv:*) [[ -x ${word#venv:}/bin/python ]] || fail "HYBRIDIFF_ENV: no python in ${word#venv:}/bin"
                    PYTHON=${word#venv:}/bin/python; PATH=${word#venv:}/bin:$PATH ;;
            module:*) load_module "${word#module:}" ;;
            apptainer:*) [[ -e ${word#apptainer:} ]] || fail "HYBRIDIFF_ENV: no image ${word#apptainer:}"
                    CONTAINER=(apptainer exec --nv --bind "$(mounts)" --pwd "$PWD" "${word#apptainer:}") ;;
            pyxis:*) SRUN_OPTIONS+=(--container-image="${word#pyxis:}" --container-mounts="$(mounts)")
                    SRUN_OPTIONS+=(--container-workdir="$PWD") ;;
            *) fail "HYBRIDIFF_ENV has '$word'; allowed: venv:PATH module:NAME apptainer:IMAGE pyxis:IMAGE" ;;
        esac
    done
}

# Loads a module. Batch scripts may start without the command "module", and it reads variables that are not set.
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
    for word in "$HYBRIDIFF_SLURM" "$LOGS"; do [[ $word == "$PWD"/* ]] || all+=",$word:$word"; done
    for word in ${HYBRIDIFF_MOUNTS:-}; do [[ $word == *:* ]] && all+=",$word" || all+=",$word:$word"; done
    echo "$all"
}

# Ranks of a node: as many as GPUs were asked for, of which an exclusive job may get more.
ranks_per_node() {
    local ranks=${SLURM_GPUS_PER_NODE:-0}
    ranks=${ranks##*:}  # 8 from a100:8
    [[ $ranks != 0 ]] || ranks=${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
    echo "${RANKS_PER_NODE:-$ranks}"
}

# A port on this node, the first of the job and that of rank 0, on which nothing listens. It starts from the job's number and run,
# so that jobs on one node differ, also after restarts, and is below the ports that Linux gives to outgoing connections.
free_port() {
    local port=$((20000 + (SLURM_JOB_ID * 7 + ${SLURM_RESTART_COUNT:-0} * 1009) % 10000))
    while (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    echo "$port"
}

# Begins the job's log with what it runs on.
log_environment() {
    echo "=== job $(this_job), run $((${SLURM_RESTART_COUNT:-0} + 1)), $(date -Is)"
    echo "nodes:     $SLURM_JOB_NODELIST, $RANKS ranks each; logs of ranks: $LOGS"
    echo "python:    ${HYBRIDIFF_ENV:-python in PATH}; launcher $LAUNCHER; rendezvous $MASTER_ADDR:$MASTER_PORT"
    env | grep -E '^(NCCL|GLOO|CUDA|OMP|HF)_' | sed -E 's/(TOKEN|KEY|SECRET)([^=]*)=.*/\1\2=***/' | sort || true
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=index,name,memory.total,driver_version --format=csv,noheader || true
        nvidia-smi topo -m || true
    else
        echo "GPUs:      none (no nvidia-smi on $(hostname))"
    fi
    log_versions || echo "versions:  unknown, $PYTHON did not answer"
}

# The versions that the ranks will see: with Pyxis those of the image, which only srun enters.
log_versions() {
    local inside=()
    [[ ${SRUN_OPTIONS[*]} != *--container-image=* ]] || inside=(srun --nodes=1 --ntasks=1 --export=ALL "${SRUN_OPTIONS[@]}")
    timeout 300 "${inside[@]}" "${CONTAINER[@]}" "$PYTHON" -c '
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

# ---------------------------------------------------------------- run

# Runs "hybridiff generate" with the given arguments on all ranks of the job; sets CODE to srun's exit code.
run() {
    local tasks=$RANKS rank=(bash "$HYBRIDIFF_SLURM/rank.sh") generate=("$PYTHON" -m hybridiff generate "$@")
    local command=("${CONTAINER[@]}" "${generate[@]}")
    if [[ $LAUNCHER == torchrun ]]; then
        tasks=1
        command=("${CONTAINER[@]}" "$PYTHON" -m torch.distributed.run --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$RANKS"
            --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"
            --no-python "${rank[@]}" "${generate[@]}")
    elif [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
        SRUN_OPTIONS+=(--cpus-per-task="$SLURM_CPUS_PER_TASK")  # which srun does not inherit from sbatch any more
    fi
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * tasks))" --ntasks-per-node="$tasks" --export=ALL \
        --distribution=block --kill-on-bad-exit=1 --unbuffered "${SRUN_OPTIONS[@]}" "${rank[@]}" "${command[@]}" &
    STEP=$!
    trap warn USR1
    [[ -z $WARNED ]] || warn
    while kill -0 "$STEP" 2>/dev/null; do wait "$STEP" || true; done  # a signal ends a wait, not the step
    wait "$STEP" && CODE=0 || CODE=$?
    trap "" USR1
}

# Passes the warning before the time limit, which comes to this script (--signal=B:USR1), on to the ranks; again every few
# seconds while the step runs, as ranks that still import their libraries ignore it.
warn() {
    [[ -z $WARNER ]] || return 0
    echo "=== the time limit is near: the ranks are asked to stop, $(date -Is)"
    while kill -0 "$STEP" 2>/dev/null; do
        scancel --signal=USR1 "$(this_job)" || true  # to the ranks, not to this script
        sleep "$WARN_EVERY_S"
    done &
    WARNER=$!
}

# ---------------------------------------------------------------- end

# Shows how the ranks ended, requeues the job if there is work left, and ends with the job's exit code: that of the rank that
# failed first, RESUME if ranks were stopped, srun's if some left no exit code. An error that a rank reports (TROUBLE) may be gone
# in the next run; one that stays, as damage does, stops being requeued after MAX_FRUITLESS runs that added nothing.
finish() {
    local codes logs file stopped="" first="" lines=4 ranks=$((SLURM_JOB_NUM_NODES * RANKS))
    mapfile -t codes < <(find "$LOGS" -name '*.code' -printf '%T@ %p\n' | sort -n | cut -d ' ' -f 2-)
    for file in "${codes[@]}"; do
        case $(<"$file") in
            0) ;;
            "$RESUME" | "$KILLED" | "$UNHANDLED") stopped=yes ;;  # perhaps because another rank ended
            *) first=${first:-$file} ;;
        esac
    done
    if [[ -n $first ]]; then
        CODE=$(<"$first")
    elif ((${#codes[@]} < ranks)); then  # srun may know why
        ((CODE != 0)) || CODE=1
    elif [[ -n $stopped ]]; then
        CODE=$RESUME
    fi
    [[ $CODE == 0 || $CODE == "$RESUME" ]] || lines=25
    mapfile -t logs < <({ [[ -z $first ]] || echo "${first%.code}.log"
                          find "$LOGS" -name '*.log' -size +0 | sort -V; } | awk '!seen[$0]++')
    for file in "${logs[@]:0:SHOWN_LOGS}"; do
        echo "--- $file"
        tail -n "$lines" "$file"
    done
    echo "=== exit code $CODE${first:+, of ${first##*/}}, $(date -Is)"
    if ((${#codes[@]} < ranks)); then echo "=== only ${#codes[@]} of $ranks ranks left an exit code"; fi
    if [[ $CODE == "$RESUME" || $CODE == "$TROUBLE" && -n $first ]] || could_not_start; then requeue; fi
    exit "$CODE"
}

# Whether srun could not start the ranks though the previous run could: SLURM 22.05 may lose count of a requeued job's GPUs
# ("Invalid generic resource"), and finds them again when it is requeued once more.
could_not_start() {
    local before=${LOGS%/*}/run${SLURM_RESTART_COUNT:-0}
    [[ $CODE != 0 ]] && ! compgen -G "$LOGS/*.log" >/dev/null && compgen -G "$before/*.log" >/dev/null
}

# Puts the job back into the queue; the next run does what is left.
requeue() {
    local most=${MAX_REQUEUES:-100} fruitless=${MAX_FRUITLESS:-3} state hint=""
    [[ $CODE != "$RESUME" ]] || hint=": is the time too short for one shard?"
    if ! state=$(with_retries scontrol show job --oneliner "$(this_job)"); then
        echo "=== stopped; not requeued, as SLURM does not say whether it is cancelled: submit the same again, nothing is lost"
    elif [[ $state != *JobState=RUNNING* ]]; then
        echo "=== stopped; not requeued, as the job is cancelled or requeued already"
    elif ((${SLURM_RESTART_COUNT:-0} >= most)); then
        echo "=== stopped; not requeued, after $most times"
    elif (($(count_fruitless_runs) >= fruitless)); then
        echo "=== stopped; not requeued, as $fruitless runs in a row added nothing$hint"
    else
        echo "=== stopped with work left; to be requeued, $(date -Is)"
        with_retries scontrol requeue "$(this_job)" ||
            echo "=== SLURM does not requeue it: submit the same again, nothing is lost"
    fi
}

# Calls a program of SLURM's, again for about a minute while it fails.
with_retries() {
    local left
    for ((left = SLURM_TRIES; left > 0; left--)); do
        if "$@"; then return 0; fi
        ((left == 1)) || sleep "$SLURM_RETRY_S"
    done
    return 1
}

# How many runs in a row, this one included, have added nothing to the corpus, as far as the first rank reports it.
count_fruitless_runs() {
    local file=${LOGS%/*}/fruitless before="-" count=0 left
    [[ ! -e $file ]] || read -r before count <"$file"
    left=$(find "$LOGS" -name '*-rank0.log' -exec sed -n 's/^shards left: *\([0-9]*\).*/\1/p' {} + | tail -n 1)
    if [[ -n $left && $left != "$before" ]]; then count=0; else count=$((count + 1)); fi
    echo "${left:-$before} $count" >"$file"
    echo "$count"
}

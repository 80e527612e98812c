# shellcheck shell=bash
# How a job ends: with which exit code, and whether it comes again; read by slurm/common.sh.

AGAIN=85      # generate.py: stopped by a signal with work left
KILLED=143    # SIGTERM before generate.py could handle it
UNHANDLED=138 # USR1 likewise
SHOWN=16      # logs of ranks, at the end of the job's
ASKED=12      # times that SLURM is asked while it does not answer
ASK_S=5       # between two of them

# Shows how the ranks ended, requeues the job if there is work left, and ends with the job's exit code.
# shellcheck disable=SC2153  # common.sh sets RANKS and LOGS
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

# Whether srun could not start the ranks though the run before could: SLURM 22.05 may lose count of a requeued job's GPUs
# ("Invalid generic resource"), and finds them again when it is requeued once more.
never_started() {
    local before=${LOGS%/*}/run${SLURM_RESTART_COUNT:-0}
    [[ $CODE != 0 ]] && ! compgen -G "$LOGS/*.log" >/dev/null && compgen -G "$before/*.log" >/dev/null
}

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

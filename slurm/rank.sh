#!/usr/bin/env bash
# What a task runs: a command, with its output in a log of its own and its exit code in a file, as srun tells only the largest
# of all and torchrun none. Ranks of torchrun pass through here a second time.
set -euo pipefail

name=node$SLURM_NODEID-rank$SLURM_PROCID
[[ -z ${TORCHELASTIC_RUN_ID:-} ]] || name=node$GROUP_RANK-local$LOCAL_RANK-rank$RANK
exec >>"$LOGS/$name.log" 2>&1

trap : TERM INT  # they come to the command too, whose exit code is waited for
trap "" USR1     # until generate.py handles it: by default it kills
(trap - TERM INT; exec "$@") && code=0 || code=$?
if ((code)); then echo "$code" >"$LOGS/$name.code"; fi
exit "$code"

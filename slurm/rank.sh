#!/usr/bin/env bash
# What a task runs: a command, with its output in a log of its own. Ranks of torchrun pass through here a second time.
set -euo pipefail
trap "" USR1  # until generate.py handles it: by default it kills

if [[ -z ${TORCHELASTIC_RUN_ID:-} ]]; then
    exec >>"$LOGS/node$SLURM_NODEID-rank$SLURM_PROCID.log" 2>&1
    exec "$@"
fi
exec >>"$LOGS/node$GROUP_RANK-local$LOCAL_RANK-rank$RANK.log" 2>&1
trap : TERM INT  # they come to the whole process group; the command's exit code is wanted, which torchrun does not pass on
"$@" && code=0 || code=$?
if [[ $code == "$AGAIN" ]]; then : >"$LOGS/again"; fi
exit "$code"

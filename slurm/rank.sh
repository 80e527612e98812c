#!/usr/bin/env bash
# What a task of srun runs: a command with its output in a log of its own and its exit code in a file; signals are passed on.
#
# Most clusters signal only what SLURM itself has started, which is this script. On others a rank gets a signal twice, of which
# the second does nothing; but a second SIGINT would stop it at once, so SIGINT is passed on as SIGTERM.
# Ranks of torchrun run this script too. torchrun would not pass USR1 on, and kills them 30 s after SIGTERM: they leave their
# process ids to the script that has started torchrun, which signals them itself.
set -euo pipefail

RESUME=85  # exit code of "hybridiff generate": stopped by a signal with work left

if [[ -n ${TORCHELASTIC_RUN_ID:-} ]]; then
    name=node$SLURM_NODEID-local$LOCAL_RANK-rank$RANK
elif [[ ${LAUNCHER:-} == torchrun ]]; then
    name=node$SLURM_NODEID-torchrun
else
    name=node$SLURM_NODEID-rank$SLURM_PROCID
fi
exec >>"$LOGS/$name.log" 2>&1

child=""
early=""  # a signal that came before there was a process to pass it on to
pass_on() {
    local ranks=()
    [[ -n $child ]] || { early=$1; return; }
    [[ $name != *-torchrun ]] || mapfile -t ranks < <(cat "$LOGS/node$SLURM_NODEID"-local*.pid 2>/dev/null)
    kill -s "$1" "${ranks[@]:-$child}" 2>/dev/null || true
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM INT

(trap "" USR1; exec "$@") &  # ignored until "hybridiff generate" handles it: by default it kills
child=$!
[[ -z $early ]] || pass_on "$early"
[[ $name != *-local* ]] || echo "$child" >"$LOGS/$name.pid"

while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done  # a signal ends a wait, not the command
wait "$child" && code=0 || code=$?
rm -f "$LOGS/$name.pid"
[[ $name == *-torchrun ]] || echo "$code" >"$LOGS/$name.code"
# The file says that there is work left. Any code but 0 would make srun kill the other groups in the middle of their shards.
[[ $code != "$RESUME" ]] || exit 0
exit "$code"

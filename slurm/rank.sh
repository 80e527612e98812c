#!/usr/bin/env bash
# What a task runs: a command, with its output in a log of its own, its exit code in a file, and the signals of the job passed on.
#
# Most clusters signal only what SLURM has started itself, this script. On others a rank gets a signal twice, of which the second
# does nothing; but a second SIGINT would stop it at once, so SIGINT is passed on as SIGTERM.
# Ranks of torchrun pass through here a second time. It would not pass USR1 on, and kill them 30 s after SIGTERM: they leave
# their process ids to the script that has started torchrun, which signals them itself.
set -euo pipefail

AGAIN=85  # generate.py: stopped by a signal with work left

if [[ -n ${TORCHELASTIC_RUN_ID:-} ]]; then
    name=node$SLURM_NODEID-local$LOCAL_RANK-rank$RANK
elif [[ ${LAUNCHER:-} == torchrun ]]; then
    name=node$SLURM_NODEID-torchrun
else
    name=node$SLURM_NODEID-rank$SLURM_PROCID
fi
exec >>"$LOGS/$name.log" 2>&1

child=""
early=""  # a signal that came before there was anything to pass it on to
pass() {
    local told=()
    [[ -n $child ]] || { early=$1; return; }
    [[ $name != *-torchrun ]] || mapfile -t told < <(cat "$LOGS/node$SLURM_NODEID"-local*.pid 2>/dev/null)
    kill -s "$1" "${told[@]:-$child}" 2>/dev/null || true
}
trap 'pass USR1' USR1
trap 'pass TERM' TERM INT

(trap "" USR1; exec "$@") &  # ignored until generate.py handles it: by default it kills
child=$!
[[ -z $early ]] || pass "$early"
[[ $name != *-local* ]] || echo "$child" >"$LOGS/$name.pid"

while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done  # a signal ends a wait, not the command
wait "$child" && code=0 || code=$?
rm -f "$LOGS/$name.pid"
[[ $name == *-torchrun ]] || echo "$code" >"$LOGS/$name.code"
# The file says that there is work left. Any code but 0 would have the other groups killed in the middle of theirs.
[[ $code != "$AGAIN" ]] || exit 0
exit "$code"

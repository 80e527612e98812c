"""Exit codes of the commands, as launchers and the shipped batch scripts read them."""

DONE = 0
NOT_DONE = 1  # an error, or shards that are left
MISTAKE = 2  # in what was given
TOO_MANY_FAILED = 3
NOT_MET = 4  # evaluate: a requirement
AGAIN = 85  # stopped by a signal with work left: run it again
INTERRUPTED = 130

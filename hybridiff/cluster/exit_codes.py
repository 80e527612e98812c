"""What a job's exit code says to people, to launchers and to the shipped batch scripts."""

DONE = 0
NOT_DONE = 1  # an error, or shards that are left
MISTAKE = 2  # in what was given
TOO_MANY_FAILED = 3
AGAIN = 85  # stopped by a signal: run it again
INTERRUPTED = 130

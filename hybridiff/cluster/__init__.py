"""CLUSTER: where a job runs. How it was started, on which GPUs, what is in SLURM's queue, and how a job is asked to end."""

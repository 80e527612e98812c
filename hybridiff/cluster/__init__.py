"""CLUSTER: where a job runs. How it was started, on which GPUs, what SLURM has in its queue, and how a job is asked to end."""

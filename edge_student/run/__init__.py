"""One `train` run: setup, worker process, supervision, checkpoints, result files."""

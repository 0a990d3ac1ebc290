"""One `train` run: setup, worker process, supervision, checkpoints and result files."""

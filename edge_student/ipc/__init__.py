"""Communication between the trainer and its comm worker: shared ring, messages, and exit with the parent. Never loads torch."""

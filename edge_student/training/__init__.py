"""The training step: loss, optimizer, yield points within a step, and rollback of an unfinished step."""

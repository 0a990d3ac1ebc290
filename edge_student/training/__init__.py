"""The training step: loss, optimiser, yield points within a step, rollback of an unfinished step."""

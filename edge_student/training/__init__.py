"""The training step: loss, optimiser, yield points inside a step, rollback of an unfinished one."""

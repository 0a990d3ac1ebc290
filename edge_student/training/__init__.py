"""The training step: loss, optimizer and rollback of an unfinished step."""

"""The command `compare`: runs every policy on the same work, and predicts the times with the scheduling model."""

"""The command `compare`: every policy on the same work, and the prediction of the model."""

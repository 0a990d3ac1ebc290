"""Implement the command `compare`: run every policy on the same work and add the model's prediction."""

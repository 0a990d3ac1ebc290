"""Implement the command `doctor`: one module per subject reads, checks and recommends. Torch is never imported."""

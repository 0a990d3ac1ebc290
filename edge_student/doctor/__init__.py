"""The command `doctor`: one module per subject; each reads, judges and suggests. Never torch."""

"""The command `calibrate`: the rates of every mode, written as a device profile."""

"""The command `calibrate`: measures the rates of every mode and writes them as a device profile."""

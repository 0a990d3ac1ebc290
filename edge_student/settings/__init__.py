"""Settings of the edge commands: flags, defaults, units and validation. Never loads torch."""

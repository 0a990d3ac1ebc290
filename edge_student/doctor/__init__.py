"""The command `doctor`. Each module checks one subject and suggests remedies. Never loads torch."""

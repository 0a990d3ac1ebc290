"""Command-line code that the programs share: flags, TOML files, logs, progress, exit statuses, TLS files. Never loads torch."""

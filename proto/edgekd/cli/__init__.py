"""Command-line support of all programs: flags, TOML files, logs, exit statuses, TLS files."""

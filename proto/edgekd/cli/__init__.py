"""What the command lines of the programs share: flags, TOML files, logs, exit statuses, TLS files."""

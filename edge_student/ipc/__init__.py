"""Interprocess communication of trainer and comm worker: ring, messages, exit with the parent. Never torch."""

"""Compute workers: processes of one thread that each compute one shard of every batch."""

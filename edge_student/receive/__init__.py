"""The comm worker: receives logits from a teacher or a cache, verifies them and writes them into the ring. Never loads torch."""

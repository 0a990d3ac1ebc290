"""The comm worker: takes logits from the wire or the cache, verifies them and writes them into the ring. Never torch."""

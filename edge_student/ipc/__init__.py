"""What the trainer and its comm worker share: the ring, the messages, the end with the parent. Never torch."""

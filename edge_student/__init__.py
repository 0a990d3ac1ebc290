"""The edge side: trains a student on private data while it receives a teacher's logits."""

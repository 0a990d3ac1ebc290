"""The edge side: a student that trains on private data while it receives the logits of a teacher."""

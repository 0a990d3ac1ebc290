"""Uses a trained student: evaluates it, predicts with it, and exports it."""

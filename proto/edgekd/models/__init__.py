"""Models by name, their weights, cards, inputs, classes and devices. May load torch."""

"""Fair measurement: a local teacher, interleaved repeats, confidence intervals."""

"""State, cost functions, scenario, exact optimum, fit. Pure: no clock, no thread, no I/O."""

"""Run state, cost functions, scenarios, the exact optimum and the fit. Pure: no clock, no thread, no I/O."""

"""The scheduling model: state, cost functions, scenario, exact optimum and fit. Uses no clock, threads or I/O."""

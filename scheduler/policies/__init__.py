"""The policies, their registry, and the view of the state that a policy receives. Uses no clock, threads or I/O."""

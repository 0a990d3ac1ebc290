"""The policies, their registry, and the view of a run that a policy gets. Pure: no clock, no thread, no I/O."""

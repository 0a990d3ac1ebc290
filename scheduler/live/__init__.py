"""Threads, masks and clocks: the only folder of the scheduler that calls the kernel."""

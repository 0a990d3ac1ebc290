"""Sets the cores and scheduling classes of real threads. The only folder of the scheduler that calls the kernel."""

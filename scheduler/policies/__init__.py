"""The policies, their registry, and the view that a policy gets. Pure."""

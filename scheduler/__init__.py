"""Decides which cores communicate and which compute, and applies these decisions to threads."""

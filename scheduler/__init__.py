"""Which cores communicate and which compute: decisions as data, and the one door to the kernel that carries them out."""

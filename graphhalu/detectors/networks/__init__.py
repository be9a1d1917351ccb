"""Graph networks, usable without Lightning."""

"""The command line; commands hold no logic."""

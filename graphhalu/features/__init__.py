"""Features: pure functions on the arrays of a trace."""

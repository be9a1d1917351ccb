"""Language models: cards of known aliases, loading, self-check."""

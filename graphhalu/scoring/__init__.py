"""From a trained detector to a probability for one answer: the model, its prompt, its verdict."""

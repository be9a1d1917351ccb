"""Labels: rules that decide whether an answer is hallucinated."""

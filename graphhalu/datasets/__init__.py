"""Data sets: questions in their published layouts, and the prompts made of them."""

"""Inter-head instability: do the heads of a layer disagree on the system prompt under attack?

``measure.gather`` measures prompts step by step into a folder (:mod:`.series`).
``calibrate.calibrate`` chooses decode window, layers and thresholds in nested folds, beside
baselines such as Attention Tracker (:mod:`.methods`), and writes one file that
``measure.PromptDetector`` scores prompts with.
Label 1 is an attack here, and a score is higher where an attack is more likely.
"""

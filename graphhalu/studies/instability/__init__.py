"""Inter-head instability: do the heads of a layer disagree on the system prompt under attack?

``gather`` measures prompts step by step (:mod:`.gather`, :mod:`.measure`) into a folder of series
(:mod:`.series`). ``calibrate`` chooses decode window, layers and thresholds inside nested folds
(:mod:`.windows`, :mod:`.methods`, :mod:`.calibrate`), beside length, perplexity, entropy and
Attention Tracker (:mod:`.tracker`), and saves one file (:mod:`.calibration`) that ``detect``
(:mod:`.detect`) loads. Label 1 is an attack here, and a score is higher where an attack is more
likely.
"""

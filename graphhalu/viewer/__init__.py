"""A page on which the answers of a store are looked at: tokens, heads and attention graphs.

``text`` says what the text is, ``maps`` and ``scores`` what is known of an answer, ``heads`` packs the
attention of a layer, ``view`` puts them together, ``page`` writes one self-contained file, and
``serve`` answers a browser on this machine.
"""

"""Static analysis of a model's weights, without running it.

``read.open_weights(name)`` opens an alias, a folder of safetensors, a GGUF file or a hub model and
reads one tensor at a time; the storage type of every tensor is known. ``profile.profile_model``
computes norms, spectra, and the QK and OV circuits of every head, and ``risk.risk_curve`` sums
named components by layer. All of it is a hypothesis until ``graphhalu weights validate`` has held
it against the running model: see ``graphhalu.studies.weights``.

Nothing here imports torch or transformers: a profile needs little memory.
"""

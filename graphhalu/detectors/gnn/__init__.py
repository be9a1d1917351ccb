"""Graph networks: plain PyG modules, one Lightning task, and the detectors that train them."""

"""The benchmark: the usual PyTorch loop and ours, in turns (`speeds`)."""

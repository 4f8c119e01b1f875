"""Sampling: from a trained model to clips, one call or many thousands of files. All that a new sampler touches is here and in `proav/diffusion`."""

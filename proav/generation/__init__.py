"""Sampling: from a trained model to clips, for one call or for many thousands of files.

A new sampler changes only this folder and `proav/diffusion`.
"""

"""Sampling: from a trained model to clips, for one call or for many thousands of files.

To add a sampler, change only this folder and `proav/diffusion`.
"""

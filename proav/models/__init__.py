"""The networks of ProAV-DiT in plain PyTorch: the autoencoder MDSA, the diffusion transformer ST-DiT, discriminators and the perceptual distance.

Reading order: layers (one block), planes (a volume becomes three planes and back), fusion (the paper's attention modules), streams, mdsa.
"""

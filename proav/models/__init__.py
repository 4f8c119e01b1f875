"""The networks of ProAV-DiT in plain PyTorch: MDSA, ST-DiT, discriminators and the perceptual distance.

Reading order: layers (one block), mdsa/planes (a volume becomes three planes and back), mdsa/fusion (the
paper's attention modules), mdsa/streams, mdsa/autoencoder, stdit/transformer.
"""

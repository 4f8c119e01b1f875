"""Evaluation on Ray: sets of clips, their stored measurements, and the numbers computed from them.

The mathematics is in proav/metrics.
"""

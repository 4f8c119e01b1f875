"""Evaluation on Ray: sets of clips, measured in units that are kept, and the numbers that follow from them. The mathematics is in proav/metrics."""

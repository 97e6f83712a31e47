"""Saving, loading and sharing models: checkpoints, model cards, the hub, weights of earlier tools."""

"""Explain a fitted model: what is computed, and written into the folder of its run."""

from deepSTRF.report.explain.run import choose_neurons, explain_run

__all__ = ["choose_neurons", "explain_run"]

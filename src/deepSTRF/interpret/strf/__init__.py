"""Receptive fields as numbers: tuning, Gabor fits, modulation, confidence bands, fields in the waveform."""

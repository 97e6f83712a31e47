"""Analysis of a fitted model: tuning, sounds, confidence bands, dynamic STRFs and probe sounds."""

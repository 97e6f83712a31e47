"""One self-contained HTML page about a fit, for a colleague who was not there."""

"""Evaluates Python for processes of a BEAM cluster."""

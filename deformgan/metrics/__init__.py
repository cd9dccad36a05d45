"""Figures of merit, one family a file."""

"""Draws objects over a picture."""

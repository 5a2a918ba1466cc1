"""Measuring a model: the figures that the DALL-E 2 paper shows of itself, as one report."""

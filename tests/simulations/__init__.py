"""Simulated rollouts: how often the analysis of this product errs, and how soon it sees harm."""

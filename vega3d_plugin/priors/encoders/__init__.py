"""Baselines that generate nothing: encoders, and a VAE alone."""

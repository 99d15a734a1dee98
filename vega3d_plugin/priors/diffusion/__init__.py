"""Priors that add noise and run a denoiser once."""

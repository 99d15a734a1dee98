"""The other video and image generators."""

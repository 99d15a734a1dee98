"""What is added to a host: alignment, projector, fusers, history, handle, switches."""

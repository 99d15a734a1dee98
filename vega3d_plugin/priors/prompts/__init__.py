"""The empty prompt as tensors."""

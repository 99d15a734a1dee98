"""Rows of data: files, conversations, pictures and videos, tensors."""

"""A small synthetic room with exact geometry, questions about it, and the pictures and videos a demonstration needs."""

"""For servers that do not run a host's own forward: fused tokens in files, and the requests that they make."""

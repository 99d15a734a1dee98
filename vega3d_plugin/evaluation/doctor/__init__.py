"""Does the branch work on this host, in this environment?"""

"""What is known of every prior before it is loaded: one file per family. Imports no torch."""

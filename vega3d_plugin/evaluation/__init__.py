"""Does it work, does it help: answers, ablation, harness host, lmms-eval, doctor, demo, metrics."""

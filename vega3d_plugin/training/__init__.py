"""Training of a transformers host by a recipe: the data, the plan, HF Trainer and TRL's, and what is saved."""

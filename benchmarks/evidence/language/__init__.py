"""Does a prior help a language model answer where things are? A small host, questions from rendered rooms, arms."""

"""What a branch is added to: hooks, finding, checking, attaching, views, PEFT, loading, probing, installed versions."""

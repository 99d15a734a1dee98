"""What the scripts train on; imported from the script's own folder, as such scripts do."""

import numpy as np
from PIL import Image


def batch(processor, seed=0):
    """Two pictures and a question."""
    rng = np.random.default_rng(seed)
    pictures = [Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(2)]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Left or right? left"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    return dict(processor(text=[text], images=pictures, return_tensors="pt"))

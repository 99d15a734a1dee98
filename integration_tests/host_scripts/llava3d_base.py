"""``python llava3d_base.py FOLDER TOWER NAME``: a tiny LLaVA-Video of the checkout's own classes, and a SigLIP tower.

NAME is what the model calls its tower. The tower is as wide as the real one and heads are of 128, since the checkout's
code has these numbers.
"""

import sys
from pathlib import Path

import torch
from llava.model.language_model.llava_qwen import LlavaQwenConfig, LlavaQwenForCausalLM
from transformers import CLIPImageProcessor, SiglipVisionConfig, SiglipVisionModel

from vega3d_qwen_vl.tiny import tiny_tokenizer

folder, tower = map(Path, sys.argv[1:3])
torch.manual_seed(0)
settings = SiglipVisionConfig(
    hidden_size=1152, intermediate_size=32, num_hidden_layers=3, num_attention_heads=16, image_size=384, patch_size=14
)
SiglipVisionModel(settings).to(torch.bfloat16).save_pretrained(tower)
half, side = [0.5] * 3, {"height": 384, "width": 384}
CLIPImageProcessor(size=side, crop_size=side, image_mean=half, image_std=half).save_pretrained(tower)
tokenizer = tiny_tokenizer()
# The script expects exactly these two.
tokenizer.add_special_tokens(
    {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}, replace_additional_special_tokens=True
)
tokenizer.save_pretrained(folder)
ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
config = LlavaQwenConfig(
    vocab_size=512, hidden_size=256, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=4096, bos_token_id=1, eos_token_id=ends, pad_token_id=0,
    tie_word_embeddings=False, mm_vision_tower=sys.argv[3], mm_hidden_size=1152, mm_vision_select_layer=-2,
    mm_vision_select_feature="patch", mm_projector_type="mlp2x_gelu", mm_patch_merge_type="spatial_unpad",
    mm_newline_position="grid", mm_spatial_pool_mode="bilinear", tokenizer_padding_side="right",
)  # fmt: skip
model = LlavaQwenForCausalLM(config)
torch.nn.init.normal_(model.model.image_newline)
model.to(torch.bfloat16).save_pretrained(folder)

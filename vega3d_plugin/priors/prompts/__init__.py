"""The empty prompt as tensors."""

#: Of a file with a prompt, beside the weights that it belongs to.
SAVED_NAME = "empty_prompt.safetensors"

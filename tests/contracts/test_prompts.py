"""Which tokens of a prompt make its instruction: as the released code has it, and no answer among them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vega3d_plugin.branch.shown import Shown
from vega3d_plugin.contracts.errors import HostError
from vega3d_plugin.contracts.prompts import PromptReading, Prompts, visual_tokens

#: Recorded from the released code; always this set, whatever ``VEGA3D_GOLDENS`` names.
GOLDEN = Path(__file__).parents[1] / "goldens" / "instruction_main.json"
CASES = json.loads(GOLDEN.read_text())["cases"]
NAMES = {
    "instruction_tail_keep_tokens": "keep_last",
    "instruction_relation_boost": "relation_boost",
    "instruction_relation_token_ids": "relation_tokens",
    "instruction_template_token_ids": "template_tokens",
}


class Host(nn.Module):
    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(table)

    def get_input_embeddings(self) -> nn.Module:
        return self.table


@pytest.mark.parametrize("answered", [True, False], ids=["answered", "asked"])
@pytest.mark.parametrize("case", CASES)
def test_as_released(case: str, answered: bool) -> None:
    tensors = load_file(GOLDEN.with_suffix(".safetensors"))
    options = {NAMES[key]: tuple(v) if isinstance(v, list) else v for key, v in CASES[case].items()}
    labels = tensors["inputs.labels"] if answered else None
    prompts = Prompts(tensors["inputs.ids"], labels, tensors["inputs.mask"])
    found = Shown("host", Host(tensors["weights.table"]), prompts, {}).vectors(PromptReading(**options))
    wanted = tensors[f"outputs.{case}_{'answered' if answered else 'asked'}"]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_a_prompt_without_text_is_no_instruction() -> None:
    ids = torch.tensor([[-200, 3, 4], [-200, 5, 6]])
    labels = torch.tensor([[-100, 3, 4], [-100, -100, 6]])
    found = Shown("host", Host(torch.eye(8)), Prompts(ids, labels), {}).vectors(PromptReading())
    assert not found[0].any()
    assert torch.equal(found[1], torch.eye(8)[5])


def test_marks_of_pictures_are_no_text() -> None:
    config = SimpleNamespace(image_token_id=3, vision_start_token_id=4, boi_token_index=5, vocab_size=9, eos_token_id=2)
    assert visual_tokens(config) == {3, 4, 5}


def test_shapes_that_do_not_belong_together() -> None:
    with pytest.raises(HostError, match=r"attention_mask \[1, 1, 3, 3\] do not fit"):
        Prompts(torch.ones(1, 3).long(), mask=torch.ones(1, 1, 3, 3)).check("host")

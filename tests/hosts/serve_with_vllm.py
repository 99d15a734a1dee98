"""Run by vLLM's own interpreter: a tiny host with its branch from pixels, and without it from fused tokens.

``serve_with_vllm.py FOLDER CLASS``: FOLDER holds ``host``, ``branch``, ``fused``, ``bare`` and ``0.png``. Prints, as
JSON, how far the log-probabilities of the first new token are apart at most.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}  # fmt: skip


def main(root: Path, name: str) -> dict[str, float]:
    from PIL import Image
    from vllm import LLM, SamplingParams

    from vega3d_plugin.evaluation.serving.files import vllm_inputs

    overrides = {"architectures": [name], "vega3d": {"branch": str(root / "branch")}}
    llm = LLM(
        str(root / "host"), dtype="float32", enforce_eager=True, max_model_len=512, enable_mm_embeds=True,
        limit_mm_per_prompt={"image": 1, "video": 0}, max_logprobs=200, max_num_seqs=2, hf_overrides=overrides,
        max_num_batched_tokens=1024,
    )  # fmt: skip
    line = json.loads((root / "fused" / "index.jsonl").read_text().splitlines()[0])
    picture = {"prompt": line["prompt"], "multi_modal_data": {"image": Image.open(root / "0.png").convert("RGB")}}
    requests: list[Any] = [picture, vllm_inputs(root / "fused", line), vllm_inputs(root / "bare", line_of(root))]
    greedy = SamplingParams(temperature=0, max_tokens=1, logprobs=200)
    found = [llm.generate(request, greedy, use_tqdm=False)[0].outputs[0].logprobs[0] for request in requests]
    return {"branch_to_tokens": apart(found[0], found[1]), "branch_to_bare": apart(found[0], found[2])}


def line_of(root: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((root / "bare" / "index.jsonl").read_text().splitlines()[0])
    return line


def apart(one: Any, other: Any) -> float:
    return max(abs(value.logprob - other[token].logprob) for token, value in one.items() if token in other)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))

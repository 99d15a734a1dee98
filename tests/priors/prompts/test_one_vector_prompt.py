"""The empty prompt: every source, their order, the cache, and each thing that can be wrong."""

import gc
import importlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import UMT5Config, UMT5EncoderModel

from vega3d_plugin.contracts.errors import PromptError
from vega3d_plugin.priors.prompts.one_vector import empty_prompt, save_empty_prompt
from vega3d_plugin.priors.prompts.umt5 import names_from_wan

# The module, whatever the package re-exports under the same name.
module = importlib.import_module("vega3d_plugin.priors.prompts.one_vector")

DIM = 32


@pytest.fixture(autouse=True, scope="module")
def small_heap():
    """Leave what was imported out of garbage collection, which each computation runs once."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("VEGA3D_CACHE", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder with a transformer and nothing else."""
    path = tmp_path / "wan"
    write_transformer(path)
    return path


def write_transformer(folder, seed=0):
    (folder / "transformer").mkdir(parents=True)
    weights = torch.randn(8, generator=torch.Generator().manual_seed(seed))
    save_file({"weight": weights}, folder / "transformer" / "diffusion_pytorch_model.safetensors")


def tiny_encoder(seed=0, dtype=torch.float32, **changes):
    torch.manual_seed(seed)
    settings = {"vocab_size": 11, "d_model": DIM, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    model = UMT5EncoderModel(UMT5Config(**{**settings, **changes})).eval()
    with torch.no_grad():
        for weight in model.parameters():
            # The norms too, which are ones when new: a swap of two of them must show.
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 1.0))
    return model.to(dtype)


def embedding_of(model, token=1):
    with torch.no_grad():
        ids = torch.tensor([[token]])
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].float()


def write_diffusers(folder, model, **options):
    model.save_pretrained(folder / "text_encoder", **options)


def to_wan(name):
    """Wan's name for one of transformers' names, written apart from the table in the library."""
    if name == "encoder.final_layer_norm.weight":
        return "norm.weight"
    if not name.startswith("encoder.block."):
        return "token_embedding.weight"
    _, _, block, _, layer, *rest = name.split(".")
    part = ".".join(rest)
    first = {
        "layer_norm.weight": "norm1.weight",
        "SelfAttention.relative_attention_bias.weight": "pos_embedding.embedding.weight",
        **{f"SelfAttention.{x}.weight": f"attn.{x}.weight" for x in "qkvo"},
    }
    second = {
        "layer_norm.weight": "norm2.weight",
        "DenseReluDense.wi_0.weight": "ffn.gate.0.weight",
        "DenseReluDense.wi_1.weight": "ffn.fc1.weight",
        "DenseReluDense.wo.weight": "ffn.fc2.weight",
    }
    return f"blocks.{block}.{(first, second)[int(layer)][part]}"


def wan_state(model):
    return {to_wan(name): value.clone() for name, value in model.state_dict().items()}


def write_original(folder, model, name="models_t5_umt5-xxl-enc-bf16.pth", drop=()):
    folder.mkdir(exist_ok=True)
    torch.save({k: v for k, v in wan_state(model).items() if k not in drop}, folder / name)


def rows(n=1, seed=0):
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def refused(folder, *words, text_dim=DIM):
    with pytest.raises(PromptError) as caught:
        empty_prompt(folder, text_dim=text_dim, progress=False)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


# Files beside the weights


@pytest.mark.parametrize("name", ["wan_prompt_embedding.pt", "empty_prompt.pt"])
@pytest.mark.parametrize("form", [lambda t: t, lambda t: {"context": t}, lambda t: {"embedding": t}, lambda t: t[None]])
def test_exported_file(folder, name, form):
    torch.save(form(rows(2)), folder / name)
    context = empty_prompt(folder, text_dim=DIM)
    assert torch.equal(context, rows(2))


def test_exported_file_is_padded_and_in_half_precision(folder):
    padded = torch.zeros(512, DIM, dtype=torch.bfloat16)
    padded[0], padded[2] = rows(1), rows(1, seed=1)
    torch.save(padded, folder / "wan_prompt_embedding.pt")
    context = empty_prompt(folder, text_dim=DIM)
    assert context.dtype == torch.float32
    # A zero row between two others is no padding.
    assert torch.equal(context, padded[:3].float())


def test_save_and_read_back(tmp_path):
    path = save_empty_prompt(rows(3)[None].double(), tmp_path / "new")
    assert path == tmp_path / "new" / "empty_prompt.safetensors"
    assert list(load_file(path)) == ["context"]
    assert torch.equal(empty_prompt(path.parent, text_dim=DIM), rows(3))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_save_takes_any_memory_layout(tmp_path):
    padded = torch.cat([rows(3), torch.zeros(509, DIM)])
    path = save_empty_prompt(padded.T.contiguous().T, tmp_path)
    assert torch.equal(load_file(path)["context"], rows(3))
    torch.save(padded, tmp_path / "empty_prompt.pt")
    path.unlink()
    assert empty_prompt(tmp_path, text_dim=DIM).untyped_storage().nbytes() == 3 * DIM * 4


def test_save_refuses_what_would_not_be_read(tmp_path):
    with pytest.raises(PromptError, match="zero throughout"):
        save_empty_prompt(torch.zeros(2, DIM), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(PromptError, match="cannot be written"):
        save_empty_prompt(rows(), tmp_path / "file")


def test_result_is_the_callers_own(folder):
    save_empty_prompt(rows(), folder)
    empty_prompt(folder, text_dim=DIM).zero_()
    assert torch.equal(empty_prompt(folder, text_dim=DIM), rows())


def test_order_of_sources(folder):
    model = tiny_encoder()
    write_diffusers(folder, model)
    write_original(folder, tiny_encoder(seed=9))
    computed = empty_prompt(folder, text_dim=DIM, progress=False)
    torch.testing.assert_close(computed, embedding_of(model))
    for seed, name in enumerate(["empty_prompt.pt", "wan_prompt_embedding.pt"]):
        torch.save(rows(seed=seed), folder / name)
        assert torch.equal(empty_prompt(folder, text_dim=DIM), rows(seed=seed))
    save_empty_prompt(rows(seed=7), folder)
    assert torch.equal(empty_prompt(folder, text_dim=DIM), rows(seed=7))


# The text encoder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "8KB"}])
def test_diffusers_layout(folder, dtype, shards):
    model = tiny_encoder(dtype=dtype)
    write_diffusers(folder, model, **shards)
    assert len(list((folder / "text_encoder").glob("*.safetensors"))) == 1 or shards
    context = empty_prompt(folder, text_dim=DIM, progress=False)
    assert context.dtype == torch.float32
    assert context.shape == (1, DIM)
    assert not context.requires_grad
    torch.testing.assert_close(context, embedding_of(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("write", [write_diffusers, write_original])
def test_float16_is_computed_in_float32(folder, write):
    model = tiny_encoder(dtype=torch.float16)
    write(folder, model)
    context = empty_prompt(folder, text_dim=DIM, progress=False)
    torch.testing.assert_close(context, embedding_of(model.float()), rtol=1e-5, atol=1e-5)
    # In float16 it would have come out on its grid.
    assert not torch.equal(context, context.half().float())


@pytest.mark.parametrize(("token", "expected"), [(3, 3), ([4, 5], 4), (None, 1)])
def test_end_of_sequence_of_the_configuration(folder, token, expected):
    model = tiny_encoder()
    write_diffusers(folder, model)
    edit_config(folder, eos_token_id=token)
    context = empty_prompt(folder, text_dim=DIM, progress=False)
    torch.testing.assert_close(context, embedding_of(model, expected), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(context, embedding_of(model, 2), atol=1e-2)


def edit_config(folder, **changes):
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["models_t5_umt5-xxl-enc-bf16.pth", "models_t5_other.pth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_original_layout(folder, name, dtype):
    model = tiny_encoder(dtype=dtype, relative_attention_num_buckets=16)
    write_original(folder, model, name)
    context = empty_prompt(folder, text_dim=DIM, progress=False)
    torch.testing.assert_close(context, embedding_of(model), rtol=1e-5, atol=1e-5)


def test_published_original_file_is_preferred(folder):
    model = tiny_encoder()
    write_original(folder, model)
    write_original(folder, tiny_encoder(seed=1), "models_t5_another.pth")
    torch.testing.assert_close(empty_prompt(folder, text_dim=DIM, progress=False), embedding_of(model))


def test_original_names_cover_the_whole_encoder():
    names = set(tiny_encoder(num_layers=11).state_dict())
    renamed, unknown = names_from_wan({to_wan(name) for name in names} | {"decoder.norm.weight"})
    assert unknown == ["decoder.norm.weight"]
    assert all(to_wan(new) == old for old, new in renamed.items())
    assert set(renamed.values()) == names - {"encoder.embed_tokens.weight"}


def test_progress_counts_the_blocks(folder, capfd):
    write_diffusers(folder, tiny_encoder(num_layers=3))
    empty_prompt(folder, text_dim=DIM, progress=False)
    shutil.rmtree(os.environ["VEGA3D_CACHE"])
    assert "empty prompt" not in capfd.readouterr().err
    empty_prompt(folder, text_dim=DIM, progress=True)
    assert "3/3" in capfd.readouterr().err


def test_text_encoder_is_freed_before_the_return(folder, monkeypatch):
    models = []
    original = module.load_umt5

    def watched(*args, **options):
        model = original(*args, **options)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(module, "load_umt5", watched)
    monkeypatch.setattr(module, "_to_cache", lambda *_: models.append(models[0]()))
    write_diffusers(folder, tiny_encoder())
    empty_prompt(folder, text_dim=DIM, progress=False)
    assert len(models) > 1
    assert models[1] is None


# The cache


@pytest.fixture
def computed(monkeypatch):
    """Each text encoder that was loaded."""
    loaded = []
    original = module.load_umt5

    def counting(files, **options):
        loaded.append(files.name)
        return original(files, **options)

    monkeypatch.setattr(module, "load_umt5", counting)
    return loaded


@pytest.mark.parametrize("write", [write_diffusers, write_original])
def test_second_call_reads_the_cache(folder, cache, computed, caplog, write):
    caplog.set_level(logging.INFO, logger="vega3d")
    write(folder, tiny_encoder())
    first = empty_prompt(folder, text_dim=DIM, progress=False)
    assert "once" in caplog.text
    assert str(cache / "empty_prompt" / "encoder-") in caplog.text
    second = empty_prompt(folder, text_dim=DIM, progress=False)
    assert len(computed) == 1
    assert torch.equal(first, second)
    assert not list(cache.rglob("*.tmp"))


def remove_encoder(folder):
    shutil.rmtree(folder / "text_encoder", ignore_errors=True)
    for path in folder.glob("models_t5*"):
        path.unlink()


@pytest.mark.parametrize("write", [write_diffusers, write_original])
def test_text_encoder_may_be_deleted_afterwards(folder, computed, write):
    write(folder, tiny_encoder())
    first = empty_prompt(folder, text_dim=DIM, progress=False)
    remove_encoder(folder)
    assert torch.equal(empty_prompt(folder, text_dim=DIM, progress=False), first)
    assert len(computed) == 1
    refused(folder, f"gives {DIM} numbers", "expects 48", text_dim=48)


def test_deleted_text_encoder_of_another_transformer_is_not_used(folder):
    write_diffusers(folder, tiny_encoder())
    empty_prompt(folder, text_dim=DIM, progress=False)
    shutil.rmtree(folder)
    write_transformer(folder, seed=1)
    refused(folder, "No empty prompt")


def test_deleted_text_encoder_is_the_last_one_that_was_there(folder, tmp_path):
    one, two = tiny_encoder(), tiny_encoder(seed=1)
    other = tmp_path / "other"
    write_diffusers(other, two)
    empty_prompt(other, text_dim=DIM, progress=False)
    write_diffusers(folder, one)
    empty_prompt(folder, text_dim=DIM, progress=False)
    write_diffusers(folder, two)
    empty_prompt(folder, text_dim=DIM, progress=False)  # a hit, thanks to the other folder
    remove_encoder(folder)
    torch.testing.assert_close(empty_prompt(folder, text_dim=DIM), embedding_of(two))


def test_copied_checkpoint_shares_the_cache(folder, tmp_path, computed):
    write_diffusers(folder, tiny_encoder())
    first = empty_prompt(folder, text_dim=DIM, progress=False)
    shutil.copytree(folder, tmp_path / "copy")
    assert torch.equal(empty_prompt(tmp_path / "copy", text_dim=DIM), first)
    assert len(computed) == 1


@pytest.mark.parametrize("write", [write_diffusers, write_original])
def test_two_encoders_do_not_share_the_cache(folder, write):
    """Same folder, same names, same sizes."""
    for seed in range(2):
        model = tiny_encoder(seed=seed)
        write(folder, model)
        torch.testing.assert_close(empty_prompt(folder, text_dim=DIM, progress=False), embedding_of(model))


def test_configuration_is_part_of_the_identity(folder, computed):
    write_diffusers(folder, tiny_encoder())
    empty_prompt(folder, text_dim=DIM, progress=False)
    edit_config(folder, eos_token_id=3)
    empty_prompt(folder, text_dim=DIM, progress=False)
    assert len(computed) == 2


@pytest.mark.parametrize("end", ["first", "last"])
def test_both_ends_of_a_large_file_are_part_of_the_identity(folder, end):
    path = folder / "models_t5.pth"
    identities = set()
    for byte in (b"a", b"b"):
        filling = b"-" * 300_000
        path.write_bytes(byte + filling if end == "first" else filling + byte)
        identities.add(module._encoder_cache(module.TextEncoderFiles(folder, (path,))))
    assert len(identities) == 2


@pytest.mark.parametrize("damage", [b"", b"half a file", None])
def test_damaged_cache_is_computed_again(folder, cache, computed, caplog, damage):
    write_diffusers(folder, tiny_encoder())
    first = empty_prompt(folder, text_dim=DIM, progress=False)
    for path in (cache / "empty_prompt").iterdir():
        if damage is None:
            save_file({"context": torch.full((1, DIM), torch.nan)}, path)
        else:
            path.write_bytes(damage)
    assert torch.equal(empty_prompt(folder, text_dim=DIM, progress=False), first)
    assert len(computed) == 2
    assert "ignored" in caplog.text
    empty_prompt(folder, text_dim=DIM, progress=False)
    assert len(computed) == 2


def test_cache_that_cannot_be_written(folder, cache, caplog, monkeypatch):
    model = tiny_encoder()
    write_diffusers(folder, model)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    torch.testing.assert_close(empty_prompt(folder, text_dim=DIM, progress=False), embedding_of(model))
    assert [r.levelname for r in caplog.records if "No space left" in r.message] == ["WARNING"]
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_cache_folder_that_is_a_file(folder, cache, caplog):
    cache.write_text("in the way")
    model = tiny_encoder()
    write_diffusers(folder, model)
    torch.testing.assert_close(empty_prompt(folder, text_dim=DIM, progress=False), embedding_of(model))
    assert "VEGA3D_CACHE" in caplog.text


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert module.cache_root() == tmp_path / "cache" / "empty_prompt"
    monkeypatch.setenv("VEGA3D_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert module.cache_root() == tmp_path / "xdg" / "vega3d" / "empty_prompt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert module.cache_root() == tmp_path / "home" / ".cache" / "vega3d" / "empty_prompt"

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert module.cache_root() is None


# What can be wrong


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.ones(1, DIM + 1), [f"[1, {DIM + 1}]", f"[tokens, {DIM}]"]),
        (torch.ones(513, DIM), [f"[513, {DIM}]", "1 to 512"]),
        (torch.ones(0, DIM), [f"[0, {DIM}]", "1 to 512"]),
        (torch.ones(2, 1, DIM), [f"[2, 1, {DIM}]"]),
        (torch.ones(DIM), [f"[{DIM}]"]),
        (torch.zeros(4, DIM), ["zero throughout"]),
        (torch.full((1, DIM), torch.nan), ["NaN"]),
        (torch.full((1, DIM), -torch.inf), ["infinity"]),
        (torch.ones(1, DIM, dtype=torch.int64), ["torch.int64", "floating"]),
        ({"prompt": torch.ones(1, DIM)}, ["['prompt']", "'context' or 'embedding'"]),
        ([torch.ones(1, DIM)], ["list"]),
        ({"context": "text"}, ["str"]),
    ],
)
def test_wrong_content(folder, content, words):
    torch.save(content, folder / "wan_prompt_embedding.pt")
    refused(folder, "wan_prompt_embedding.pt", *words)


def test_wrong_content_in_safetensors(folder):
    path = folder / "empty_prompt.safetensors"
    save_file({"embedding": torch.ones(1, DIM)}, path)
    refused(folder, str(path), "['embedding']", "'context'")
    save_file({"context": torch.ones(1, 7)}, path)
    refused(folder, str(path), "[1, 7]")
    path.write_bytes(b"not safetensors")
    refused(folder, str(path), "cannot be read")


@pytest.mark.parametrize("name", ["wan_prompt_embedding.pt", "models_t5_umt5-xxl-enc-bf16.pth"])
@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x, protocol=2))])
def test_pickled_code_never_runs(folder, name, save, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    save({"context": Evil()}, folder / name)
    refused(folder, name, "cannot be read")
    assert not (tmp_path / "ran").exists()


def test_a_damaged_file_says_how_to_write_it_again(folder):
    (folder / "empty_prompt.safetensors").write_bytes(b"half")
    refused(folder, "empty_prompt.safetensors cannot be read", "Write it again with `vega3d prior export-prompt`")


def test_nothing_there(tmp_path, folder):
    refused(folder, str(folder), "no folder text_encoder/", "no file models_t5*.pth", "wan_prompt_embedding.pt")
    refused(folder, "empty_prompt.safetensors", "`vega3d prior export-prompt` writes it", "download")
    refused(tmp_path / "nowhere", "is not a folder")


@pytest.mark.parametrize("write", [write_diffusers, write_original])
def test_text_encoder_of_another_width(folder, cache, write):
    write(folder, tiny_encoder())
    refused(folder, "text encoder", f"gives {DIM} numbers", "expects 48", text_dim=48)
    assert not cache.exists()
    empty_prompt(folder, text_dim=DIM, progress=False)
    refused(folder, "text encoder", f"gives {DIM} numbers", "expects 48", text_dim=48)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_half_fetched_text_encoder(folder, name):
    model = tiny_encoder()
    write_diffusers(folder, model)
    (folder / "text_encoder" / name).unlink()
    refused(folder, f"text_encoder/ without {name}")
    write_original(folder, model)
    torch.testing.assert_close(empty_prompt(folder, text_dim=DIM, progress=False), embedding_of(model))


def test_missing_shard(folder):
    write_diffusers(folder, tiny_encoder(), max_shard_size="8KB")
    shards = sorted((folder / "text_encoder").glob("*.safetensors"))
    shards[0].unlink()
    refused(folder, f"1 of {len(shards)} weight files ({shards[0].name})")
    (folder / "text_encoder" / "model.safetensors.index.json").write_text("{}")
    refused(folder, "model.safetensors.index.json, which cannot be read")


def test_truncated_weights(folder):
    write_diffusers(folder, tiny_encoder())
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, str(path), "cannot be read")


@pytest.mark.parametrize("name", ["encoder.block.1.layer.0.layer_norm.weight", "encoder.final_layer_norm.weight"])
def test_weights_are_never_made_up(folder, name):
    write_diffusers(folder, tiny_encoder())
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    weight = state.pop(name)
    save_file(state, path)
    refused(folder, f"{name} is missing")
    save_file({**state, name: weight[:-1]}, path)
    refused(folder, f"{name} has shape [{DIM - 1}] instead of [{DIM}]")
    save_file({**state, name: weight.to(torch.int8)}, path)
    refused(folder, f"{name} is torch.int8", "quantised")
    save_file({**state, name: weight, "encoder.extra": torch.ones(3)}, path)
    refused(folder, "encoder.extra is unknown")


def test_table_and_end_of_sequence(folder):
    write_diffusers(folder, tiny_encoder())
    edit_config(folder, eos_token_id=99)
    refused(folder, "[11, 32]", "99")
    edit_config(folder, eos_token_id=1)
    path = folder / "text_encoder" / "model.safetensors"
    state = load_file(path)
    table = next(value for name, value in state.items() if "embed" in name or "shared" in name)
    both = {"shared.weight": table, "encoder.embed_tokens.weight": table.clone()}
    save_file({**state, **both}, path)
    first = empty_prompt(folder, text_dim=DIM, progress=False)
    both["encoder.embed_tokens.weight"][1] += 1
    save_file({**state, **both}, path)
    refused(folder, "two token tables", "differ")
    for name in both:
        save_file({**{k: v for k, v in state.items() if k not in both}, name: table}, path)
        # Not bit for bit: the mapped weights lie at other offsets, and the matrix products may round otherwise.
        torch.testing.assert_close(empty_prompt(folder, text_dim=DIM, progress=False), first)
    save_file({name: value for name, value in state.items() if "embed" not in name and "shared" not in name}, path)
    refused(folder, "no token table")


@pytest.mark.parametrize(
    ("text", "word"), [("{", "not a readable"), ('{"model_type": "t5"}', "type 't5'"), ("[]", "list")]
)
def test_wrong_configuration(folder, text, word):
    write_diffusers(folder, tiny_encoder())
    (folder / "text_encoder" / "config.json").write_text(text)
    refused(folder, "config.json", word)


def test_wrong_original_file(folder):
    model = tiny_encoder()
    write_original(folder, model, drop=["blocks.1.norm2.weight"])
    refused(folder, "encoder.block.1.layer.1.layer_norm.weight is missing")
    write_original(folder, model, drop=["blocks.0.attn.q.weight"])
    refused(folder, "no matrix named blocks.0.attn.q.weight")
    path = folder / "models_t5_umt5-xxl-enc-bf16.pth"
    torch.save({**wan_state(model), "pos_embedding.embedding.weight": torch.ones(32, 4)}, path)
    refused(folder, str(path), "1 weights", "pos_embedding.embedding.weight")
    torch.save({**wan_state(model), "blocks.0.pos_embedding.embedding.weight": torch.ones(32, 5)}, path)
    refused(folder, "24 cannot be split into 5 heads")
    torch.save(torch.ones(3), path)
    refused(folder, "holds a Tensor")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refused(folder, str(path), "42 bytes", "cannot be read")


def test_import_is_light():
    code = (
        "import sys, vega3d_plugin.priors.prompts.one_vector\n"
        "print([name for name in ('transformers', 'diffusers') if name in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"

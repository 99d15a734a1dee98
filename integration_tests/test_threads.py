"""Promise 7, for every host: calls from any number of threads, and inside each other, give what each gives alone."""

from __future__ import annotations

import gc
import warnings
import weakref
from dataclasses import dataclass
from typing import Any

import hosts
import pytest
import torch
import transformers
from hosts import Batch, Host, freeze_host, logits
from support.together import together
from threaded import at_once, other_pictures, requests, tensors_of
from torch import Tensor, nn

import vega3d

pytestmark = pytest.mark.once

#: One of each way to the seam: pixels among its own arguments, noted by a method, by one of several, by a forward.
EACH_KIND = ("qwen2_5_vl", "llava_double", "internvl", "openvla_double")
kinds = pytest.mark.parametrize(
    "served", [name for name in EACH_KIND if name in {host.name for host in hosts.HOSTS}], indirect=True
)
#: What hosts do by themselves on transformers 4.50, unpatched too.
OLD = {
    "gemma3": "its generate gives two threads each other's answers (12 of 24, unpatched)",
    "llava_torch": "its generate fails: forward() takes no cache_position",
}


def needs_generate(served: Served) -> None:
    if transformers.__version__.startswith("4.50") and served.host.name in OLD:
        pytest.skip(f"the host itself: {OLD[served.host.name]}")


@dataclass(frozen=True)
class Served:
    """A patched model, and what it answers to each request alone.

    Attributes:
        host: its row.
        model: patched, with a branch that changes the answers.
        requests: two prompts with pictures, and one of words.
        alone: logits of each.
    """

    host: Host
    model: nn.Module
    requests: list[Batch]
    alone: list[Tensor]


def patch(host: Host, **settings: Any) -> nn.Module:
    return hosts.patch(host.build(), **{"init": "released", **host.options, **settings})


@pytest.fixture(scope="module", params=[host.name for host in hosts.HOSTS])
def served(request: pytest.FixtureRequest) -> Served:
    host = hosts.named(request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = patch(host)
    batches = requests(host)
    return Served(host, model, batches, [logits(model, batch) for batch in batches])


def check(found: list[Any], expected: list[Tensor]) -> None:
    for answer, alone in zip(found, expected, strict=True):
        if isinstance(answer, BaseException):
            raise answer
        assert torch.equal(answer, alone)


def test_two_requests_at_once(served: Served) -> None:
    """They hold each other up where one's pixels could be taken for the other's. Warnings are errors here."""
    assert not torch.equal(served.alone[0], served.alone[1])
    for pair in ((0, 1), (0, 2), (2, 1)):
        first, second = (served.requests[i] for i in pair)
        check(at_once(served.model, first, second, logits), [served.alone[i] for i in pair])


def test_two_requests_that_generate(served: Served) -> None:
    needs_generate(served)

    def answer(model: nn.Module, batch: Batch) -> Tensor:
        return served.host.generate(model, batch, max_new_tokens=2)

    first, second, _ = served.requests
    alone = [answer(served.model, batch) for batch in (first, second)]
    check(at_once(served.model, first, second, answer), alone)


def test_every_step_of_a_request_without_cache(served: Served) -> None:
    """Each is given what was encoded before the first. That is no picture that passed by the seam."""
    needs_generate(served)
    for batch in served.requests[:2]:
        alone = served.host.generate(served.model, batch, max_new_tokens=3)
        assert torch.equal(served.host.generate(served.model, batch, max_new_tokens=3, use_cache=False), alone)


def test_a_call_inside_a_call(served: Served) -> None:
    first, *others = served.requests
    inner: list[Tensor] = []

    def ask(module: nn.Module, args: Any) -> None:
        hook.remove()
        inner.extend(logits(served.model, batch) for batch in others)

    hook = decoder_layers(served.model)[0].register_forward_pre_hook(ask)
    check([logits(served.model, first), *inner], served.alone)


@kinds
def test_training_on_words_beside_training_on_pictures(served: Served) -> None:
    """Words keep the branch in the graph, whatever another thread's pictures do meanwhile."""
    model = patch(served.host)
    freeze_host(model)
    model.train()

    def gradients(model: nn.Module, batch: Batch) -> Tensor:
        grads = torch.autograd.grad(hosts.loss_of(model, batch), list(vega3d.get_handle(model).parameters()))
        return torch.cat([grad.flatten() for grad in grads])

    pictures, _, words = served.requests
    alone = [gradients(model, batch) for batch in (words, pictures)]
    check(at_once(model, words, pictures, gradients), alone)


class GiveUpError(RuntimeError):
    pass


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")]


def break_off(model: nn.Module, batch: Batch, error: type[BaseException] = GiveUpError) -> None:
    """A forward that ends by an error, after the pictures have passed the seam."""

    def give_up(module: nn.Module, args: Any) -> None:
        raise error

    hook = decoder_layers(model)[-1].register_forward_pre_hook(give_up)
    with pytest.raises(error):
        logits(model, batch)
    hook.remove()


def test_calls_after_one_that_broke_off(served: Served) -> None:
    needs_generate(served)
    check_after(served, GiveUpError)


@kinds
def test_calls_after_one_that_was_interrupted(served: Served) -> None:
    """Ctrl-C in a notebook, of which torch tells no hook."""
    check_after(served, KeyboardInterrupt)


def check_after(served: Served, error: type[BaseException]) -> None:
    first, second, words = served.requests
    for batch, alone in ((words, served.alone[2]), (second, served.alone[1])):
        break_off(served.model, first, error)
        assert torch.equal(logits(served.model, batch), alone)
    break_off(served.model, first, error)
    served.host.generate(served.model, second, max_new_tokens=1)


def test_nothing_of_a_call_is_kept(served: Served) -> None:
    for run in (logits, break_off):
        batch = other_pictures(served.host.batch())
        pixels = [weakref.ref(tensor) for tensor in tensors_of(batch)]
        assert pixels
        run(served.model, batch)
        del batch
        gc.collect()
        assert [ref for ref in pixels if ref() is not None] == []


@kinds
def test_switches_are_for_the_thread_that_opened_them(served: Served) -> None:
    model, batch, on = served.model, served.requests[0], served.alone[0]

    def off(model: nn.Module) -> Tensor:
        with vega3d.disabled(model):
            return logits(model, batch)

    def zero(model: nn.Module) -> Tensor:
        with vega3d.zeroed(model), vega3d.record_gates(model) as gates:
            out = logits(model, batch)
        assert [tuple(gate.shape) for gate in gates] == list(served.host.grids)
        return out

    for switched in (off, zero):
        alone = switched(model)
        assert not torch.equal(alone, on)
        check(together(lambda s=switched: s(model), lambda: logits(model, batch)), [alone, on])

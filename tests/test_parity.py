"Runtimes that are right pass, runtimes that are wrong on purpose fail."
import json

import pytest
import torch

from small import SCHEMES, tokens
from tqcook import models, parity, runtime
from tqcook.core import CookError


@pytest.mark.parametrize('scheme', SCHEMES)
def test_parity_and_its_negative_controls(cooked, both, scheme):
    path, base, _ = cooked(scheme)
    e, ref = both(path)
    p = parity.parity(e, ref, tokens(), base)
    assert p.passed and p.expected == p.linears == 14 and p.tokens == 128, p.failures
    assert 5e-4 < p.worst < 4e-3 # the rounding of BF16 must be seen: zero would mean that nothing was compared
    controls = parity.negative_controls(e, ref, tokens(), base)
    assert {'bf16 weights', 'weight'} <= set(controls)
    assert ('weight_scale' in controls) == (scheme != 'int4_awq')
    assert ('input_scale' in controls) == (scheme in ('fp8', 'int8_sq'))
    for how, c in controls.items():
        assert not c.passed and c.worst > p.bound, how
    assert abs(controls['bf16 weights'].free / p.cost - 1) < .2 # without quantization it is off by the scheme's cost
    assert parity.parity(e, ref, tokens(), base).to_dict() == p.to_dict() # mended


def test_parity_with_per_token_int8(cooked, both):
    path, base, _ = cooked('int8_sq')
    token, ref = both(path, activations='token')
    p = parity.parity(token, ref, tokens(), base)
    assert p.passed and 'per token' in p.arithmetic[0], p.failures
    static = runtime.load(path, device='cpu', activations='static')
    assert not parity.parity(static, ref, tokens(), base).passed # the two are told apart
    assert 'per token' in runtime.products(token)._repr_markdown_()


def test_parity_sees_a_linear_that_was_skipped(cooked, both):
    path, base, _ = cooked('fp8')
    e, ref = both(path)
    up = e.model.model.layers[1].mlp.up_proj
    up.forward = lambda x: torch.full((*x.shape[:-1], 384), float('nan'), dtype=x.dtype)
    assert not parity.parity(e, ref, tokens(), base).passed
    del up.forward
    e.model.model.layers[1].mlp.forward = lambda x: x # never calls its linears
    p = parity.parity(e, ref, tokens(), base)
    assert not p.passed and 'nothing flowed through' in ' '.join(p.failures)


def test_parity_dict_is_plain_json(cooked, both):
    path, base, _ = cooked('fp8')
    e, ref = both(path)
    d = parity.parity(e, ref, tokens(), base).to_dict()
    assert json.loads(json.dumps(d)) == d and d['passed'] and d['linears'] == d['expected'] == 14
    assert 'cost' not in parity.parity(e, ref, tokens()).to_dict() and d['cost'] > 0


def test_the_demonstration_model(demo, demo_fp8, held_out, both):
    "A trained model on real text, windows chosen by default and given."
    e, ref = both(demo_fp8)
    p = parity.parity(e, ref, held_out, demo, max_windows=2)
    assert p.passed and p.linears == p.expected == len(models.linears(demo.model)), p.failures
    assert p.logits < .25 * p.cost and 1e-3 < p.floor < p.cost
    wrong = parity.negative_controls(e, ref, held_out, demo, max_windows=2)['bf16 weights']
    assert wrong.worst > p.bound and wrong.logits > p.cost_share * wrong.cost # both tests notice
    own = parity.parity(e, ref, max_windows=1)
    assert own.passed and own.cost is None and own.tokens > 100


def test_the_free_logits_alone_tell_an_unquantized_model(cooked, both):
    "Even where one more rounding moves the logits as far as the scheme does."
    path, base, _ = cooked('fp8')
    e, ref = both(path)
    right = parity.parity(e, ref, tokens(), base)
    wrong = parity.negative_controls(e, ref, tokens(), base)['bf16 weights']
    assert right.lean < .5 and wrong.lean > .95
    wrong.errors, wrong.logits, wrong.floor = right.errors, 0., 10. # whatever else would have failed, passes
    assert len(wrong.failures) == 1 and 'unquantized' in wrong.failures[0]


def test_one_more_rounding_is_gone_afterwards(cooked, both):
    ref = both(cooked('fp8')[0])[1]
    with torch.no_grad():
        a = ref.model(tokens()).logits
        with parity._reference_as(ref, {}, noise=True):
            b = ref.model(tokens()).logits
        assert not torch.equal(a, b) and torch.equal(a, ref.model(tokens()).logits)


def test_float16(cooked, both):
    e, ref = both(cooked('fp8')[0], dtype='float16')
    assert parity.parity(e, ref, tokens()).worst < 1e-3 # float16 has three more bits than BF16


def test_parity_holds_with_fp8_kv(cooked, both):
    path, base, _ = cooked('fp8', 'fp8')
    p = parity.parity(*both(path), tokens(), base)
    assert p.passed, p.failures


def test_bad_arguments(cooked, both):
    e, ref = both(cooked('fp8')[0])
    with pytest.raises(CookError, match="kernels='reference'"):
        parity.parity(e, e, tokens())
    with pytest.raises(CookError, match='token windows'):
        parity.parity(e, ref, [])

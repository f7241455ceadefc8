"Predictions against what was measured on an H200 by two other programs, and ceilings of this machine."
import statistics
from itertools import combinations

import pytest

from tqcook import roofline
from tqcook.core import CookError
from tqcook.device import DEVICES, Device, detect, lookup
from tqcook.schemes import SCHEMES
from tqcook.shapes import shape_of

# Llama-3.1-8B with random weights on one H200: a prototype of seven kernels a layer, vLLM 0.25.1, compiled blocks.
# The prototype's decode steps gave `ATTENTION`, both programs' decode steps were seen when `LAUNCH` was chosen.
POINTS = '''
scheme     kv   phase   batch context ms     by
none       none decode  1     512     4.08   prototype
none       none decode  4     512     4.42   prototype
none       none decode  16    512     4.71   prototype
fp8        none decode  1     512     2.61   prototype
fp8        none decode  4     512     2.76   prototype
fp8        none decode  16    512     2.96   prototype
fp8        none decode  1     4000    3.04   prototype
none       none decode  1     576     4.81   vllm
none       none decode  16    576     5.22   vllm
none       none decode  64    576     6.51   vllm
fp8        none decode  1     576     3.24   vllm
fp8        none decode  16    576     3.59   vllm
fp8        none decode  64    576     4.93   vllm
fp8        fp8  decode  1     576     3.36   vllm
fp8        fp8  decode  16    576     3.66   vllm
fp8        fp8  decode  64    576     4.80   vllm
none       none prefill 4     2048    194.3  vllm
fp8        none prefill 4     2048    123.3  vllm
fp8        fp8  prefill 4     2048    126.1  vllm
none       none prefill 4     2048    196.3  blocks
fp8        none prefill 4     2048    113.6  blocks
int8_token none prefill 4     2048    165.0  blocks
'''


def compared():
    "[(program and work, scheme, predicted, measured)], seconds."
    shape, h200 = shape_of('shape:llama-3.1-8b'), roofline.from_datasheet(lookup('h200'))
    found = []
    for line in POINTS.strip().split('\n')[1:]:
        scheme, kv, phase, batch, context, ms, by = line.split()
        p = roofline.predict(shape, h200, scheme, kv, phase, int(batch), int(context))
        found.append(((by, phase, batch, context), scheme + kv, p.seconds, float(ms) / 1e3))
    return found


def test_predictions_against_measurements():
    errors = {(work, name): p / m - 1 for work, name, p, m in compared()}
    sizes = [abs(e) for e in errors.values()]
    assert len(sizes) >= 20 and statistics.median(sizes) <= .15 and max(sizes) <= .35, errors
    prompts = [abs(e) for (work, _), e in errors.items() if work[1] == 'prefill']
    assert statistics.median(prompts) <= .2 # nothing was fitted to these


def test_the_faster_of_two_is_named():
    pairs = [(a, b) for a, b in combinations(compared(), 2) if a[0] == b[0] and abs(a[3] / b[3] - 1) > .1]
    right = [(a[2] < b[2]) == (a[3] < b[3]) for a, b in pairs]
    assert len(pairs) >= 10 and sum(right) / len(right) >= .9


@pytest.mark.parametrize('gpu', DEVICES)
def test_every_gpu_and_every_scheme(gpu):
    ceilings, shape = roofline.from_datasheet(lookup(gpu)), shape_of('shape:llama-3.2-1b')
    for scheme in ('none', *SCHEMES):
        for phase in ('prefill', 'decode'):
            p = roofline.predict(shape, ceilings, scheme, phase=phase, batch=8, context=512)
            assert 0 < p.low < p.seconds < p.high and p.bound in ('memory', 'arithmetic', 'kernel starts')
            assert sum(p.parts.values()) == pytest.approx(p.seconds)
    if 'fp8' not in ceilings.rates:
        assert 'no rate for FP8' in roofline.predict(shape, ceilings, 'fp8').note


def test_what_the_theory_says():
    shape, h200 = shape_of('shape:llama-3.1-8b'), roofline.from_datasheet(lookup('h200'))
    at = lambda *a, **kw: roofline.predict(shape, h200, *a, **kw)
    assert at(batch=1).bound == 'memory' and at(phase='prefill', batch=4).bound == 'arithmetic'
    assert at('int4_awq', phase='prefill').seconds == pytest.approx(at(phase='prefill').seconds, rel=.05)
    assert at(kv='fp8', batch=64, context=8192).seconds < .8 * at(batch=64, context=8192).seconds
    assert at(gpus=4).seconds < at().seconds
    until = {n: roofline.pays_until(shape, h200, n, 512) for n in ('int4_awq', 'int8_wo', 'none')}
    assert until['int4_awq'] >= until['int8_wo'] > 1 and until['none'] == 0
    tiny = shape_of(dict(hidden_size=256, intermediate_size=512, num_hidden_layers=8, num_attention_heads=4,
                         vocab_size=1000))
    assert roofline.predict(tiny, h200).bound == 'kernel starts'


@pytest.mark.parametrize('wrong', [dict(batch=0), dict(batch=10**9), dict(context=-1), dict(gpus=1.5),
                                   dict(phase='train'), dict(scheme='fp9'), dict(kv='int8')])
def test_what_cannot_be_predicted(wrong):
    with pytest.raises(CookError):
        roofline.predict(shape_of('shape:llama-3.2-1b'), roofline.from_datasheet(lookup('l4')), **wrong)


def test_devices_without_known_peaks():
    for device in lookup('sm90'), Device('x', 'cpu'):
        with pytest.raises(CookError, match='are not known'):
            roofline.from_datasheet(device)
    with pytest.raises(CookError, match='not here'):
        roofline.measure(lookup('h100'))


def test_this_machine_is_measured():
    pytest.importorskip('torch')
    found = roofline.measure(detect('cpu'), rows=(1, 64))
    assert found.measured and found.bandwidth > 1e9 and found.rates['bf16'] > 1e8 and 0 < found.launch < 1e-3
    assert set(found.by_rows['bf16']) == {1, 64} and found.rates['bf16'] == max(found.by_rows['bf16'].values())
    shape, l4 = shape_of('shape:llama-3.2-1b'), roofline.from_datasheet(lookup('l4'))
    slow, fast = (roofline.predict(shape, c) for c in (found, l4))
    assert slow.seconds > fast.seconds

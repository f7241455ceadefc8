"Switches, shares and what leaving layers out does."

import pytest

torch = pytest.importorskip('torch')
from pairs import quiet, random_corpus
from tqcook import attribution, compare, data
from tqcook.core import CookError


def test_attribution_needs_switches(pair):
    with pytest.raises(CookError, match='no quantizers'):
        attribution.attribute(*pair, random_corpus(), **quiet)
    with pytest.raises(CookError, match='expected one of layer, kind, product, module'):
        attribution.attribute(*pair, random_corpus(), group='row', **quiet)


def few_of(c, n):
    return c.take(range(n))


def test_demo_fp8_sharpness_and_verdict(demo):
    pytest.importorskip('modelopt')
    from tqcook import quantize

    code = data.corpus('code', demo.tokenizer, context=512, max_windows=32)
    q = quantize.quantize(
        demo, data.calibration('code-train', demo.tokenizer, samples=16, length=256), progress=False
    ).loaded
    c = compare.compare(demo, q, code, **quiet)
    assert c.verdict == 'PASS', c.summary()
    assert c.sharpness >= 50, c.sharpness
    assert c.stats['kld_mean'].value > 3 * c.floor['kld_mean'].value  # it sees FP8, not noise
    few = few_of(code, 4)
    assert compare.compare(demo, q, few, **quiet).verdict == 'INCONCLUSIVE'
    at = attribution.attribute(demo, q, code, group='kind', max_windows=2, **quiet)
    assert at.control.value == 0.0 and 0.5 < at.additivity < 2 and set(at.groups) >= {'q_proj', 'down_proj'}
    assert all(x.is_enabled for _, x in attribution.quantizers(q.model).values())
    worst = at.exclude(at.leave_out(0.5))
    less = quantize.quantize(
        demo, data.calibration('code-train', demo.tokenizer, samples=16, length=256), exclude=worst, progress=False
    ).loaded
    damage = lambda other: compare.compare(demo, other, few, **quiet).stats['kld_mean'].value
    assert damage(less) < damage(q)

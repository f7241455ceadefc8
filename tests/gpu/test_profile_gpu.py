"Ceilings and profiles on a GPU: what an H200 reaches, twice the same, and kernels told by their names."
import time

import pytest
import torch

from tqcook import kernels, profile, roofline, synthetic
from tqcook.device import detect

pytestmark = pytest.mark.gpu


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    "(device, two measurements, seconds that the first took)."
    device = detect('cuda')
    with pytest.MonkeyPatch.context() as m:
        m.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        start = time.perf_counter()
        first = roofline.measure(device)
        seconds = time.perf_counter() - start
        assert roofline.kept(device) == roofline.measure(device) == first
        return device, first, roofline.measure(device, fresh=True), seconds


def test_ceilings(measured):
    device, a, b, seconds = measured
    assert seconds < 30
    assert a.bandwidth == pytest.approx(b.bandwidth, rel=.05)
    for t in a.rates:
        assert a.rate(t) == pytest.approx(b.rate(t), rel=.05), t
    if device.name == 'NVIDIA H200':
        assert a.bandwidth == pytest.approx(4.3e12, rel=.03) and a.rate('bf16') > 7e14 and a.rate('fp8') > 1.3e15


@pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing() or 'Triton is here')
def test_profile_of_a_fast_decoder(measured):
    device, c, *_ = measured
    scheme = 'fp8' if device.sm >= 89 else 'int8_sq'
    work = dict(batches=[1, 16], contexts=[512], prompts=[(1, 512)], name='1B')
    found = profile.Profile(c)
    for s in (None, scheme):
        d = synthetic.synthetic('llama-3.2-1b', s, device='cuda')
        found += profile.profile(d, c, **work)
        d = None
        torch.cuda.empty_cache()
    assert len(found.points) == 6 and not found.missed
    for p in found.points:
        assert p.kinds['products'] > .3 and p.kinds['attention'] > 0 and max(p.bandwidth_share, p.rate_share) > .2
        if p.phase == 'decode':
            assert 6.9 < p.calls < 8 # seven kernels a layer, and a few for the head
    # nothing was fitted to this shape
    assert found.judged()['median'] <= .2

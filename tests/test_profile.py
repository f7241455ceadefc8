"Profiles of a small decoder, kinds of kernels by name, and what points say, held against points made by hand."
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tqcook import models, profile
from tqcook.core import CookError
from tqcook.profile import Point, Profile
from tqcook.roofline import Ceilings

GPU = Ceilings('a GPU', 4e12, dict(bf16=7e14, fp8=1.4e15), 4e-6, True)


def point(scheme='none', phase='decode', batch=1, measured=.004, predicted=.004, **kw):
    shares = dict(bandwidth_share=.8, rate_share=.01) if phase == 'decode' else dict(bandwidth_share=.1, rate_share=.7)
    kinds = dict(attention=.1, quantization=0., products=.8, rest=.1)
    facts = dict(model='m', kv='none', context=512, bound='memory', ops=1e10 * batch, bytes=1e10, kinds=kinds, calls=7.)
    dtype = 'fp8' if scheme == 'fp8' else 'bf16'
    return Point(scheme=scheme, phase=phase, batch=batch, measured=measured, predicted=predicted, dtype=dtype,
                 **facts | shares | kw)


@pytest.mark.parametrize('name, kind', [
    ('attention_kernel', 'attention'), ('cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma', 'attention'),
    ('aten::_scaled_dot_product_flash_attention_for_cpu', 'attention'), ('aten::_softmax', 'attention'),
    ('product_kernel', 'products'), ('gemv_kernel', 'products'),
    ('nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTN', 'products'),
    ('sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64', 'products'), ('aten::_scaled_mm', 'products'),
    ('aten::_int_mm', 'products'), ('aten::mm', 'products'), ('aten::linear', 'products'),
    ('void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x', 'products'),
    ('quantize_kernel', 'quantization'), ('quantize_input', 'quantization'),
    ('norm_kernel', 'rest'), ('swiglu_kernel', 'rest'), ('aten::mul', 'rest'),
    ('Memcpy DtoD (Device -> Device)', 'rest'),
    ('aten::linspace', 'rest'), ('aten::comm', 'rest')])
def test_kernels_by_name(name, kind):
    assert profile.kind_of(name) == kind


@pytest.fixture(scope='module')
def decoders():
    pytest.importorskip('torch')
    from tqcook import models
    from tqcook.synthetic import synthetic
    config = models.tiny('llama').model.config.to_dict()
    return [synthetic(config, s, device='cpu') for s in (None, 'int8_sq')]


def test_time_by_kind(decoders):
    from tqcook import bench, fused, linears
    given = linears.quantize_input
    plain, quantized = (profile.time_by_kind(bench.prefill_step(d, 1, 64), cuda=False) for d in decoders)
    for shares, calls in plain, quantized:
        assert sum(shares.values()) == pytest.approx(1) and min(shares['attention'], shares['products']) > 0
    assert plain[0]['quantization'] == 0 < quantized[0]['quantization'] and plain[1] < quantized[1]
    assert linears.quantize_input is fused.quantize_input is given # as it was before


def test_calls_are_those_of_python():
    torch = pytest.importorskip('torch')
    x = torch.ones(4, 4)
    shares, calls = profile.time_by_kind(lambda: torch.nn.functional.linear(x, x) + 1, cuda=False)
    assert calls == 2 and shares['products'] > 0 and shares['attention'] == 0 # t, mm and more are linear's own


def test_kernels_of_a_gpu_are_told_from_the_rest():
    torch = pytest.importorskip('torch')
    cpu, gpu = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    seen = [('aten::mm', cpu, False), ('nvjet_tst', gpu, False), ('quantize_input', gpu, True), ('Memset', gpu, False)]
    events = [SimpleNamespace(name=n, device_type=t, is_user_annotation=a) for n, t, a in seen]
    kept = profile._kernels(SimpleNamespace(events=lambda: events))
    assert [e.name for e in kept] == ['nvjet_tst', 'Memset']


def test_a_profile(decoders):
    c = Ceilings('this CPU, roughly', 1e10, dict(bf16=5e10, int8=1e11), 1e-5, True)
    work = dict(batches=[1, 2], contexts=[16], prompts=[(1, 32)], steps=2, repeats=2, name='tiny')
    before, after = (profile.profile(d, c, **work) for d in decoders)
    both = before + after
    assert len(both.points) == 6 and not both.missed and both.judged()['points'] == 6
    for p in both.points:
        assert p.measured > 0 < p.predicted and p.calls > 10 and 0 < p.bandwidth_share < 1 > p.rate_share > 0
        assert p.bandwidth_share == pytest.approx(p.bytes / p.measured / 1e10) and p.model == 'tiny'
    assert [p.format for p in both.points] == ['bf16'] * 3 + ['int8_sq'] * 3
    assert [p.dtype for p in both.points] == ['bf16'] * 3 + ['int8'] * 3
    d = both.to_dict()
    assert d['ceilings']['measured'] and set(d['points'][0]) >= {'predicted', 'measured', 'error', 'tokens_per_second'}


def test_a_model_of_the_general_tier():
    pytest.importorskip('torch')
    from tqcook import models
    m = models.tiny('gpt2')
    c = Ceilings('this CPU, roughly', 1e10, dict(bf16=5e10), 1e-5, True)
    found = profile.profile(m, c, batches=[1, 2], contexts=[16], prompts=[(1, 32)], steps=2, repeats=2, name='gpt2')
    assert [(p.phase, p.batch) for p in found.points] == [('decode', 1), ('decode', 2), ('prefill', 1)]
    assert all(p.calls > 10 and p.kinds['products'] > 0 and p.scheme == 'none' for p in found.points)
    far = profile.profile(m, c, batches=[1], contexts=[4096], prompts=[])
    assert 'positions of the model' in far.missed[0] and not far.points


def test_work_that_a_decoder_cannot_do_is_missed_and_told(decoders):
    found = profile.profile(decoders[0], GPU, batches=[1], contexts=[100_000], prompts=[], name='tiny')
    assert not found.points and 'tiny, decode, 1 x 100000 tokens' in found.missed[0]
    assert 'not measured' in found._repr_markdown_()
    with pytest.raises(CookError, match='batches is 0; expected a list, each a whole number, 1 to'):
        profile.profile(decoders[0], GPU, batches=[0])


def test_weights_that_are_widened_first_take_their_time(monkeypatch):
    "On an H100 a prompt of 512 tokens took 30 ms where BF16 took 12: the prediction said 11."
    config = models.shape_config('llama-3.1-8b').to_dict()
    monkeypatch.setattr(profile, '_measured', lambda *a: (.030, {}, 7.))
    step = lambda scheme, phase: profile._point(
        SimpleNamespace(config=config, scheme=scheme, kv='none', fast=True), GPU, '', phase, 1, 512, 1, 1).predicted
    assert step('int8_wo', 'prefill') - step(None, 'prefill') == pytest.approx(4 * 6.98e9 / 4e12, rel=.01)
    assert step('fp8', 'prefill') < step(None, 'prefill') and step('int8_wo', 'decode') < step(None, 'decode')


def test_judged():
    right = Profile(GPU, [point(), point('fp8', measured=.002, predicted=.003)])
    assert right.judged() == dict(points=2, median=.25, worst=.5, pairs=1, right=1)
    wrong = Profile(GPU, [point(), point('fp8', measured=.008, predicted=.002)])
    assert wrong.judged()['right'] == 0 and wrong.gain(wrong.points[1]) == (.5, 2)
    near = Profile(GPU, [point(), point('fp8', measured=.0041, predicted=.002)])
    assert near.judged()['pairs'] == 0 # they differ by less than 10 %
    assert Profile(GPU, []).judged()['points'] == 0


def test_what_the_numbers_say():
    points = [point(), point('fp8', measured=.002), point(batch=64), point('fp8', batch=64, measured=.0025)]
    points += [point(phase='prefill', ops=1e13), point('fp8', 'prefill', measured=.005, ops=1e13)]
    told = profile.says(Profile(GPU, points))
    assert 'moves 4,000 GB/s' in told and 'fewer than 175 operations a byte' in told
    assert 'fp8 pays in decode on m: 1.60 to 2.00 times' in told
    assert 'fp8 does not pay in prefill on m: 0.80 times' in told
    assert 'waits for memory' in told and 'waits for arithmetic' in told and 'near neither' not in told
    idle = profile.says(Profile(GPU, [point(bandwidth_share=.02)]))
    assert 'near neither: its time goes to 7 kernels or calls a layer, 80% of it to products.' in idle
    busy = replace(GPU, note='medians; the load is 9 on 2 cores: other work runs here')
    assert 'While that was measured, the load is 9' in profile.says(Profile(busy, [point()])) and 'While' not in idle


def test_the_figure():
    pytest.importorskip('matplotlib')
    p = Profile(GPU, [point(), point(batch=64), point('fp8', measured=.002), point(phase='prefill', ops=1e13)])
    ax = profile.plot(p).axes[0]
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels == ['m bf16, decode', 'm fp8, decode', 'm bf16, prefill'] and ax.get_title() == 'a GPU'
    roofs = [line for line in ax.lines if line.get_color() == '.5']
    assert [max(r.get_ydata()) for r in roofs] == [7e14, 1.4e15]
    measured = next(line for line in ax.lines if line.get_label() == 'm bf16, decode')
    assert list(measured.get_ydata()) == pytest.approx([1e10 / .004, 64e10 / .004])

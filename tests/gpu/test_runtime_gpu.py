"The runtime on a GPU: parity of every format, odd shapes, architectures, and a timing table."
import statistics
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from small import Windows, rel, tokens
from tqcook import data, export, formats, linears, models, parity, quantize, runtime
from tqcook.device import detect

pytestmark = pytest.mark.gpu
SCHEMES = ['fp8', 'fp8_rowwise', 'int8_sq', 'int8_wo', 'fp8_block', 'int4_awq']


@pytest.fixture(scope='module')
def demo_cuda():
    return models.load('demo', device='cuda')


@pytest.fixture(scope='module')
def text(demo_cuda):
    return data.corpus('code', demo_cuda.tokenizer, context=512, max_windows=4)


@pytest.fixture(scope='module')
def exported(demo_cuda, tmp_path_factory):
    made, calib = {}, data.calibration('code-train', demo_cuda.tokenizer, samples=16, length=256)
    def get(scheme, kv='none'):
        if (scheme, kv) not in made:
            q = quantize.quantize(demo_cuda, calib, scheme, kv=kv, progress=False)
            made[scheme, kv] = export.export(q, tmp_path_factory.mktemp('gpu')/f'{scheme}-{kv}')
        return made[scheme, kv]
    return get


def show(capsys, *lines):
    with capsys.disabled():
        print(*lines, sep='\n')


def report(name, p):
    return (f'{name:24} worst linear {p.worst:.2e}  logits in step {p.logits:.2e} = {p.logits / p.cost:.2f} cost, '
            f'free {p.free:.2e} = {p.free / p.floor:.2f} floor = {p.free / p.cost:.2f} cost, '
            f'lean {p.lean:.2f} ({p.lean_floor:.2f})  {p.arithmetic} {"PASS" if p.passed else p.failures}')


VARIANTS = [*((s, 'none', {}) for s in SCHEMES), ('fp8', 'none', dict(fast_accum=False)),
            ('int8_sq', 'none', dict(activations='token')), ('fp8', 'fp8', {})]


def name(v):
    return v if isinstance(v, str) else '-'.join(map(str, v.values()))


@pytest.mark.parametrize('scheme,kv,kw', VARIANTS, ids=name)
def test_parity(exported, demo_cuda, text, capsys, both, scheme, kv, kw):
    p = parity.parity(*both(exported(scheme, kv), 'cuda', **kw), text, demo_cuda)
    show(capsys, '', report(f'{scheme} {kv} {kw or ""}', p))
    assert p.passed and p.expected == p.linears == 56, p.failures
    assert p.worst > 5e-4 # something was compared


@pytest.mark.parametrize('scheme', SCHEMES)
def test_negative_controls(exported, demo_cuda, text, both, scheme):
    for how, p in parity.negative_controls(*both(exported(scheme), 'cuda'), text, demo_cuda).items():
        assert not p.passed and p.worst > p.bound, how


CASES = [('fp8', 'static'), ('fp8', 'tensor'), ('fp8_rowwise', 'token'), ('int8_sq', 'static'), ('int8_sq', 'token'),
         ('int8_wo', 'none')]


@pytest.mark.parametrize('m,k,n', [(1, 16, 16), (3, 40, 24), (17, 100, 33), (130, 256, 64), (1, 4096, 4096)])
@pytest.mark.parametrize('storage,span', CASES)
@pytest.mark.parametrize('bias', [False, True])
def test_odd_shapes(m, k, n, storage, span, bias):
    "Kernels want multiples of 8 or 16 and more than 16 rows: padding must not show."
    g = torch.Generator('cuda').manual_seed(0)
    x, w = torch.randn(m, k, generator=g, device='cuda').bfloat16(), torch.randn(n, k, generator=g, device='cuda')
    top = 448 if storage.startswith('fp8') else 127
    s = (w.abs().amax() if storage == 'fp8' else w.abs().amax(1)) / top
    q = w / (s if storage == 'fp8' else s[:, None])
    t = dict(weight=formats.quantize_e4m3(q, 1.) if top == 448 else linears.quantize_int8(q, 1.), weight_scale=s)
    if span == 'static':
        t['input_scale'] = x.float().abs().amax() / top
    if storage == 'int8_sq' and span == 'token':
        t['pre_quant_scale'] = torch.rand(k, generator=g, device='cuda') + .5
    if bias:
        t['bias'] = torch.randn(n, generator=g, device='cuda').bfloat16()
    y = runtime.linear_class()(storage, dict(t), span, 'real', torch.bfloat16, True)(x[None])[0]
    assert y.shape == (m, n) and y.dtype == torch.bfloat16
    assert rel(y, linears.reference_linear(storage, x, t, span)) < 4e-3


@pytest.mark.parametrize('scheme', ['fp8', 'int8_sq'])
@pytest.mark.parametrize('arch', list(models.TINY))
def test_architectures(arch, scheme, tmp_path, both):
    base = models.tiny(arch, device='cuda')
    e, ref = both(export.export(quantize.quantize(base, Windows(), scheme, progress=False), tmp_path/'x'), 'cuda')
    p = parity.parity(e, ref, tokens(), base)
    assert p.worst < p.bound and p.linears == p.expected, p.failures # random weights: linear by linear only
    assert runtime.generate(e, [5, 6, 7], 4).ids


def test_weights_stay_small_on_the_gpu(exported, demo_cuda):
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    e = runtime.load(exported('fp8'), device='cuda')
    assert torch.cuda.memory_allocated() - before < 1.1 * e.nbytes < .85 * demo_cuda.nbytes


def test_generation(exported, demo_cuda):
    d = runtime.diverge(demo_cuda, runtime.load(exported('fp8'), device='cuda'), 'import os\n\ndef ', 32)
    assert d.index is None or d.index >= 1
    assert len(d.b.ids) >= 1 and isinstance(d.b.text, str)


# --- how fast


def time_of(f, inner=10, repeats=9):
    "Median over repeats of the mean time of `inner` calls, in microseconds, by CUDA events."
    for _ in range(3):
        f()
    out = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(inner):
            f()
        end.record()
        end.synchronize()
        out.append(start.elapsed_time(end) / inner * 1e3)
    return statistics.median(out)


def cases(m, n, k):
    x, w = torch.randn(m, k, device='cuda').bfloat16(), torch.randn(n, k, device='cuda')
    wb, st, sr, s8 = w.bfloat16(), w.abs().amax() / 448, w.abs().amax(1) / 448, w.abs().amax(1) / 127
    fp8 = dict(weight=formats.quantize_e4m3(w, st), weight_scale=st, input_scale=x.float().abs().amax() / 448)
    row = dict(weight=formats.quantize_e4m3(w, sr[:, None]), weight_scale=sr)
    int8 = dict(weight=linears.quantize_int8(w, s8[:, None]), weight_scale=s8, input_scale=x.float().abs().amax() / 127)
    (xq, sx), (xr, sxr) = linears.quantize_input('fp8', x, fp8), linears.quantize_input('fp8_rowwise', x, row)
    xi = linears.quantize_input('int8_sq', x, int8)[0]
    linear = linears.quantized_linear
    return {'BF16': lambda: torch.nn.functional.linear(x, wb),
            'FP8 product': lambda: linears.fp8_mm(xq, fp8['weight'], sx, st),
            'FP8 slow accum.': lambda: linears.fp8_mm(xq, fp8['weight'], sx, st, fast_accum=False),
            'rowwise product': lambda: linears.fp8_mm(xr, row['weight'], sxr, sr),
            'INT8 product': lambda: linears.int8_mm(xi, int8['weight']), 'FP8 linear': lambda: linear('fp8', x, fp8),
            'rowwise linear': lambda: linear('fp8_rowwise', x, row), 'INT8 linear': lambda: linear('int8_sq', x, int8),
            'INT8 w-only': lambda: linear('int8_wo', x, int8)}


def test_zz_timing_table(capsys):
    "Linears of Llama-3.1-8B's shapes on random data; products alone, and with the input quantized in eager PyTorch."
    shapes = {'qkv': (6144, 4096), 'o': (4096, 4096), 'gate_up': (28672, 4096), 'down': (4096, 14336)}
    rows = []
    for m in (1, 16, 128, 2048, 8192):
        for n, (out, k) in shapes.items():
            c = {name: time_of(f, inner=10 if m <= 2048 else 4) for name, f in cases(m, out, k).items()}
            rows.append((m, n, out, k, c))
            torch.cuda.empty_cache()
    names = list(rows[0][-1])
    head = f'{"M":>5} {"":8}{"N":>6}{"K":>6} ' + ''.join(f'{x:>17}' for x in names)
    lines = [f'{m:5} {n:8}{o:6}{k:6} ' + ''.join(f'{c[x]:10.1f}{c["BF16"] / c[x]:6.2f}x' for x in names)
             for m, n, o, k, c in rows]
    d = detect('cuda')
    show(capsys, '', f'{d.name}, driver {d.driver}, PyTorch {torch.__version__}: microseconds (median of 9, CUDA '
         'events, random data) and speed against BF16.',
         "'product': quantized operands given; 'linear': input quantized in eager PyTorch as the runtime does.",
         head, *lines)
    big = [c for m, n, o, k, c in rows if m == 8192]
    assert statistics.median(c['BF16'] / c['FP8 product'] for c in big) > 1.2 # FP8 tensor cores are in use

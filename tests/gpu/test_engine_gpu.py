"The engine on a GPU: parity of every format, odd shapes, architectures, and a timing table. conftest.py skips or fails without one."
import statistics, sys
from pathlib import Path
import pytest, torch
sys.path.insert(0, str(Path(__file__).parents[1]))
from tqcook import data, formats, linears, parity, runtime, models, export, quantize
from tqcook.device import detect
from test_engine import Windows, rel, tokens

pytestmark = pytest.mark.gpu
SCHEMES = ['fp8', 'fp8_rowwise', 'int8_sq', 'int8_wo', 'fp8_block', 'int4_awq']

@pytest.fixture(scope='module')
def demo_cuda(): return models.load('demo', device='cuda')

@pytest.fixture(scope='module')
def text(demo_cuda): return data.corpus('code', demo_cuda.tokenizer, context=512, max_windows=4)

@pytest.fixture(scope='module')
def cooked(demo_cuda, tmp_path_factory):
    made, calib = {}, data.calibration('code-train', demo_cuda.tokenizer, samples=16, length=256)
    def get(scheme, kv='none'):
        if (scheme, kv) not in made:
            made[scheme, kv] = export.export(quantize.quantize(demo_cuda, calib, scheme, kv=kv, progress=False), tmp_path_factory.mktemp('gpu')/f'{scheme}-{kv}')
        return made[scheme, kv]
    return get

def show(capsys, *lines):
    with capsys.disabled(): print(*lines, sep='\n')

def report(name, p): return (f'{name:24} worst linear {p.worst:.2e}  logits in step {p.logits:.2e} = {p.logits / p.cost:.2f} cost, free {p.free:.2e} = {p.free / p.floor:.2f} floor = {p.free / p.cost:.2f} cost'
                             f'  KL engine {p.kl:.1e} floor {p.kl_floor:.1e} cost {p.kl_cost:.1e}  {"PASS" if p.passed else p.failures}')

@pytest.mark.parametrize('scheme,kw', [*((s, {}) for s in SCHEMES), ('fp8', dict(fast_accum=False)), ('int8_sq', dict(activations='token')), ('fp8', dict(kv='fp8'))],
                         ids=lambda v: v if isinstance(v, str) else '-'.join(map(str, v.values())) or 'plain')
def test_parity(cooked, demo_cuda, text, capsys, scheme, kw):
    kw = dict(kw); path = cooked(scheme, kw.pop('kv', 'none'))
    p = parity.parity(path, text, demo_cuda, device='cuda', **kw)
    show(capsys, '', report(f'{scheme} {kw or ""}', p))
    assert p.passed and p.expected == len(p.linears) == 56, p.failures
    assert p.worst > 5e-4 # something was compared

@pytest.mark.parametrize('scheme', SCHEMES)
def test_negative_controls(cooked, demo_cuda, text, scheme):
    for how, p in parity.negative_controls(cooked(scheme), text, demo_cuda, device='cuda').items():
        assert not p.passed and p.worst > p.bound, how

@pytest.mark.parametrize('m,k,n', [(1, 16, 16), (3, 40, 24), (17, 100, 33), (130, 256, 64), (1, 4096, 4096)])
@pytest.mark.parametrize('layout', ['fp8', 'fp8_dynamic', 'fp8_rowwise', 'int8_sq', 'int8_token', 'int8_wo'])
@pytest.mark.parametrize('bias', [False, True])
def test_odd_shapes(m, k, n, layout, bias):
    "Kernels want multiples of 8 or 16 and more than 16 rows: padding must not show."
    g = torch.Generator('cuda').manual_seed(0)
    x, w = torch.randn(m, k, generator=g, device='cuda').bfloat16(), torch.randn(n, k, generator=g, device='cuda')
    b = torch.randn(n, generator=g, device='cuda').bfloat16() if bias else None
    kind = 'fp8' if layout == 'fp8_dynamic' else 'int8_sq' if layout == 'int8_token' else layout
    top = 448 if kind.startswith('fp8') else 127
    s = (w.abs().amax() if kind == 'fp8' else w.abs().amax(1)) / top
    q = w / (s if kind == 'fp8' else s[:, None])
    t = dict(weight=formats.quantize_e4m3(q, 1.) if top == 448 else q.round().to(torch.int8), weight_scale=s)
    if layout in ('fp8', 'int8_sq'): t['input_scale'] = x.float().abs().amax() / top
    if layout == 'int8_token': t['pre_quant_scale'] = torch.rand(k, generator=g, device='cuda') + .5
    lin = runtime._classes()[0]('x', kind, dict(t), b, 'real', torch.bfloat16, layout == 'int8_token', True)
    y = lin(x[None])[0]
    assert y.shape == (m, n) and y.dtype == torch.bfloat16
    assert rel(y, linears.reference_linear(kind, x, t | dict(bias=b), layout == 'int8_token')) < 4e-3

@pytest.mark.parametrize('scheme', ['fp8', 'int8_sq'])
@pytest.mark.parametrize('arch', list(models.TINY))
def test_architectures(arch, scheme, tmp_path):
    base = models.tiny(arch, device='cuda')
    path = export.export(quantize.quantize(base, Windows(), scheme, progress=False), tmp_path/'x')
    p = parity.parity(path, tokens(), base, device='cuda')
    assert p.worst < p.bound and len(p.linears) == p.expected, p.failures # random weights: linear by linear only
    assert runtime.generate(runtime.load(path, device='cuda'), [5, 6, 7], 4).ids

def test_weights_stay_small_on_the_gpu(cooked, demo_cuda):
    torch.cuda.synchronize(); before = torch.cuda.memory_allocated()
    e = runtime.load(cooked('fp8'), device='cuda')
    assert torch.cuda.memory_allocated() - before < 1.1 * e.nbytes < .85 * demo_cuda.nbytes

def test_generation(cooked, demo_cuda):
    e = runtime.load(cooked('fp8'), device='cuda')
    d = runtime.diverge(demo_cuda, e, 'import os\n\ndef ', 32)
    assert d.index is None or d.index >= 1
    assert len(d.b.ids) >= 1 and isinstance(d.b.text, str)

# --- how fast -----------------------------------------------------------------------------------------------------------------------

def _time(f, inner=10, repeats=9):
    "Median over repeats of the mean time of `inner` calls, in microseconds, by CUDA events."
    for _ in range(3): f()
    out = []
    for _ in range(repeats):
        a, b = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        a.record()
        for _ in range(inner): f()
        b.record(); b.synchronize(); out.append(a.elapsed_time(b) / inner * 1e3)
    return statistics.median(out)

def _cases(m, n, k):
    x, w = torch.randn(m, k, device='cuda').bfloat16(), torch.randn(n, k, device='cuda')
    wb, st, sr = w.bfloat16(), w.abs().amax() / 448, w.abs().amax(1) / 448
    s8 = w.abs().amax(1) / 127
    w8t, w8r, wi = formats.quantize_e4m3(w, st), formats.quantize_e4m3(w, sr[:, None]), (w / s8[:, None]).round().to(torch.int8)
    sx, sxi = x.float().abs().amax() / 448, x.float().abs().amax() / 127
    sxr = x.float().abs().amax(1, keepdim=True) / 448
    xq, xr, xi = formats.quantize_e4m3(x, sx), formats.quantize_e4m3(x, sxr), linears.quantize_int8(x, sxi)
    F = torch.nn.functional
    return {'BF16': lambda: F.linear(x, wb), 'FP8 product': lambda: linears.fp8_mm(xq, w8t, sx, st), 'FP8 slow accum.': lambda: linears.fp8_mm(xq, w8t, sx, st, fast_accum=False),
            'rowwise product': lambda: linears.fp8_mm(xr, w8r, sxr, sr), 'INT8 product': lambda: linears.int8_mm(xi, wi), 'FP8 linear': lambda: linears.fp8_linear(x, w8t, st, sx),
            'rowwise linear': lambda: linears.fp8_rowwise_linear(x, w8r, sr), 'INT8 linear': lambda: linears.int8_linear(x, wi, s8, sxi),
            'INT8 w-only': lambda: linears.int8_weight_only_linear(x, wi, s8)}

def test_zz_timing_table(capsys):
    "Linears of Llama-3.1-8B's shapes on random data; the products alone, and with quantization of the activation in eager PyTorch."
    shapes, rows, names = {'qkv': (6144, 4096), 'o': (4096, 4096), 'gate_up': (28672, 4096), 'down': (4096, 14336)}, [], None
    for m in (1, 16, 128, 2048, 8192):
        for n, (out, k) in shapes.items():
            c = {name: _time(f, inner=10 if m <= 2048 else 4) for name, f in _cases(m, out, k).items()}
            names = list(c); rows.append((m, n, out, k, c))
            torch.cuda.empty_cache()
    head = f'{"M":>5} {"":8}{"N":>6}{"K":>6} ' + ''.join(f'{x:>17}' for x in names)
    lines = [f'{m:5} {n:8}{o:6}{k:6} ' + ''.join(f'{c[x]:10.1f}{c["BF16"] / c[x]:6.2f}x' for x in names) for m, n, o, k, c in rows]
    d = detect('cuda')
    show(capsys, '', f'{d.name}, driver {d.driver}, PyTorch {torch.__version__}: microseconds (median of 9, CUDA events, random data) and speed against BF16.',
         "'product': quantized operands given; 'linear': activation quantized in eager PyTorch as the engine does.", head, *lines)
    big = [c for m, n, o, k, c in rows if m == 8192]
    assert statistics.median(c['BF16'] / c['FP8 product'] for c in big) > 1.2 # FP8 tensor cores are in use

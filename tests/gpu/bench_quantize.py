"""Where the time of quantizing goes, on a GPU: bare forward passes, plain ModelOpt, and tqcook, on one model in memory.

    python tests/gpu/bench_quantize.py    # Llama-3.1-8B's shape, random weights, 512 x 512 tokens
    python tests/gpu/bench_quantize.py --model shape:llama-3.2-1b --samples 128 --no-plain-cold
    python tests/gpu/bench_quantize.py --device cpu --model demo --samples 8 --length 64 --score-windows 2

Prints one line for each measurement as it comes, a table at the end, and writes JSON to --out. Every measurement starts
from the same unquantized weights. `cold` runs are whole: model in memory -> calibrated -> scored on 16 windows ->
checkpoint on disk; the one of plain ModelOpt runs with an empty folder for compiled extensions, as on a new machine.
"""
import argparse
import contextlib
import copy
import gc
import io
import os
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
EXTENSIONS = tempfile.mkdtemp(prefix='tqcook-ext-')
os.environ['TORCH_EXTENSIONS_DIR'] = EXTENSIONS  # empty: nothing compiled beforehand counts

import numpy as np
import torch

a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
a.add_argument('--model', default='shape:llama-3.1-8b')
a.add_argument('--device', default='auto')
a.add_argument('--samples', type=int, default=512)
a.add_argument('--length', type=int, default=512)
a.add_argument('--score-windows', type=int, default=16)
a.add_argument('--plain-batch', type=int, default=8, help='batch of the plain loops')
a.add_argument(
    '--no-plain-cold', action='store_true', help='leave out the cold run of plain ModelOpt (about 90 s for 8 B)'
)
a.add_argument('--out', default='')
args = a.parse_args()
warnings.simplefilter('ignore')

import modelopt.torch.quantization as mtq
from modelopt.torch.export import export_hf_checkpoint

from tqcook import compare, data, export, models, quantize
from tqcook.ranges import run_windows

base = models.load(args.model, device=args.device)
cuda = base.device.kind == 'cuda'
rng = np.random.default_rng(0)
windows = [rng.integers(0, base.vocab_size, args.length) for _ in range(args.samples)]
calib = SimpleNamespace(windows=windows)
ws = [rng.integers(0, base.vocab_size, args.length) for _ in range(args.score_windows)]
judge = data.Corpus(
    ws,
    [np.arange(len(w)) > 0 for w in ws],
    np.arange(len(ws)),
    'random tokens',
    'none',
    base.tokenizer_sha,
    args.length,
    0,
    'disjoint',
    'none',
    1,
)
work = Path(tempfile.mkdtemp(prefix='tqcook-bench-'))
result, peak = {}, {}

def sync():
    if cuda:
        torch.cuda.synchronize()

@contextlib.contextmanager
def clock(name):
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    sync()
    t = time.perf_counter()
    yield
    sync()
    result[name] = round(time.perf_counter() - t, 3)
    if cuda:
        peak[name] = torch.cuda.max_memory_allocated()
    print(f'{name:70s} {result[name]:8.2f} s' + (f'   {peak[name] / 1e9:6.1f} GB' if cuda else ''), flush=True)

def eager_loop(model, head=True):
    f = model if head else model.base_model
    with torch.inference_mode():
        for i in range(0, len(windows), args.plain_batch):
            f(input_ids=torch.from_numpy(np.stack(windows[i:i + args.plain_batch])).to(model.device), use_cache=False)

@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(io.StringIO()):
        yield

print(
    f'{base.name} ({base.weights} weights, {base.n_params / 1e9:.2f} B) on {base.device.name}: '
    f'{args.samples} x {args.length} tokens',
    flush=True,
)

# bare forward passes
if args.samples <= 16:  # warm the libraries up
    eager_loop(SimpleNamespace(base_model=base.model.base_model, device=base.model.device), head=False)
else:
    run_windows(base.model, windows[:16], progress=False)
with clock('bare forward, body, eager, batch of the plain loop'):
    eager_loop(base.model, head=False)
with clock('bare forward, body, eager, our batches'):
    run_windows(base.model, windows, progress=False)
layers = [m for m in base.model.base_model.modules() if isinstance(m, torch.nn.ModuleList)][0]
if cuda:
    for layer in layers:
        layer.compile()
    with clock('bare forward, body, decoder layers compiled, first pass'):
        run_windows(base.model, windows, progress=False)
    with clock('bare forward, body, decoder layers compiled'):
        run_windows(base.model, windows, progress=False)
    for layer in layers:
        layer._compiled_call_impl = None  # back to eager
fastest = min(v for k, v in result.items() if k.startswith('bare') and 'first pass' not in k)

# calibration
def ours(name, scheme, **kw):
    with clock(name):
        q = quantize.quantize(base, calib, scheme, progress=False, **kw)
    result[f'{name}: parts'] = {k: round(v, 3) for k, v in q.seconds.items()} | dict(
        batch=q.report.facts.get('batch_size')
    )
    print('   ', result[f'{name}: parts'], flush=True)
    return q

q = ours('tqcook FP8, calibrate and report', 'fp8')
ranges = {n: (x._amax.float().cpu(), x._amax.dtype) for n, x in q.loaded.model.named_modules() if hasattr(x, '_amax')}
del q
q = ours('tqcook FP8, calibrate and report, second time', 'fp8')
del q
q = ours('tqcook FP8, ranges only', 'fp8', details=False)
del q
sq = ours('tqcook INT8 SmoothQuant, calibrate and report', 'int8_sq')
del sq

model = copy.deepcopy(base.model)
with clock('plain ModelOpt FP8, mtq.quantize'), quiet():
    mtq.quantize(model, mtq.FP8_DEFAULT_CFG, eager_loop)
weights, ulps = True, 0.
for n, x in model.named_modules():
    if not hasattr(x, '_amax'):
        continue
    mine, theirs = ranges[n][0], x._amax.float().cpu()
    if 'weight_quantizer' in n:
        weights &= torch.equal(mine, theirs)
    else:
        # BF16 keeps 8 bits
        ulps = max(ulps, float(((mine - theirs).abs() / 2. ** (torch.floor(torch.log2(theirs)) - 7)).max()))
result['weight ranges equal'], result['activation ranges differ by at most, BF16 ulp'] = bool(weights), ulps
print(f'weight ranges equal: {weights}; activation ranges differ by at most {ulps:g} BF16 ulp', flush=True)
del model

# cold, whole runs
def cold_ours():
    with clock('cold FP8 run, tqcook: calibrate, score, export'):
        t = time.perf_counter()
        q = quantize.quantize(base, calib, 'fp8', progress=False)
        sync()
        t1 = time.perf_counter()
        compare.compare(base, q.loaded, judge, noise_floor='none', progress=False)
        sync()
        t2 = time.perf_counter()
        export.export(q, work/'ours')
    result['cold FP8 run, tqcook: parts'] = dict(
        calibrate=round(t1 - t, 2), score=round(t2 - t1, 2), export=round(time.perf_counter() - t2, 2)
    )
    print('   ', result['cold FP8 run, tqcook: parts'], flush=True)
    result['bytes'] = sum(p.stat().st_size for p in (work/'ours').iterdir())

def cold_plain():
    model = copy.deepcopy(base.model)
    with clock('cold FP8 run, plain ModelOpt: calibrate, score, export'):
        t = time.perf_counter()
        with quiet():
            mtq.quantize(model, mtq.FP8_DEFAULT_CFG, eager_loop)
        sync()
        t1 = time.perf_counter()
        with torch.inference_mode():
            for i in range(0, len(ws), args.plain_batch):  # the extension is compiled by the first of these
                ids = torch.from_numpy(np.stack(ws[i:i + args.plain_batch])).to(model.device)
                for m in (base.model, model):
                    z = m(input_ids=ids, use_cache=False).logits[:, :-1]
                    losses = [torch.nn.functional.cross_entropy(z[r].float(), ids[r, 1:]) for r in range(len(ids))]
                    torch.stack(losses).tolist()  # scoring ends when the numbers are here
        sync()
        t2 = time.perf_counter()
        with quiet():
            export_hf_checkpoint(model, export_dir=work/'plain')
    result['plain ModelOpt compiled an extension'] = bool(os.listdir(EXTENSIONS))
    print('    plain ModelOpt compiled an extension:', bool(os.listdir(EXTENSIONS)), flush=True)
    result['cold FP8 run, plain ModelOpt: parts'] = dict(
        calibrate=round(t1 - t, 2), score=round(t2 - t1, 2), export=round(time.perf_counter() - t2, 2)
    )
    print('   ', result['cold FP8 run, plain ModelOpt: parts'], flush=True)

cold_ours()
if not args.no_plain_cold:
    cold_plain()

# the table
r = {k: v for k, v in result.items() if isinstance(v, float)}
targets = [
    ('FP8 calibration / fastest bare forward', r['tqcook FP8, calibrate and report, second time'] / fastest, 1.5),
    ('FP8 calibration, first time / fastest bare forward', r['tqcook FP8, calibrate and report'] / fastest, 1.5),
    ('INT8 SmoothQuant / fastest bare forward', r['tqcook INT8 SmoothQuant, calibrate and report'] / fastest, 2.5),
    ('plain ModelOpt FP8 / fastest bare forward', r['plain ModelOpt FP8, mtq.quantize'] / fastest, None),
    (
        'what the report adds to calibration',
        r['tqcook FP8, calibrate and report, second time'] / r['tqcook FP8, ranges only'] - 1,
        0.2,
    ),
    ('cold FP8 run, seconds', r['cold FP8 run, tqcook: calibrate, score, export'], 35.0),
]
if not args.no_plain_cold:
    targets.append(
        (
            'cold FP8 run, times faster than plain ModelOpt',
            r['cold FP8 run, plain ModelOpt: calibrate, score, export']
            / r['cold FP8 run, tqcook: calibrate, score, export'],
            -2.0,
        )
    )
def limit(t):
    return '' if t is None else f'<= {t:g}' if t > 0 else f'>= {-t:g}' # a negative target is a lower bound
print(f"\n{'':55s} {'measured':>9s} {'asked':>8s}")
for name, v, t in targets:
    ok = '' if t is None else 'met' if (v <= t if t > 0 else v >= -t) else 'MISSED'
    print(f"{name:55s} {v:9.2f} {limit(t):>8s}  {ok}")
print(f"{'weight ranges equal':55s} {str(weights):>9s}\n{'activation ranges, BF16 ulp':55s} {ulps:9.2g} {'<= 2':>8s}")
if args.out:
    from tqcook.core import environment, write_json
    write_json(
        args.out,
        dict(
            model=base.to_dict(),
            device=base.device.to_dict(),
            environment=environment(),
            samples=args.samples,
            length=args.length,
            seconds=result,
            peak_bytes=peak,
            targets=[dict(name=n, measured=v, asked=limit(t)) for n, v, t in targets],
        ),
    )
shutil.rmtree(work)
shutil.rmtree(EXTENSIONS, ignore_errors=True)

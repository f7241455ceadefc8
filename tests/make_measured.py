"""What the GPU tests measured: `python tests/make_measured.py recipes/gallery/h100 LOG...` reads what they printed.

The figures go into gpu_tests.json of that folder, later logs over earlier ones; make_gallery.py makes tables of them.
"""
import json
import re
import sys
from pathlib import Path

from make_matrix import GALLERY, read

FILE = 'gpu_tests.json'
SHOWN = [(1, 'qkv'), (1, 'gate_up'), (128, 'gate_up'), (2048, 'gate_up'), (8192, 'gate_up'), (8192, 'down')]
KINDS = ['BF16', 'FP8 product', 'INT8 product', 'FP8 linear']
COMPARE = r'^(.+): compare ([\d.]+) s, two bare forward passes ([\d.]+) s, ratio ([\d.]+), extra memory ([\d.]+) GB'
SCORE = r"^(.+): score ([\d.]+) s, lm-eval's arithmetic ([\d.]+) s"
HEAD = r'^(.+), driver (\S+), PyTorch (\S+): microseconds'
PARITY = r'^(\w+) none +worst linear (\S+)'
PRODUCT = r'^ *(\d+) (\w+) +(\d+) +(\d+)((?: +[\d.]+ +[\d.]+x)+)$'


def products(text):
    "The last timing table of a log: [{rows, layer, n, k, microseconds}]."
    found, names = [], []
    for line in text.splitlines():
        if re.match(r' +M +N +K +BF16', line):
            names, found = re.split(r' {2,}', line.strip())[3:], []
        match = re.match(PRODUCT, line)
        if match and names:
            rows, layer, n, k, rest = match.groups()
            times = dict(zip(names, map(float, rest.split()[::2]), strict=True))
            found.append(dict(rows=int(rows), layer=layer, n=int(n), k=int(k), microseconds=times))
    return found


def parsed(text):
    "What the GPU tests printed, as the gallery keeps it; a figure that they did not print is absent."
    found, device = {}, None
    for device, ours, bare, times, more in re.findall(COMPARE, text, re.M):
        found['compare'] = dict(seconds=float(ours), two_forward_passes=float(bare), ratio=float(times))
        found['compare']['extra_bytes'] = round(float(more) * 1e9)
    for device, ours, theirs in re.findall(SCORE, text, re.M):
        found['score'] = dict(seconds=float(ours), lm_eval_arithmetic=float(theirs))
    for device, driver, torch in re.findall(HEAD, text, re.M):
        found |= dict(driver=driver, torch=torch, products=products(text))
    parity = {scheme: float(worst) for scheme, worst in re.findall(PARITY, text, re.M)}
    return found | (dict(device=device) if device else {}) | (dict(parity=parity) if parity else {})


def rate(seconds, base):
    return f'{seconds:.2f} s, {seconds / base:.2f}x'


def quantizing(bench):
    "Rows of tests/gpu/bench_quantize.py: (what, measured, asked)."
    s = bench['seconds']
    bare, ours = s['bare forward, body, decoder layers compiled'], s['cold FP8 run, tqcook: calibrate, score, export']
    plain = s['cold FP8 run, plain ModelOpt: calibrate, score, export']
    extension = s['cold FP8 run, plain ModelOpt: parts']['score']
    fp8, int8 = (s[f'tqcook {name}, calibrate and report'] for name in ('FP8', 'INT8 SmoothQuant'))
    same = 'yes' if s['weight ranges equal'] else 'no'
    apart = s['activation ranges differ by at most, BF16 ulp']
    return [
        ('bare forward pass of 512 x 512 tokens, decoder layers compiled', f'{bare:.2f} s', ''),
        ('FP8 calibration of those tokens, against it', rate(fp8, bare), 'at most 1.5x'),
        ('INT8 SmoothQuant calibration', rate(int8, bare), 'at most 2.5x'),
        ('plain ModelOpt, FP8', rate(s['plain ModelOpt FP8, mtq.quantize'], bare), ''),
        ('FP8 run, model in memory to checkpoint on disk, scored on 16 windows', f'{ours:.1f} s', 'at most 35 s'),
        ('the same with plain ModelOpt, which compiles a CUDA extension while it scores',
         f'{plain:.1f} s, {plain / ours:.2f}x, {extension:.0f} s of it scoring', 'at least 2x ours'),
        ("weight ranges equal to plain ModelOpt's; activation ranges differ by", f'{same}; {apart:.0f} BF16 ulp',
         'yes; at most 2'),
    ]


def judging(found):
    "Rows of the tests that measure: (what, measured, asked)."
    rows = []
    if 'compare' in found:
        c = found['compare']
        what = 'compare of two 8 B models, 48 windows of 2048, noise floor included, against two bare forward passes'
        rows.append((what, f"{c['seconds']:.2f} s, {c['ratio']:.2f}x", 'at most 1.25x'))
        rows.append(('memory beyond the two models', f"{c['extra_bytes'] / 1e9:.1f} GB", 'at most 6 GB'))
    if 'score' in found:
        ours, theirs = found['score']['seconds'], found['score']['lm_eval_arithmetic']
        what = "score of 16 windows of 2048 at 8 B, against lm-eval's arithmetic"
        rows.append((what, f'{ours:.2f} s against {theirs:.2f} s, {ours / theirs:.2f}x', 'at most 1x'))
    for scheme, worst in found.get('parity', {}).items():
        rows.append((f'parity of the runtime with the file, worst linear, {scheme}', f'{worst:.1e}', 'at most 4e-3'))
    return rows


def devices():
    "{device: (what its GPU tests printed, rows)}."
    found = {}
    for path in sorted(GALLERY.glob(f'*/{FILE}'), reverse=True):
        bench = path.with_name('bench_quantize.json')
        figures = read(path)
        found[figures['device']] = figures, (quantizing(read(bench)) if bench.exists() else []) + judging(figures)
    return found


def lines(rows, right=()):
    "A Markdown table of rows of text, its head first."
    rule = ['---:' if i in right else '---' for i in range(len(rows[0]))]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [rows[0], rule, *rows[1:]])


def measured():
    "The first table, and what is to know about each device; empty where nothing was run."
    found = devices()
    asked = {what: limit for _, rows in found.values() for what, _, limit in rows}
    cells = {(device, what): cell for device, (_, rows) in found.items() for what, cell, _ in rows}
    body = [(what, *(cells.get((device, what), '') for device in found), limit) for what, limit in asked.items()]
    notes = [f"- {device}: {figures['source']}." for device, (figures, _) in found.items()]
    return '\n'.join([lines([('what', *found, 'asked'), *body]), '', *notes])


def shown(product):
    "Times of a product as cells, in brackets the speed against BF16."
    times = product['microseconds']
    return [f'{times[k]:.4g}' + (f" ({times['BF16'] / times[k]:.2f}x)" if k != 'BF16' else '') for k in KINDS]


def matmuls():
    "The second table: products at the shapes of Llama-3.1-8B, device under device."
    body = []
    for rows, layer in SHOWN:
        for device, (figures, _) in devices().items():
            for p in figures.get('products', []):
                if (p['rows'], p['layer']) == (rows, layer):
                    body.append((str(rows), f"{layer}, {p['n']} x {p['k']}", device, *shown(p)))
    return lines([('rows', 'layer', 'device', *KINDS), *body], (0, 3, 4, 5, 6))


if __name__ == '__main__':
    path = Path(sys.argv[1])/FILE
    made = read(path) if path.exists() else {}
    for log in sys.argv[2:]:
        made |= parsed(Path(log).read_text(encoding='utf-8'))
    path.write_text(json.dumps(made, indent=1) + '\n', encoding='utf-8')

"""What the gallery measured, format by model and device: quality with its interval, and speed. Empty where nothing ran.

make_gallery.py puts the table into recipes/gallery/README.md.
"""
import json
import re
import sys
from pathlib import Path

from make_table import look

ROOT = Path(__file__).resolve().parent.parent
GALLERY = ROOT/'recipes/gallery'
RATIO, DECODE = 'perplexity ratio', 'tokens/s'
HOW = {  # what was run -> (how near that is to what is served, what stands behind the figure)
    'the exported file, run': (2, ''),
    'fake quantization': (1, ', fake'),
    'the exported file, run on weights alone': (0, ', weights only'),
}


def read(path):
    return json.loads(path.read_text(encoding='utf-8'))


def model_name(name):
    "A model's name without what its file says of itself, so that several runs share a column."
    return re.sub(r'[.,]? ?\(?Q\d.*', '', name)


def text_kind(source):
    "Of a text what the column says: not the version of Python that it came with, nor which half."
    return re.sub(r' \((Python|pydoc).*|, (first|second) half$', '', source)


def quality(ratio, interval, verdict, how, alpha=None):
    "A comparison as a cell."
    low, high = interval
    smoothed = f', SmoothQuant {alpha}' if alpha not in (None, 'off') else ''
    return f'{ratio:.4f} ({low:.4f} to {high:.4f}) {verdict}{HOW[how][1]}{smoothed}'


def compared(part, how):
    "A comparison: (scheme, unit, rank, cell); of several as near to what is served the one on most text counts."
    q = part['quality']
    cell = quality(q['ppl_ratio'], q['ppl_ratio_ci95'], q['verdict'], how, part.get('alpha'))
    return part['scheme'], f"{RATIO}, {text_kind(q['source'])}", (HOW[how][0], q['windows'], -q['kld_mean']), cell


def ran(results):
    "True where the comparison at the top is of the exported file, run, and not of rounded values."
    runtime = results.get('runtime', {})
    if results.get('recipe') == 'choose' or 'served' in results:
        return True
    return 'parity' in runtime and runtime.get('how') != 'fake'


def comparable(results):
    "The variants that stand for their scheme: of this very model, whole, calibrated as one should."
    reference = look(results, 'details.reference')
    for v in results.get('variants', []):
        own = v.get('model') in (None, look(results, 'model.name')) and not v.get('keep')
        if own and v.get('quality') and (reference is None or v['name'] == reference):
            yield v


def rate(scheme, value, base, place=0):
    "A decoding rate: (scheme, unit, rank, cell), with its gain over BF16 where that is known."
    gain = f' ({value / base:.2f}x)' if base and scheme != 'bf16' else ''
    return scheme, DECODE, (place, 0, 0), f'{value:.0f}{gain}'


def decoding(points):
    "{scheme: tokens a second} of one sequence with a BF16 cache at the shorter context."
    return {p['scheme']: p['tokens_per_second'] for p in points
            if (p['what'], p['kv'], p['batch'], p['tokens']) == ('decode', 'none', 1, 512)}


def speeds(results):
    "{model: {scheme: tokens a second}}, as `decoding`, of the recipes that measure it."
    model, speed = look(results, 'model.name', ''), look(results, 'runtime.speed', {})
    found = {model: decoding(speed.get('points', []))}
    if (speed.get('batch'), speed.get('context'), results.get('kv')) == (1, 512, 'none'):
        found[model] = {'bf16': speed['before'], results['scheme']: speed['after']}
    for p in look(results, 'roofline.points', []):
        if (p['phase'], p['kv'], p['batch'], p['context']) == ('decode', 'none', 1, 512):
            scheme = p['scheme'].replace('none', 'bf16')
            found.setdefault(p['model'], {}).setdefault(scheme, p['tokens_per_second'])
    return found


def from_results(path):
    "Comparisons in a run's results, its own and its variants', and decoding rates."
    results = read(path)
    model = look(results, 'model.name')
    mixed = look(results, 'details.choice.chosen.keep') # with layers in BF16 it does not stand for its scheme
    if results.get('quality') and not mixed:
        yield model, *compared(results, 'the exported file, run' if ran(results) else 'fake quantization')
    for v in comparable(results):
        yield model, *compared(v, 'fake quantization')
    for name, rates in speeds(results).items():
        for scheme, value in rates.items():
            yield name, *rate(scheme, value, rates.get('bf16'), 'runtime' in results)


def from_quality(path):
    "Comparisons in a quality.json, on prose."
    found = read(path)
    for row in found['rows']:
        if row['text'] == 'prose':
            how = row['arithmetic']
            cell = quality(row['ratio'], row['ci'], row['verdict'], how)
            yield found['model'], row['scheme'], f'{RATIO}, prose', (HOW[how][0], 0, 0), cell


def from_speed(path):
    "Decoding rates in a speed.json, which come after those of a recipe's run."
    found = read(path)
    rates = decoding(found['points'])
    for scheme, value in rates.items():
        yield found['model'].split(',')[0], *rate(scheme, value, rates['bf16'], -1)


READERS = {'results.json': from_results, 'quality.json': from_quality, 'speed.json': from_speed}


def cells():
    "{(scheme, model, device, unit): cell with its link}; of several the one of the highest rank."
    best = {}
    for path in sorted(p for p in GALLERY.rglob('*.json') if p.name in READERS):
        folder = path.parent.relative_to(GALLERY).as_posix()
        device = folder.split('/')[0].upper()
        for model, scheme, unit, rank, text in READERS[path.name](path):
            key = scheme, model_name(model), device, unit
            value, space, rest = text.partition(' ')
            if key not in best or rank > best[key][0]:
                best[key] = rank, f'[{value}]({folder}){space}{rest}'
    return {key: cell for key, (_, cell) in best.items()}


def matrix():
    "The table: every format, and a column for each model on each device that measured one."
    sys.path.insert(0, str(ROOT))
    from tqcook.schemes import SCHEMES
    found = cells()
    columns = sorted({key[1:] for key in found}, key=lambda c: (c[2] == DECODE, c))
    heads = [f'{model}, {device}: {unit}' for model, device, unit in columns]
    rows = [['format', *heads], ['---'] * (1 + len(heads))]
    rows += [[f'`{s}`', *(found.get((s, *column), '') for column in columns)] for s in ('bf16', *SCHEMES)]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


if __name__ == '__main__':
    print(matrix())

"""What the gallery measured, format by model and device: quality with its interval, and speed. Empty where nothing ran.

make_gallery.py puts the table into recipes/gallery/README.md.
"""
import json
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


def quality(ratio, interval, verdict, how):
    "A comparison as a cell."
    low, high = interval
    return f'{ratio:.4f} ({low:.4f} to {high:.4f}) {verdict}{HOW[how][1]}'


def from_results(path):
    "Comparisons in a run's results: its own, and those of its variants in other schemes."
    results = read(path)
    model = look(results, 'model.name')
    others = [v for v in results.get('variants', []) if v.get('model') == model and v['scheme'] != results['scheme']]
    for part in [results, *others]:
        q = part.get('quality')
        if q:
            how = 'the exported file, run' if {'runtime', 'served'} & set(part) else 'fake quantization'
            cell = quality(q['ppl_ratio'], q['ppl_ratio_ci95'], q['verdict'], how)
            yield model, part['scheme'], RATIO, (HOW[how][0], q['windows']), cell


def from_quality(path):
    "Comparisons in a quality.json, on prose."
    found = read(path)
    for row in found['rows']:
        if row['text'] == 'prose':
            how = row['arithmetic']
            cell = quality(row['ratio'], row['ci'], row['verdict'], how)
            yield found['model'].split(',')[0], row['scheme'], RATIO, (HOW[how][0], 0), cell


def decoding(points):
    "{scheme: tokens a second} of one sequence with a BF16 cache at the shorter context."
    return {p['scheme']: p['tokens_per_second'] for p in points
            if (p['what'], p['kv'], p['batch'], p['tokens']) == ('decode', 'none', 1, 512)}


def from_speed(path):
    "Decoding rates in a speed.json, and how they compare with BF16's."
    found = read(path)
    rates = decoding(found['points'])
    for scheme, rate in rates.items():
        gain = '' if scheme == 'bf16' else f" ({rate / rates['bf16']:.2f}x)"
        yield found['model'].split(',')[0], scheme, DECODE, (0, 0), f'{rate:.0f}{gain}'


READERS = {'results.json': from_results, 'quality.json': from_quality, 'speed.json': from_speed}


def cells():
    "{(scheme, model, device, unit): cell with its link}; of several the one nearest to what is served, on most text."
    best = {}
    for path in sorted(p for p in GALLERY.rglob('*.json') if p.name in READERS):
        folder = path.parent.relative_to(GALLERY).as_posix()
        device = folder.split('/')[0].upper()
        for model, scheme, unit, rank, text in READERS[path.name](path):
            key = scheme, model, device, unit
            value, space, rest = text.partition(' ')
            if key not in best or rank > best[key][0]:
                best[key] = rank, f'[{value}]({folder}){space}{rest}'
    return {key: cell for key, (_, cell) in best.items()}


def matrix():
    "The table: every format, and a column for each model on each device that measured one."
    sys.path.insert(0, str(ROOT))
    from tqcook.schemes import SCHEMES
    found = cells()
    columns = sorted({key[1:] for key in found}, key=lambda c: (c[2] != RATIO, c))
    heads = [f'{model}, {device}: {unit}' for model, device, unit in columns]
    rows = [['format', *heads], ['---'] * (1 + len(heads))]
    rows += [[f'`{s}`', *(found.get((s, *column), '') for column in columns)] for s in ('bf16', *SCHEMES)]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in rows)


if __name__ == '__main__':
    print(matrix())

"""What finished runs found, as a Markdown table: `python tests/make_table.py runs` (a folder, searched, or several).

GPU jobs put it on their summary page.
"""
import json
import sys
from pathlib import Path

COLUMNS = ['run', 'size', 'model', 'scheme', 'device', 'perplexity', 'ratio (95 % interval)', 'mean KLD', 'verdict',
           'weights', 'seconds', 'skipped']


def look(results, path, default=None):
    "The value at a dotted path, `default` where a key is missing."
    for key in path.split('.'):
        results = results.get(key) if isinstance(results, dict) else None
    return default if results is None else results


def number(value, form):
    return '' if value is None else format(value, form)


def ratio(results):
    value, interval = look(results, 'quality.ppl_ratio'), look(results, 'quality.ppl_ratio_ci95')
    return '' if value is None or interval is None else '{:.4f} ({:.4f} to {:.4f})'.format(value, *interval)


def change(results, path, form):
    "Before and after, as far as they are known."
    pair = [look(results, p) for p in path]
    return ' → '.join(number(v, form) for v in pair if v is not None)


def row(name, results):
    "One line of the table."
    sizes = [look(results, f'size_bytes.{k}') for k in ('base', 'quantized')]
    return [
        name,
        look(results, 'size', ''),
        look(results, 'model.name', '') + (', random weights' if look(results, 'model.weights') == 'random' else ''),
        look(results, 'scheme', ''),
        look(results, 'environment.device.name', ''),
        change(results, ('quality.ppl_base', 'quality.ppl_quant'), '.3f'),
        ratio(results),
        number(look(results, 'quality.kld_mean'), '.5f'),
        look(results, 'quality.verdict', ''),
        ' → '.join(f'{size / 1e6:.1f} MB' for size in sizes if size),
        number(look(results, 'seconds.total'), '.0f'),
        ', '.join(s['name'] for s in results.get('stages', []) if s['status'] == 'skipped'),
    ]


def table(folders):
    "The table of all runs below these folders: finished ones by their results, the others as failed."
    rows = []
    for folder in map(Path, folders):
        for path in sorted([*folder.rglob('results.json'), *folder.rglob('failed.ipynb')]):
            name = path.parent.relative_to(folder).as_posix()
            if path.name == 'results.json':
                rows.append(row(name, json.loads(path.read_text(encoding='utf-8'))))
            elif not (path.parent/'results.json').exists():
                rows.append([name, '', 'failed: see failed.ipynb'] + [''] * (len(COLUMNS) - 3))
    lines = [COLUMNS, ['---'] * len(COLUMNS), *rows]
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in lines) if rows else 'No run was found.'


if __name__ == '__main__':
    print(table(sys.argv[1:]))

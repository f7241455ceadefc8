"""The gallery: `python tests/make_gallery.py runs/fp8 recipes/gallery/h200/01_fp8` takes a finished run in.

Numbers, figures, the report and the executed notebook are kept, the checkpoint, which can be made again, is not.
The tables in recipes/gallery/README.md are written anew, without arguments that alone.
"""
import json
import shutil
import sys
from pathlib import Path

from make_matrix import GALLERY, ROOT, decoding, matrix
from make_table import look, number, ratio

COLUMNS = ['run', 'model', 'scheme', 'device', 'torch, transformers, ModelOpt', 'text', 'outcome']
PACKAGES = 'torch', 'transformers', 'modelopt'
END = '<!-- end of table -->'


def public(path):
    "The text of a file; where the checkout lay is nobody's business."
    return path.read_text(encoding='utf-8').replace(str(ROOT), '/path/to/tqcook')


def quiet(cell):
    "A code cell without counters and noise; other cells as they are."
    cell['metadata'] = {k: v for k, v in cell['metadata'].items() if k == 'tags'}
    if cell['cell_type'] == 'code':
        outputs = [o for o in cell['outputs'] if o.get('name') != 'stderr']
        for output in outputs:
            if 'execution_count' in output:
                output['execution_count'] = None
        cell |= {'execution_count': None, 'outputs': outputs}
    return cell


def take(run, dest):
    "Copy what the gallery keeps of a run; leaves with a message when the run did not finish."
    run, dest = Path(run), Path(dest)
    if not (run/'results.json').exists():
        sys.exit(f'{run} has no results.json: only finished runs go into the gallery')
    shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir(parents=True)
    for name in 'results.json', 'report.html':
        if (run/name).exists():
            (dest/name).write_text(public(run/name), encoding='utf-8')
    if (run/'figures').is_dir():
        shutil.copytree(run/'figures', dest/'figures')
    nb = json.loads(public(run/'executed.ipynb'))
    nb['metadata'] = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    nb['cells'] = [quiet(cell) for cell in nb['cells']]
    text = json.dumps(nb, indent=1, ensure_ascii=False)
    (dest/'executed.ipynb').write_text(text + '\n', encoding='utf-8')


def headline(results):
    "The figure that a reader looks for: the verdict with its interval, or what else the run was about."
    if look(results, 'quality.verdict'):
        return f"{look(results, 'quality.verdict')}, perplexity times {ratio(results)}"
    found = [look(results, f'size_bytes.{k}') for k in ('base', 'quantized')]
    sizes = [number(size / 1e6, '.1f') for size in found if size]
    done = sum(s['status'] == 'ran' for s in results.get('stages', []))
    weights = f"{' to '.join(sizes)} MB, " if sizes else ''
    return f"{weights}{done} stages ran, {len(results.get('stages', [])) - done} were skipped"


def row(path):
    "A run of the gallery as a line of its table."
    results = json.loads(path.read_text(encoding='utf-8'))
    folder = path.parent.relative_to(GALLERY).as_posix()
    versions = [look(results, f'environment.{k}', '') for k in PACKAGES]
    random = ', random weights' if look(results, 'model.weights') == 'random' else ''
    sha = look(results, 'quality.sha256', '')
    return [
        f'[{folder}]({folder})',
        look(results, 'model.name', '') + random,
        look(results, 'scheme', ''),
        look(results, 'environment.device.name', ''),
        ', '.join(versions),
        f"{look(results, 'quality.source')}, {sha[:8]}" if sha else '',
        headline(results),
    ]


def measured(path):
    "Figures that programs measured with a recipe's functions, as a line of the same table."
    found = json.loads(path.read_text(encoding='utf-8'))
    folder = path.parent.relative_to(GALLERY).as_posix()
    if 'points' in found:
        rates = decoding(found['points'])
        outcome = f"one sequence: {rates['fp8']:.0f} tokens/s in FP8, {rates['bf16']:.0f} in BF16"
        schemes = rates
    else:
        schemes = {r['scheme'] for r in found['rows']}
        outcome = f'{len(schemes)} formats judged, each with its interval'
    versions = found['versions']
    return [
        f'[{folder}]({folder})',
        found['model'],
        f'{len(schemes)} of them',
        found['device'].split(',')[0],
        ', '.join(versions[k] for k in PACKAGES if k in versions),
        found.get('evaluation', ''),
        outcome,
    ]


def table():
    runs = [row(path) for path in GALLERY.rglob('results.json')]
    others = [measured(path) for name in ('speed.json', 'quality.json') for path in GALLERY.rglob(name)]
    rows = sorted(runs + others)
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in [COLUMNS, ['---'] * len(COLUMNS), *rows])


def readme():
    "The gallery's page with its tables as they should be."
    text = (GALLERY/'README.md').read_text(encoding='utf-8')
    for name, made in ('table', table()), ('matrix', matrix()):
        begin, rest = text.split(f'<!-- {name}: make_gallery.py -->\n')
        text = f'{begin}<!-- {name}: make_gallery.py -->\n\n{made}\n\n{rest[rest.index(END):]}'
    return text


if __name__ == '__main__':
    if sys.argv[1:]:
        take(*sys.argv[1:3])
    (GALLERY/'README.md').write_text(readme(), encoding='utf-8')

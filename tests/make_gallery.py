"""The gallery: `python tests/make_gallery.py runs/fp8 recipes/gallery/h200/01_fp8` takes a finished run in.

Numbers, figures, the report and the executed notebook are kept, the checkpoint, which can be made again, is not.
The tables in recipes/gallery/README.md are written anew, without arguments that alone.
"""
import json
import re
import shutil
import sys
from pathlib import Path

from make_matrix import GALLERY, ROOT, decoding, matrix, model_name
from make_measured import matmuls, measured
from make_table import look, number, ratio
from tqcook.recipe import MIME

COLUMNS = ['run', 'model', 'scheme', 'device', 'torch, transformers, ModelOpt', 'text', 'outcome']
PACKAGES = 'torch', 'transformers', 'modelopt'
END = '<!-- end of table -->'


def public(path):
    "The text of a file, without links that led elsewhere from the recipe; where the checkout lay is nobody's business."
    there = r'(?:gallery/|\.\./nbs/|\d\d_)'
    text = re.sub(rf'\[([^][\n]*)\]\({there}[^)\n]*\)', r'\1', path.read_text(encoding='utf-8'))
    text = re.sub(rf'<a href="{there}[^"]*">(.*?)</a>', r'\1', text)
    return text.replace(str(ROOT), '/path/to/tqcook')


def quiet(cell):
    "A code cell without counters and noise; other cells as they are."
    cell['metadata'] = {k: v for k, v in cell['metadata'].items() if k == 'tags'}
    if cell['cell_type'] == 'code':
        outputs = [o for o in cell['outputs'] if o.get('name') != 'stderr']
        for output in outputs:
            output.get('data', {}).pop(MIME, None) # results.json holds the same
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


def verdict(results):
    "The verdict with its interval, and what else a recipe found out about its format."
    said = f"{look(results, 'quality.verdict')}, perplexity times {ratio(results)}"
    if results['recipe'] == 'choose':
        best = look(results, 'details.choice.chosen')
        return f"{best['name']}, {best['bits']:.2f} bits a weight: {said}"
    if results['recipe'] == 'calibration_data':
        return f'{said}; {worse(results)}'
    if results['recipe'] == 'blackwell':
        costs = [(v['scheme'], look(v, 'quality.ppl_ratio', 1)) for v in results['variants']]
        said += '; of rounded values ' + ', '.join(f'{cost - 1:+.1%} in {scheme}' for scheme, cost in costs)
    return said


def speed(results):
    "Decoding before and after, of the recipes that say it in passing."
    before, after = (look(results, f'runtime.speed.{k}') for k in ('before', 'after'))
    return f'; {after:.0f} tokens/s, {before:.0f} in BF16' if before else ''


def worse(results):
    "How many calibration texts were measurably worse than the reference."
    tried = [v['difference']['ci95'][0] > 0 for v in results['variants'] if 'difference' in v]
    return f'{sum(tried)} of {len(tried)} calibrations measurably worse than the reference'


def predictions(results):
    "How far predictions were off, and what the format gained in a decode step."
    times = {(p['batch'], p['context'], p['scheme']): p['measured'] for p in look(results, 'roofline.points', [])
             if (p['model'], p['phase'], p['kv']) == (look(results, 'model.name'), 'decode', 'none')}
    scheme = results.get('scheme')
    gains = [times[k[:2] + ('none',)] / t for k, t in times.items() if k[2] == scheme and k[:2] + ('none',) in times]
    judged = look(results, 'roofline.judged')
    off = "{points} predictions off by {median:.0%} in the median, {worst:.0%} at worst"
    said = [off.format(**judged)] if judged else []
    said += [f'{scheme} decodes {min(gains):.2f} to {max(gains):.2f} times as fast as BF16'] if gains else []
    return '; '.join(said)


def one_sequence(rates):
    "Decoding rates in a sentence: BF16's and the fastest."
    best = max(rates, key=rates.get)
    return f"one sequence: {rates[best]:.0f} tokens/s in {best}, {rates['bf16']:.0f} in bf16"


def work(results):
    "What a run without a verdict did."
    found = [look(results, f'size_bytes.{k}') for k in ('base', 'quantized')]
    sizes = [number(size / 1e6, '.1f') for size in found if size]
    stages = results.get('stages', [])
    done = sum(s['status'] == 'ran' for s in stages)
    kept = look(results, 'details.rungs', {}).get('base and file')
    file = f"the file: perplexity times {kept['ppl_ratio']:.4f}; " if kept else ''
    weights = f"{' to '.join(sizes)} MB, " if sizes else ''
    none = 'nothing stayed inside the budget; ' if results['recipe'] == 'choose' else ''
    return f'{none}{file}{weights}{done} stages ran, {len(stages) - done} were skipped'


def headline(results):
    "The figure that a reader looks for: the verdict with its interval, or what else the run was about."
    if results['recipe'] == 'speed':
        return one_sequence(decoding(look(results, 'runtime.speed.points', [])))
    if results['recipe'] == 'bandwidth':
        return predictions(results)
    found = verdict(results) if look(results, 'quality.verdict') else work(results)
    return found + speed(results)


def schemes(results):
    "The format of a run, or how many it measured."
    many = {p['scheme'] for p in look(results, 'runtime.speed.points', [])}
    return results.get('scheme') or (f'{len(many)} of them' if many else '')


def row(path):
    "A run of the gallery as a line of its table."
    results = json.loads(path.read_text(encoding='utf-8'))
    folder = path.parent.relative_to(GALLERY).as_posix()
    versions = [look(results, f'environment.{k}', '') for k in PACKAGES]
    random = ', random weights' if look(results, 'model.weights') == 'random' else ''
    sha = look(results, 'quality.sha256', '')
    return [
        f'[{folder}]({folder})',
        model_name(look(results, 'model.name', '')) + random,
        schemes(results),
        look(results, 'environment.device.name', ''),
        ', '.join(versions),
        f"{look(results, 'quality.source')}, {sha[:8]}" if sha else '',
        headline(results),
    ]


def program(path):
    "Figures that programs measured with a recipe's functions, as a line of the same table."
    found = json.loads(path.read_text(encoding='utf-8'))
    folder = path.parent.relative_to(GALLERY).as_posix()
    if 'points' in found:
        rates = decoding(found['points'])
        outcome, formats = one_sequence(rates), rates
    else:
        formats = {r['scheme'] for r in found['rows']}
        outcome = f'{len(formats)} formats judged, each with its interval'
    versions = found['versions']
    return [
        f'[{folder}]({folder})',
        found['model'],
        f'{len(formats)} of them',
        found['device'].split(',')[0],
        ', '.join(versions[k] for k in PACKAGES if k in versions),
        found.get('evaluation', ''),
        outcome,
    ]


def table():
    runs = [row(path) for path in GALLERY.rglob('results.json')]
    others = [program(path) for name in ('speed.json', 'quality.json') for path in GALLERY.rglob(name)]
    rows = sorted(runs + others)
    return '\n'.join('| ' + ' | '.join(cells) + ' |' for cells in [COLUMNS, ['---'] * len(COLUMNS), *rows])


def readme():
    "The gallery's page with its tables as they should be."
    text = (GALLERY/'README.md').read_text(encoding='utf-8')
    for name, made in dict(table=table(), matrix=matrix(), measured=measured(), products=matmuls()).items():
        begin, rest = text.split(f'<!-- {name}: make_gallery.py -->\n')
        text = f'{begin}<!-- {name}: make_gallery.py -->\n\n{made}\n\n{rest[rest.index(END):]}'
    return text


if __name__ == '__main__':
    if sys.argv[1:]:
        take(*sys.argv[1:3])
    (GALLERY/'README.md').write_text(readme(), encoding='utf-8')

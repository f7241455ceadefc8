"""A finished run's small files for recipes/gallery: `python tests/make_gallery.py runs/fp8 recipes/gallery/h200/01_fp8`.

Numbers, figures and the executed notebook are kept; the checkpoint, which is large and can be made again, is not."""
import json, shutil, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def _text(path): return path.read_text().replace(str(ROOT), '/path/to/tqcook') # where the checkout lay is nobody's business

def gallery(run, dest):
    "Copy results.json, figures and a notebook without bulky outputs; raises when the run did not finish."
    run, dest = Path(run), Path(dest)
    if not (run/'results.json').exists(): sys.exit(f'{run} has no results.json: only finished runs go into the gallery')
    shutil.rmtree(dest, ignore_errors=True); dest.mkdir(parents=True)
    (dest/'results.json').write_text(_text(run/'results.json'))
    if (run/'figures').is_dir(): shutil.copytree(run/'figures', dest/'figures')
    nb = json.loads(_text(run/'executed.ipynb'))
    nb['metadata'] = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    for c in nb['cells']:
        c['metadata'] = {k: v for k, v in c['metadata'].items() if k == 'tags'}
        if c['cell_type'] == 'code':
            c['execution_count'] = None
            c['outputs'] = [o for o in c['outputs'] if not (o['output_type'] == 'stream' and o.get('name') == 'stderr')]
            for o in c['outputs']:
                if 'execution_count' in o: o['execution_count'] = None
    (dest/'executed.ipynb').write_text(json.dumps(nb, indent=1, ensure_ascii=False) + '\n')

if __name__ == '__main__': gallery(*sys.argv[1:3])

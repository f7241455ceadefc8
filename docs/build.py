"""The site: `make site` assembles a tree of pages below _docs/ and has Sphinx draw it, without a network.

Pages are the README, the notebooks with their stored outputs, the gallery, and the recipes as the gallery ran them.
"""
import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GALLERY = 'h100', 'h200', 'cpu'  # a recipe is shown as it ran on the first of these


REMEMBER = '''
- Recipes get something done: `tqcook list`, `tqcook run NAME -p key=value`. Notebooks explain the library.
- An unknown parameter is an error before anything runs.
- Exit codes: 0 done or PASS, 1 error, 2 usage, 10 FAIL, 11 INCONCLUSIVE.
- What a run found is in `results.json`. Fake quantization, random weights and skipped stages are called that.
- The library is `tqcook/`, exported from `nbs/`: edit notebooks, then `make prepare`.
'''


def notebook(path):
    return json.loads(path.read_text(encoding='utf-8'))


def title(path):
    "(title, the line below it) of a notebook."
    prose = [''.join(c['source']) for c in notebook(path)['cells'] if c['cell_type'] == 'markdown']
    lines = '\n'.join(prose).splitlines()
    first = next((line[2:] for line in lines if line.startswith('# ')), path.stem)
    return first, next((line[2:] for line in lines if line.startswith('> ')), '')


def wide(outputs):
    "Whether a figure among them loses its small type when it is drawn as narrow as a phone."
    drawn = [''.join(o['data']['image/png']) for o in outputs if 'image/png' in o.get('data', {})]
    return any(int.from_bytes(base64.b64decode(png[:32])[16:20]) > 500 for png in drawn)  # where PNG has its width


def card(output):
    "A model card's front matter as code: Markdown would take it for a heading between lines."
    data = output.get('data', {})
    text = re.sub(r'\A---\n(.*?\n)---\n', r'```yaml\n\1```\n', ''.join(data.get('text/markdown', '')), flags=re.S)
    return output | {'data': data | {'text/markdown': text}} if text else output


def shown(cell, folder=ROOT, heading=''):
    "The cell as a page has it, None when it is hidden; nbdev's directives are for nbdev."
    source = ''.join(cell['source'])
    words = re.findall(r'^#\|\s*(.+?)\s*$', source, re.M)
    if 'hide' in words:
        return None
    if cell['cell_type'] != 'code':
        return cell | {'source': linked(source, folder)}
    outputs = [card(o) for o in cell['outputs'] if o.get('name') != 'stderr']
    image = {'alt': f'Figure: {heading}', 'classes': 'wide' if wide(outputs) else 'narrow'}
    tags = ['remove-input'] if 'echo: false' in words else []
    metadata = {'tags': tags, 'mystnb': {'image': image}}
    return cell | {'source': re.sub(r'^#\|.*\n?', '', source, flags=re.M), 'metadata': metadata, 'outputs': outputs}


def named(cells, run):
    "The cells, their title with the run's name: in a search, runs of one recipe would look alike."
    for cell in cells:
        text, count = re.subn(r'(?m)^# .+', rf'\g<0> ({run})', ''.join(cell['source']), count=1)
        if cell['cell_type'] == 'markdown' and count:
            return [c | {'source': text} if c is cell else c for c in cells]
    return cells


def page(path, target, run=''):
    "Write a notebook's page, of a run in the gallery or not; a figure is called by the heading above it."
    nb = notebook(path)
    heading, cells = '', []
    for cell in named(nb['cells'], run) if run else nb['cells']:
        if cell['cell_type'] == 'markdown':
            heading = (re.findall(r'(?m)^#+ (.+)', ''.join(cell['source'])) or [heading])[-1]
        cells.append(shown(cell, path.parent, heading))
    nb['cells'] = [c for c in cells if c is not None]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(nb), encoding='utf-8')


def executed(recipe):
    "The notebook of the recipe that shows most: the gallery's, or the recipe itself."
    ran = [ROOT/'recipes/gallery'/device/recipe.stem/'executed.ipynb' for device in GALLERY]
    return next((path for path in ran if path.exists()), recipe)


def runs():
    "The pages of the gallery: of each run its description, or else its notebook."
    folders = sorted(p for p in (ROOT/'recipes/gallery').glob('*/*') if p.is_dir())
    found = [next((p/name for name in ('README.md', 'executed.ipynb') if (p/name).exists()), None) for p in folders]
    return [path for path in found if path]


def linked(text, folder):
    "Markdown whose links to a run's folder lead to the page that the folder has here."
    pages = {path.parent: path.name for path in runs()} | {ROOT/'recipes/gallery': 'README.md'}

    def whole(match):
        name = pages.get((folder/match[1]).resolve())
        return f']({match[1]}/{name})' if name else match[0]
    return re.sub(r'\]\(((?!https?:|#)[^)\s]+)\)', whole, text)


def copied(path, source, more=''):
    "Put a page of Markdown where it stands in the repository."
    target = source/path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding='utf-8')
    target.write_text(linked(text, path.parent) + more, encoding='utf-8')
    for link in re.findall(r'\]\(([\w./-]+)\)', text):
        file = path.parent/link
        if file.is_file() and file.suffix not in ('.md', '.ipynb'):
            (target.parent/link).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target.parent/link)


def toctree(caption, names):
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', '', *names, '```', ''])


def entry(path):
    "A notebook's line in llms.txt."
    name, what = title(path)
    return f'- [{name}]({path.relative_to(ROOT).with_suffix(".html")}): {what}'


def llms(pages):
    "What a language model needs to find its way: a title, a summary, a list of pages."
    lines = ['# tqcook', '', f"> {title(ROOT/'nbs/index.ipynb')[1]}"]
    lines += REMEMBER.rstrip('\n').split('\n')
    for caption, paths in pages.items():
        lines += ['', f'## {caption}', '', *map(entry, paths)]
    lines += ['', '## Measured', '', '- [Gallery](recipes/gallery/README.html): every format by model and device']
    return '\n'.join(lines) + '\n'


def assemble(source):
    "Write all pages below `source`, in the folders that they have in the repository, so that links stay true."
    shutil.rmtree(source, ignore_errors=True)
    notebooks = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
    recipes = sorted((ROOT/'recipes').glob('[0-9]*.ipynb'))
    for path in notebooks:
        page(path, source/'nbs'/path.name)
    for path in recipes:
        page(executed(path), source/'recipes'/path.name)
    shutil.copytree(ROOT/'recipes/gallery', source/'recipes/gallery', ignore=shutil.ignore_patterns('*.ipynb'))
    for path in runs():
        if path.suffix == '.md':
            copied(path, source)
        else:
            page(path, source/path.relative_to(ROOT), path.parent.relative_to(ROOT/'recipes/gallery').as_posix())
    gallery = ROOT/'recipes/gallery'
    names = [(path.parent.relative_to(gallery).as_posix(), path.stem) for path in runs()]
    copied(gallery/'README.md', source, '\n' + toctree('Runs', [f'{name} <{name}/{stem}>' for name, stem in names]))
    others = [name for name in ('CONTRIBUTING.md', 'CHANGELOG.md') if (ROOT/name).exists()]
    for name in ['README.md', *others]:
        copied(ROOT/name, source)
    (source/'README.md').rename(source/'index.md')
    readme = re.sub(r'^<!--.*?-->\n', '', (source/'index.md').read_text(encoding='utf-8'))
    trees = [
        toctree('Recipes', [f'recipes/{p.stem}' for p in recipes] + ['recipes/gallery/README']),
        toctree('Notebooks', [f'nbs/{p.stem}' for p in notebooks]),
        toctree('Project', [Path(name).stem for name in others]),
    ]
    (source/'index.md').write_text('\n'.join([readme, *trees]), encoding='utf-8')
    return llms({'Recipes': recipes, 'Notebooks': notebooks})


def main(args, out=ROOT/'_docs'):
    "Build the site in `out`/site; returns the exit code."
    source, site = out/'source', out/'site'
    text = assemble(source)
    shutil.rmtree(site, ignore_errors=True)
    folders = ['-c', str(ROOT/'docs'), str(source), str(site)]
    code = subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-b', 'html', *args, *folders]).returncode
    if code == 0:
        (site/'llms.txt').write_text(text, encoding='utf-8')
        print(f'{site}/index.html')
    return code


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))

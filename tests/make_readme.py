"""README.md from nbs/index.ipynb, and the table of recipes/index.ipynb: `python tests/make_readme.py` writes them.

Cells marked `echo: false` hold what the gallery and the notebooks say; they are run anew each time, and take no time.
tests/test_readme.py compares.
"""
import ast
import contextlib
import json
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
INDEX, LAUNCHER = ROOT/'nbs/index.ipynb', ROOT/'recipes/index.ipynb'
REPAIRS = [
    (r'```(python)?\n\s*```\n', ''),  # cells whose source is hidden
    (r'(?m)^```\n(?=from |import )', '```python\n'),
    (r'\]\(\.\./', ']('),  # links are relative to nbs/ in the notebook
    (r'\]\((?!https?:|#|[\w.-]+/)([\w.-]+\.ipynb)', r'](nbs/\1'),
    (r'\n{3,}', '\n\n'),
]


def silent(cell):
    "True for a cell that is shown by its output alone."
    return cell['cell_type'] == 'code' and bool(re.search(r'(?m)^#\|\s*echo:\s*false', ''.join(cell['source'])))


def value(source, names):
    "Run a cell; the value of its last line."
    *body, last = ast.parse(source).body
    exec(compile(ast.Module(body, []), '<cell>', 'exec'), names)
    return eval(compile(ast.Expression(last.value), '<cell>', 'eval'), names)


def refreshed():
    "The index as JSON, with what its silent cells say today."
    sys.path.insert(0, str(ROOT))
    nb, names = json.loads(INDEX.read_text(encoding='utf-8')), {}
    with contextlib.chdir(INDEX.parent):
        for cell in filter(silent, nb['cells']):
            made = value(''.join(cell['source']), names)
            data = {'text/markdown': str(made).splitlines(True), 'text/plain': [repr(made)]}
            cell['outputs'] = [dict(data=data, execution_count=None, metadata={}, output_type='execute_result')]
    return nb


def shown(cell):
    "The cell as the README has it, None when it is left out."
    if cell.cell_type != 'code':
        return cell
    lines = cell.source.splitlines()
    if any(re.match(r'#\|\s*hide\s*$', line) for line in lines):
        return None
    cell.source = '' if silent(cell) else '\n'.join(line for line in lines if not line.startswith('#|'))
    for output in cell.outputs:
        output.get('data', {}).pop('image/png', None)  # figures are linked from the gallery, not embedded
    return cell


def readme():
    "The README's text. What takes time is not run: its outputs are those stored in the notebook."
    from nbconvert import MarkdownExporter
    nb = nbformat.reads(json.dumps(refreshed()), as_version=4)
    nb.cells = [cell for cell in map(shown, nb.cells) if cell is not None]
    exporter = MarkdownExporter(exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(nb)
    for pattern, replacement in REPAIRS:
        body = re.sub(pattern, replacement, body)
    return '<!-- made from nbs/index.ipynb by `make prepare`: edit that -->\n\n' + body.strip() + '\n'


def launcher():
    "recipes/index.ipynb as JSON, its table made from the recipes."
    sys.path.insert(0, str(ROOT))
    from tqcook.core import Markdown, md_table
    from tqcook.recipe import read_recipe
    found = [read_recipe(path) for path in sorted((ROOT/'recipes').glob('[0-9]*.ipynb'))]
    rows = [(Markdown(f'[{r.name}]({r.path.name})'), r.purpose) for r in found]
    nb = json.loads(LAUNCHER.read_text(encoding='utf-8'))
    (cell,) = [c for c in nb['cells'] if c['id'] == 'recipes']
    cell['source'] = str(md_table(rows, ['recipe', 'what it does'])).splitlines(True)
    return nb


def written(nb):
    "A notebook as nbdev writes it."
    return json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + '\n'


def write_readme():
    sys.path.insert(0, str(ROOT))
    from tqcook.core import atomic_write
    atomic_write(INDEX, written(refreshed()))
    atomic_write(LAUNCHER, written(launcher()))
    atomic_write(ROOT/'README.md', readme())


if __name__ == '__main__':
    write_readme()

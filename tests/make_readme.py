"README.md from nbs/index.ipynb: `python tests/make_readme.py` writes it, tests/test_readme.py compares."
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
REPAIRS = [
    (r'```(python)?\n\s*```\n', ''),  # cells whose source is hidden
    (r'(?m)^```\n(?=from |import )', '```python\n'),
    (r'\]\(\.\./', ']('),  # links are relative to nbs/ in the notebook
    (r'\]\((?!https?:|#|[\w.-]+/)([\w.-]+\.ipynb)', r'](nbs/\1'),
    (r'\n{3,}', '\n\n'),
]


def shown(cell):
    "The cell as the README has it, None when it is left out."
    if cell.cell_type != 'code':
        return cell
    lines = cell.source.splitlines()
    if any(re.match(r'#\|\s*hide\s*$', line) for line in lines):
        return None
    hidden = any(re.match(r'#\|\s*echo:\s*false', line) for line in lines)
    cell.source = '' if hidden else '\n'.join(line for line in lines if not line.startswith('#|'))
    for output in cell.outputs:
        output.get('data', {}).pop('image/png', None)  # figures are linked from the gallery, not embedded
    return None if hidden and not cell.outputs else cell


def readme():
    "The README's text. Outputs are those stored in the notebook, so this runs nothing."
    from nbconvert import MarkdownExporter
    nb = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
    nb.cells = [cell for cell in map(shown, nb.cells) if cell is not None]
    exporter = MarkdownExporter(exclude_input_prompt=True, exclude_output_prompt=True)
    body, _ = exporter.from_notebook_node(nb)
    for pattern, replacement in REPAIRS:
        body = re.sub(pattern, replacement, body)
    return '<!-- made from nbs/index.ipynb by `make prepare`: edit that -->\n\n' + body.strip() + '\n'


def write_readme():
    sys.path.insert(0, str(ROOT))
    from tqcook.core import atomic_write
    atomic_write(ROOT/'README.md', readme())


if __name__ == '__main__':
    write_readme()

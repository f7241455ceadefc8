"README.md from nbs/index.ipynb: `python tests/make_readme.py` writes it, tests/test_readme.py compares."
import json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

def readme() -> str:
    "The README's text. Outputs are those stored in the notebook, so this runs nothing."
    import nbformat
    from nbconvert import MarkdownExporter
    nb = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
    keep = []
    for c in nb.cells:
        if c.cell_type == 'code':
            lines = c.source.splitlines()
            if any(re.match(r'#\|\s*hide\s*$', l) for l in lines): continue
            hidden = any(re.match(r'#\|\s*echo:\s*false', l) for l in lines)
            c.source = '' if hidden else '\n'.join(l for l in lines if not l.startswith('#|'))
            for o in c.outputs: o.get('data', {}).pop('image/png', None) # figures are linked from the gallery, not embedded
            if hidden and not c.outputs: continue
        keep.append(c)
    nb.cells = keep
    body, _ = MarkdownExporter(exclude_input_prompt=True, exclude_output_prompt=True).from_notebook_node(nb)
    body = re.sub(r'```(python)?\n\s*```\n', '', body)        # cells whose source is hidden
    body = re.sub(r'^```\n(?=from |import )', '```python\n', body, flags=re.M)
    body = body.replace('](../', '](')                       # links are relative to nbs/ in the notebook
    body = re.sub(r'\]\((?!https?:|#|[\w.-]+/)([\w.-]+\.ipynb)', r'](nbs/\1', body)
    body = re.sub(r'\n{3,}', '\n\n', body).strip()
    return '<!-- made from nbs/index.ipynb by `make readme`: edit that -->\n\n' + body + '\n'

if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    from tqcook.core import atomic_write
    atomic_write(ROOT/'README.md', readme())

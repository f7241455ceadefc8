"Before a commit, `make prepare`: imports in order, export, clean notebooks, README; then what ruff finds."
import subprocess
import sys
from pathlib import Path

import nbformat

from make_readme import ROOT, write_readme


def call(*command):
    "Run it; where it fails, leave with its exit code."
    code = subprocess.run(command, cwd=ROOT).returncode
    if code:
        sys.exit(code)


def nbdev(name, *args):
    call(str(Path(sys.executable).parent/name), *args)


def ruff(*args):
    call(sys.executable, '-m', 'ruff', 'check', *args)


def without_outputs(path):
    "Recipes are committed without outputs; nbdev_clean would keep them."
    nb = nbformat.read(path, as_version=4)
    for cell in nb.cells:
        if cell.cell_type == 'code':
            cell.outputs = []
            cell.execution_count = None
    nbformat.write(nb, path)


if __name__ == '__main__':
    ruff('-q', '--select', 'I', '--fix')
    for recipe in sorted((ROOT/'recipes').glob('[0-9]*.ipynb')):
        without_outputs(recipe)
    nbdev('nbdev_export')
    nbdev('nbdev_clean')
    nbdev('nbdev_clean', '--fname', 'recipes')
    write_readme()
    ruff()

"""How the notebooks are written, measured: tests/test_house.py holds it.

    python tests/house.py           the table
    python tests/house.py -v        and every single finding
    python tests/house.py --debts   write house.toml anew: what falls short of the goals, never more than stands there

A notebook of nbs/ exports one module; the tens digit of its number is its wing. What is measured of each:

lines    lines of the exported module that are neither blank nor a comment; docstrings and signatures count
tokens   Python tokens a line, without line ends, indents and comments: short lines with little on them are easy to read
cell     lines of an exported cell at the 90th percentile, counted in the same way, and the median
shown    public functions and classes that a visible cell uses within the next three cells, of all there are
arrows   imports from a wing below, of a private name, inside a function, or in a circle
copies   ideas that another module owns (`OWNERS`)
turns    expressions that assign, and lists of one element that stand for a variable; in recipes and tests as well

What falls short stands in house.toml with its figure, which may only go down.
"""
import ast
import io
import json
import re
import subprocess
import sys
import tokenize
import tomllib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEBTS = ROOT/'tests/house.toml'
GOALS = {'lines': 400, 'tokens': 9.5, 'cell': 25, 'total': 8500}  # others: none
LONG = {'contract': 450}  # 115 rules, and what reads them
NOT_COUNTED = {getattr(tokenize, n) for n in 'NL NEWLINE INDENT DEDENT COMMENT ENCODING ENDMARKER'.split()}
MAGIC = re.compile(r'^\s*[%!].*', re.M)


def read_cells(path):
    "[(kind, source)] of a notebook."
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [(c['cell_type'], ''.join(c['source'])) for c in cells]


def directives(source):
    "Quarto's first word of each `#|` line: export, hide, eval:, ..."
    return re.findall(r'^#\|\s*(\S+)', source, re.M)


def exported(source):
    return any(d in ('export', 'exports', 'exporti') for d in directives(source))


def count_lines(source):
    "Lines that are neither blank nor a comment."
    lines = [line.strip() for line in source.splitlines()]
    return sum(1 for line in lines if line and not line.startswith('#'))


def count_tokens(source):
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(1 for t in tokens if t.type not in NOT_COUNTED)


def percentile(values, share):
    "The smallest value that at least this share of the values does not exceed."
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 100) - 1)]


def without_docstrings(tree):
    "The tree, its docstrings emptied: prose may name what code must not."
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            first.value.value = ''
    return tree


def boxes(nodes):
    "Names that a list of one element is assigned to."
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List) and len(node.value.elts) == 1:
            yield from (t.id for t in node.targets if isinstance(t, ast.Name))


def writes_first(node, names):
    "Whether this statement writes element 0 of one of these names."
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
    firsts = [t for t in targets if isinstance(t, ast.Subscript) and ast.unparse(t.slice) == '0']
    return any(isinstance(t.value, ast.Name) and t.value.id in names for t in firsts)


def turns(source):
    "What in this code assigns where one does not look for it."
    nodes = list(ast.walk(ast.parse(MAGIC.sub('pass', source))))
    names = set(boxes(nodes))
    found = [ast.unparse(n) for n in nodes if isinstance(n, ast.NamedExpr)]
    return found + [ast.unparse(n) for n in nodes if isinstance(n, ast.stmt) and writes_first(n, names)]


# what only its owner may hold

def numbers(*values):
    "A test for nodes that are one of these numbers."
    def test(node):
        return isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value in values
    return test


def grid(*values):
    "A test for a list or tuple whose numbers are these."
    def test(node):
        if not isinstance(node, (ast.List, ast.Tuple)):
            return False
        return [abs(e.value) for e in node.elts if numbers(*values)(e)] == list(values)
    return test


def text(pattern):
    "A test for calls, imports and literals whose source begins with this pattern."
    def test(node):
        short = isinstance(node, (ast.Call, ast.Import, ast.ImportFrom, ast.Constant))
        return short and re.match(pattern, ast.unparse(node)) is not None
    return test


E2M1 = 0, .5, 1, 1.5, 2, 3, 4, 6
OWNERS = [
    ('formats', "the largest E4M3 or E5M2 value", numbers(448, 57344)),
    ('formats', "E2M1's values", grid(*E2M1)),
    ('formats', 'bits by ml_dtypes', text(r'(import|from) ml_dtypes\b')),
    ('checkpoint', 'the header of a safetensors file', text(r"struct\.unpack\('<Q'|int\.from_bytes\(")),
    ('checkpoint', 'how a GGUF file begins', text(r"b'GGUF")),
    ('core', 'a file that appears whole', text(r'os\.(replace|rename)\(')),
    ('core', 'hashes', text(r'hashlib\.\w+\(')),
    ('core', 'the default of to_dict', text(r'dataclasses\.asdict\(|asdict\(')),
    ('core', 'smaller batches when memory runs out', text(r"'(out of memory|allocate memory|OutOfMemoryError)'")),
    ('schemes', 'the parts of a version such as 1.3.0rc20', text(r"re\.\w+\(r?'[^']*rc")),
]


@dataclass
class Room:
    "One notebook of nbs/ and the module that it exports."
    path: Path
    rooms: dict = field(default_factory=dict, repr=False)  # all rooms by name, this one included

    @property
    def name(self):
        return self.path.stem.split('_', 1)[1]

    @property
    def wing(self):
        return int(self.path.stem[:2]) // 10

    @cached_property
    def cells(self):
        return read_cells(self.path)

    @cached_property
    def module(self):
        return (ROOT/'tqcook'/f'{self.name}.py').read_text(encoding='utf-8')

    @cached_property
    def code(self):
        "Sources of the exported cells."
        return [s for kind, s in self.cells if kind == 'code' and exported(s)]

    @cached_property
    def lines(self):
        return count_lines(self.module)

    @cached_property
    def tokens(self):
        return count_tokens(self.module)

    @cached_property
    def cell_lines(self):
        return [count_lines(s) for s in self.code]

    @cached_property
    def public(self):
        "[(name, number of its cell)] of the functions and classes that others may use; patches excepted."
        found = []
        for i, (kind, source) in enumerate(self.cells):
            if kind == 'code' and exported(source):
                for node in ast.parse(source).body:
                    defines = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_')
                    if defines and not any('patch' in ast.unparse(d) for d in node.decorator_list):
                        found.append((node.name, i))
        return found

    @cached_property
    def unshown(self):
        "Public names that no visible cell uses within the next three cells."
        def shows(cell, name):
            kind, source = cell
            if kind != 'code' or exported(source) or 'hide' in directives(source):
                return False
            return re.search(rf'\b{name}\b', source) is not None
        return [n for n, i in self.public if not any(shows(c, n) for c in self.cells[i + 1:i + 4])]

    @cached_property
    def imports(self):
        "[(room, imported names, stands at the top)] of the imports from this package."
        tree = ast.parse(self.module)
        found = []
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                source = '.' * node.level + (node.module or '')
                names = [a.name for a in node.names]
                if source in ('.', 'tqcook'):
                    found += [(name, [], node in tree.body) for name in names]
                else:
                    found.append((source.removeprefix('tqcook').removeprefix('.'), names, node in tree.body))
        return [f for f in found if f[0] in self.rooms]

    @cached_property
    def reached(self):
        "Rooms that importing this one imports."
        seen, todo = set(), [self.name]
        while todo:
            for name, _, _ in self.rooms[todo.pop()].imports:
                if name not in seen:
                    seen.add(name)
                    todo.append(name)
        return seen

    @cached_property
    def arrows(self):
        "What is wrong with the imports, a sentence each."
        wrong = []
        for name, names, at_top in self.imports:
            if self.rooms[name].wing > self.wing:
                wrong.append(f'imports {name}, which stands in a wing below')
            if not at_top:
                wrong.append(f'imports {name} inside a function')
            private = [n for n in names if n.startswith('_')]
            if private:
                wrong.append(f"imports {name}'s private {', '.join(private)}")
        if self.name in self.reached:
            wrong.append('is imported by what it imports')
        return wrong

    @cached_property
    def copies(self):
        "Ideas of other rooms that this one has again."
        nodes = list(ast.walk(without_docstrings(ast.parse('\n\n'.join(self.code)))))
        others = [idea for idea in OWNERS if idea[0] != self.name]
        return [f'{what} (owner: {owner})' for owner, what, test in others if any(map(test, nodes))]

    @cached_property
    def turns(self):
        return [t for kind, s in self.cells if kind == 'code' for t in turns(s)]


def rooms():
    "All notebooks that export a module, by its name."
    found = {}
    for path in sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb')):
        room = Room(path, found)
        found[room.name] = room
    return found


def elsewhere():
    "{file: turns} of recipes and tests."
    found = {}
    for path in sorted((ROOT/'recipes').glob('[0-9]*.ipynb')):
        found[path] = [t for kind, s in read_cells(path) if kind == 'code' for t in turns(s)]
    for path in sorted((ROOT/'tests').rglob('*.py')):
        found[path] = turns(path.read_text(encoding='utf-8'))
    return {path.relative_to(ROOT).as_posix(): t for path, t in found.items() if t}


def ruff():
    "{file: number of findings} of the whole tree."
    command = [sys.executable, '-m', 'ruff', 'check', '--no-cache', '--output-format', 'json', str(ROOT)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if out.returncode not in (0, 1):
        raise RuntimeError(out.stderr)
    counts = {}
    for finding in json.loads(out.stdout):
        name = Path(finding['filename']).relative_to(ROOT).as_posix()
        counts[name] = counts.get(name, 0) + 1
    return counts


def measure(found):
    "{what: {name: figure}} of all that has a goal."
    cells = [n for r in found.values() for n in r.cell_lines]
    return {
        'lines': {n: r.lines for n, r in found.items()},
        'tokens': {n: round(r.tokens / r.lines, 1) for n, r in found.items()},
        'cell': {'p90': percentile(cells, 90)},
        'total': {'lines': sum(r.lines for r in found.values())},
        **{what: {n: len(getattr(r, what)) for n, r in found.items()} for what in ('unshown', 'arrows', 'copies')},
        'turns': {n: len(r.turns) for n, r in found.items()} | {n: len(t) for n, t in elsewhere().items()},
        'ruff': ruff(),
    }


def goal(what, name):
    return LONG[name] if what == 'lines' and name in LONG else GOALS.get(what, 0)


def debts():
    "{what: {name: figure}} of house.toml."
    return tomllib.loads(DEBTS.read_text(encoding='utf-8')) if DEBTS.exists() else {}


def lowered(measured, old):
    "The debts that are left: figures above their goals, but none above what stood there."
    left = {}
    for what, figures in measured.items():
        bad = {name: n for name, n in figures.items() if n > goal(what, name)}
        before = old.get(what, {}) if old else bad
        left[what] = {name: min(n, before[name]) for name, n in bad.items() if name in before}
    return {what: figures for what, figures in left.items() if figures}


def as_toml(found):
    parts = ['# What falls short of the goals in house.py; figures may only go down: python tests/house.py --debts']
    for what, figures in found.items():
        parts.append('\n'.join([f'[{what}]', *(f'{json.dumps(name)} = {n}' for name, n in sorted(figures.items()))]))
    return '\n\n'.join(parts) + '\n'


ROW = '{:12} {:>6} {:>7} {:>7} {:>4} {:>9} {:>7} {:>7} {:>6}'


def row(name, found):
    "One line of the table: these rooms together."
    lines = sum(r.lines for r in found)
    cells = [n for r in found for n in r.cell_lines]
    public = sum(len(r.public) for r in found)
    shown = public - sum(len(r.unshown) for r in found)
    counts = [sum(len(getattr(r, what)) for r in found) for what in ('arrows', 'copies', 'turns')]
    tokens = f'{sum(r.tokens for r in found) / lines:.1f}'
    return ROW.format(name, lines, tokens, percentile(cells, 50), percentile(cells, 90), f'{shown}/{public}', *counts)


def table(found):
    "The measures of each room, and of all together, as text."
    head = ROW.format('', 'lines', 'tokens', 'median', 'p90', 'shown', 'arrows', 'copies', 'turns')
    return '\n'.join([head, *(row(r.name, [r]) for r in found.values()), row('all', list(found.values()))])


def main(args):
    found = rooms()
    print(table(found))
    if '-v' in args:
        for r in found.values():
            for note in [*(f'{n} is not shown' for n in r.unshown), *r.arrows, *r.copies, *r.turns]:
                print(f'{r.name}: {note}')
        for path, notes in elsewhere().items():
            print('\n'.join(f'{path}: {note}' for note in notes))
    if '--debts' in args:
        DEBTS.write_text(as_toml(lowered(measure(found), debts())), encoding='utf-8')


if __name__ == '__main__':
    main(sys.argv[1:])

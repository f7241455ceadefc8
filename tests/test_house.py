"The notebooks stay readable: sizes, demonstrations, arrows and handwriting, as tests/house.py measures them."
import json

import pytest

import house


@pytest.fixture(scope='module')
def rooms():
    return house.rooms()


@pytest.fixture(scope='module')
def measured(rooms):
    return house.measure(rooms)


def over(what, measured, debts):
    "{name: figure} of what is above its goal and above what house.toml allows."
    return {name: n for name, n in measured.items() if n > max(house.goal(what, name), debts.get(name, 0))}


def paid(what, measured, debts):
    "Names in house.toml that meet their goal by now: their line must go."
    return [name for name in debts if measured.get(name, 0) <= house.goal(what, name)]


@pytest.mark.parametrize('what', ['lines', 'total', 'tokens', 'cell', 'unshown', 'arrows', 'copies', 'turns', 'ruff'])
def test_goals(measured, what):
    "Nothing is above its goal or its debt, and no debt outlives what it stands for."
    debts = house.debts().get(what, {})
    print(measured[what])
    assert over(what, measured[what], debts) == {}, f'{what}: see `python tests/house.py -v`, or `ruff check`'
    assert paid(what, measured[what], debts) == [], f'{what}: good by now; `python tests/house.py --debts` takes it out'


def test_every_notebook_has_a_number_of_its_own(rooms):
    "A reader who is told 54 finds one."
    found = {}
    for r in rooms.values():
        found.setdefault(r.path.stem[:2], []).append(r.name)
    assert {number: names for number, names in found.items() if len(names) > 1} == {}


# The measures measure: each of them finds what it is there for.

def room(tmp_path, *cells, name='20_taste', rooms=None):
    "A notebook of these cells, exported as one would."
    kinds = ['code' if c.startswith(('#|', '>>>')) else 'markdown' for c in cells]
    made = [{'cell_type': kind, 'source': c.removeprefix('>>>')} for kind, c in zip(kinds, cells, strict=True)]
    path = tmp_path/f'{name}.ipynb'
    path.write_text(json.dumps({'cells': made}), encoding='utf-8')
    found = {} if rooms is None else rooms
    found[name[3:]] = r = house.Room(path, found)
    r.module = '\n\n'.join(r.code)
    return r


def test_sizes_count_what_is_read():
    source = 'def f(a):  # why\n    "One line."\n\n    # a comment\n    return a + 1\n'
    assert house.count_lines(source) == 3 and house.count_tokens(source) == 11
    assert house.percentile([1] * 9 + [30], 90) == 1 and house.percentile([1] * 8 + [30, 40], 90) == 30


def test_a_demonstration_is_a_visible_cell_nearby(tmp_path):
    define = '#| export\ndef salt(): pass\ndef _pinch(): pass'
    assert room(tmp_path, define, 'words', '>>>salt()').unshown == []
    assert room(tmp_path, define, '#| hide\nsalt()', '#| export\ndef pepper(): salt()').unshown == ['salt', 'pepper']
    assert room(tmp_path, define, 'a', 'b', 'c', '>>>salt()').unshown == ['salt']


def test_arrows_are_found(tmp_path):
    rooms = {}
    kitchen = room(tmp_path, '#| export\nfrom .taste import _pinch', name='10_kitchen', rooms=rooms)
    taste = room(tmp_path, '#| export\ndef f():\n    from tqcook import kitchen', rooms=rooms)
    assert kitchen.arrows == ['imports taste, which stands in a wing below', "imports taste's private _pinch",
                              'is imported by what it imports']
    assert taste.arrows == ['imports kitchen inside a function', 'is imported by what it imports']


SECOND = ['x / 448', 'GRID = [0, .5, 1, 1.5, 2, 3, 4, 6]', 'import ml_dtypes', "struct.unpack('<Q', h)",
          'os.replace(a, b)', 'hashlib.sha256(b)', "'out of memory' in e"]


@pytest.mark.parametrize('code', SECOND)
def test_copies_are_found(tmp_path, code):
    assert len(room(tmp_path, f'#| export\n{code}').copies) == 1
    assert room(tmp_path, f'#| export\ndef f():\n    "{code} as prose"').copies == []


def test_turns_are_found():
    assert house.turns('if (n := f()): pass') == ['(n := f())']
    assert house.turns('box = [0]\ndef f(): box[0] += 1') == ['box[0] += 1']
    assert house.turns('xs = [1]\nxs[1] = 2\n%time f(x)') == []


def test_debts_only_go_down():
    measured = {'lines': {'a': 500, 'b': 410, 'c': 300, 'contract': 440}}
    debts = {'lines': {'a': 480, 'b': 450, 'c': 420}}
    assert over('lines', measured['lines'], debts['lines']) == {'a': 500}
    assert paid('lines', measured['lines'], debts['lines']) == ['c']
    assert house.lowered(measured, debts) == {'lines': {'a': 480, 'b': 410}}
    assert house.lowered({'lines': {'new': 500}}, debts) == {}


def test_outputs_name_no_machine():
    "Warnings and tracebacks in stored outputs would carry the folders of whoever ran the notebook."
    for path in sorted((house.ROOT/'nbs').glob('*.ipynb')):
        for cell in json.loads(path.read_text())['cells']:
            said = json.dumps(cell.get('outputs', []))
            assert 'site-packages' not in said, f'{path.name}: {said[:200]}'

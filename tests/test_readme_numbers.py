"""No number of the README is typed by hand: it comes from the gallery by program, or it is a constant with a source.

What silent cells compute, they compute. What is left is text that people wrote: cells of prose, and the strings in
silent cells. There every number has to belong to a phrase of HELD, and the file named beside it has to say the same.
"""
import ast
import json
import re

import pytest

from make_readme import INDEX, ROOT, silent

HELD = {  # a phrase of the README: (file, what stands there)
    'Python 3.11 to 3.13': ('settings.ini', r'min_python = 3\.11\nmax_python = 3\.13'),
    'about 2 GB without a GPU, 7 GB with one': ('Makefile', r'about 7 GB with PyTorch for CUDA(?s:.*)about 2 GB'),
    'in 8 or 4 bits': ('nbs/03_schemes.ipynb', r"Scheme\('fp8'(?s:.*)Scheme\('int4_awq'"),
    'windows of 2048 tokens': ('nbs/index.ipynb', '-p context=2048'),
    'TensorRT-LLM 1.2': ('tqcook/trtllm.py', r"LAST_ENGINE = '1\.3\.0rc"),
    'vLLM 0.25.1': ('nbs/43_contract.ipynb', r'vLLM 0\.25\.1'),
    'vLLM 0.32.0': ('recipes/gallery/cpu/08_serve/results.json', r'"version": "0\.32\.0"'),
    '1.0 to 1.4rc': ('tqcook/trtllm.py', r"OLDEST = '1\.0'\nNEWEST = '1\.4'"),
    '95 % intervals': ('tqcook/stats.py', r'level: float = \.95'),
    'ratio, 95 % interval': ('tqcook/stats.py', r'level: float = \.95'),
}
NUMBER = r'(?<![\w.-])\d+(?:[.,]\d+)*'  # one that is no part of a name, as in FP8, H100 and Llama-3.1-8B


def strings(source):
    "What a silent cell says in its own words: its strings, but for keys, paths and format codes."
    tree = ast.parse(source)
    codes = {id(part) for n in ast.walk(tree) if isinstance(n, ast.FormattedValue) and n.format_spec
             for part in ast.walk(n.format_spec)}
    found = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in codes]
    return [s for s in found if isinstance(s, str) and not re.fullmatch(r'[\w.*/\[\]-]+', s)]


def typed(cells):
    "All words of the README that nobody computed; without code, links' targets and comments."
    for cell in cells:
        source = ''.join(cell['source'])
        texts = [source] if cell['cell_type'] == 'markdown' else strings(source) if silent(cell) else []
        for text in texts:
            text = re.sub(r'(?s)```.*?```|\]\([^)]*\)', '', text)
            yield re.sub(r'`[^`\n]*`', '', text)


def loose(cells, held=HELD):
    "Numbers without a source."
    for text in typed(cells):
        for phrase in held:
            text = text.replace(phrase, '')
        yield from re.findall(NUMBER, text)


def index():
    return json.loads(INDEX.read_text(encoding='utf-8'))['cells']


def test_no_number_is_without_a_source():
    assert list(loose(index())) == []


@pytest.mark.parametrize('phrase', HELD)
def test_the_source_says_the_same(phrase):
    name, pattern = HELD[phrase]
    assert any(phrase in text for text in typed(index())), 'the README no longer says this'
    assert re.search(pattern, (ROOT/name).read_text(encoding='utf-8')), f'{name} no longer says this'


PROSE = dict(cell_type='markdown', source=['FP8 on an H100 is 4.2 times as fast, at 99 %.'])
SAID = dict(cell_type='code', source=['#| echo: false\n', "Markdown(f'{x:.3f}, that is 7 % of 1,000 `y`')"])


@pytest.mark.parametrize('cell, numbers', [(PROSE, ['4.2', '99']), (SAID, ['7', '1,000'])], ids=['prose', 'string'])
def test_an_invented_number_is_found(cell, numbers):
    "Negative control."
    assert list(loose([cell])) == numbers


CHANGES = {  # the same of CHANGELOG.md
    '7.3 million parameters': ('tqcook/demo/README.md', r'parameters \| 7344384'),
    '0.87 bits per byte': ('tqcook/demo/README.md', r'held-out bits per byte \| 0\.87\d\d float32'),
    '5 % of error': ('tqcook/stats.py', r'level: float = \.95'),
    'from ceilings measured on an H100, 60 predictions were off by 4 % in the median and by 33 % at worst': (
        'recipes/gallery/h100/05_bandwidth/results.json',
        r'"points": 60,\s*"median": 0\.04[0-4]\d*,\s*"worst": 0\.32[5-9]'),
    '1.6 times as fast in FP8 as in BF16': ('README.md', r'304 tokens a second in FP8,\s185 in BF16 by the same'),
    '0.32.0 on a CPU': HELD['vLLM 0.32.0'],
}


def changelog():
    "Its entries, each on one line, without code and versions."
    text = (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')
    entries = re.split(r'\n(?:- |\n)', re.sub(r'(?m)^#.*|`[^`\n]*`', '', text))
    return [' '.join(entry.split()) for entry in entries if entry.strip()]


def test_the_changelog_is_made_of_short_entries():
    assert {entry: len(entry.split()) for entry in changelog() if len(entry.split()) > 55} == {}


def test_no_number_of_the_changelog_is_without_a_source():
    text = ' '.join(changelog())
    for phrase, (name, pattern) in CHANGES.items():
        assert phrase.lower() in text.lower(), phrase
        assert re.search(pattern, (ROOT/name).read_text(encoding='utf-8')), f'{name} no longer says this'
        text = re.sub(re.escape(phrase), '', text, flags=re.I)
    assert re.findall(NUMBER, text) == []

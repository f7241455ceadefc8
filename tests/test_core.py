"What everything shares, met with what nobody plans for: files that are none, text that is code, secrets, objects."
import html
import json
import math
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from tqcook import core
from tqcook.core import CookError, Result, esc, md_table, plain, read_file, read_json, redact


def refused(f, *words):
    with pytest.raises(CookError) as e:
        f()
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)
    assert len(str(e.value)) < 1300


# files

def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'loop').symlink_to('loop')
    (tmp_path/'away').symlink_to(tmp_path/'nowhere')
    (tmp_path/'socket').mkdir()
    done = threading.Event()
    def go():
        for bad in (tmp_path/'pipe', '/dev/zero', '/dev/null', tmp_path/'loop', tmp_path/'away', tmp_path,
                    '/proc/self/mem', 'a\0b'):
            for read in read_file, core.read_text_file, read_json:
                refused(lambda bad=bad, read=read: read(bad))
        done.set()
    t = threading.Thread(target=go, daemon=True)
    t.start()
    t.join(5)
    assert done.is_set() # a pipe without a writer blocks a plain open for ever


def test_the_size_is_bounded(tmp_path):
    (tmp_path/'a').write_bytes(b'x' * 1001)
    refused(lambda: read_file(tmp_path/'a', 1000), 'larger than')
    assert len(read_file(tmp_path/'a', 1001)) == 1001
    with open(tmp_path/'sparse', 'wb') as f:
        f.truncate(1 << 40) # a terabyte of nothing
    refused(lambda: read_file(tmp_path/'sparse'), 'larger than 67.1 MB')


def test_a_link_to_a_file_is_a_file(tmp_path):
    (tmp_path/'a.json').write_text('{"a": 1}')
    (tmp_path/'b.json').symlink_to('a.json')
    assert read_json(tmp_path/'b.json') == {'a': 1}


@pytest.mark.parametrize('text, word', [
    ('[' * 100_000, 'deep'), ('{"a":' * 50_000, 'deep'), ('9' * 400, '999'), ('9' * 10_000, '999'),
    ('-' + '9' * 400, '999'),
    ('1e999', '1e999'), ('[1, NaN]', 'NaN'), ('{"a": -Infinity}', 'Infinity'), ('{"a": 1, "a": 1}', "'a' stands twice"),
    ('[{"b": {"c": 1, "d": 2, "c": 3}}]', "'c' stands twice"), ('', 'JSON'), ('{', 'JSON'), ("{'a': 1}", 'JSON'),
    ('{"a": 1}}', 'JSON'), ('\ufeff{}', 'BOM'), ('\0', 'JSON'), ('{"a": 1,}', 'JSON'), ('tru', 'JSON')])
def test_json_that_is_refused(tmp_path, text, word):
    (tmp_path/'a.json').write_text(text)
    refused(lambda: read_json(tmp_path/'a.json'), 'a.json', word)


def test_json_that_is_none(tmp_path):
    refused(lambda: read_json(tmp_path), 'cannot be read')
    refused(lambda: core.write_json(tmp_path/'a', dict(a=object())), 'JSON')
    refused(lambda: core.write_json(tmp_path/'a', dict(a=math.nan)), 'JSON')
    refused(lambda: core.atomic_write(tmp_path, 'x'), 'folder')
    refused(lambda: core.atomic_write(tmp_path/'no'/'a', 'x'), 'does not exist')
    (tmp_path/'latin').write_bytes(b'{"a": "\xe9"}')
    refused(lambda: read_json(tmp_path/'latin'), 'UTF-8', 'byte 7')
    assert [p.name for p in tmp_path.iterdir()] == ['latin']


def test_infinity_where_it_is_right(tmp_path):
    (tmp_path/'config.json').write_text('{"time_step_limit": [0.0, Infinity], "big": 1e400}')
    assert read_json(tmp_path/'config.json', finite=False) == dict(time_step_limit=[0, math.inf], big=math.inf)


def test_atomic_dir_takes_the_folder_one_is_in(tmp_path, monkeypatch):
    (tmp_path/'in').mkdir()
    monkeypatch.chdir(tmp_path/'in')
    with core.atomic_dir('.') as d:
        (d/'x').write_text('x')
    assert (tmp_path/'in'/'x').exists()
    refused(lambda: core.atomic_dir('/').__enter__(), 'no folder')


def test_leftovers_of_the_dead_are_swept(tmp_path):
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    dead, living = tmp_path/f'.out.{child}.abc.tmp', tmp_path/f'.out.{os.getpid()}.abc.tmp'
    dead.mkdir()
    living.mkdir()
    with core.atomic_dir(tmp_path/'out'):
        pass
    assert not dead.exists() and living.exists() and (tmp_path/'out').is_dir()


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no /dev/full')
def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    refused(lambda: core.atomic_write(tmp_path/'a.json', 'x'), 'a.json', 'No space left on device')
    assert not list(tmp_path.iterdir())


# text from outside

EVIL = [
    '<script>alert(1)</script>', r'\<script>', r'\\<img src=x onerror=alert(1)>', '`<b>`<i>', '`` ` <i>` ``', '<!-- x',
    '<?php', '<a href=x>', '![x](http://h/x.png)', '[x](javascript:alert(1))', '<javascript:alert(1)>', 'a\n\n<script>',
    'a|b<script>', '\x1b[2J\u202e<p onclick=x>', ']\\](x)', '&#60;script>', '<svg/onload=alert(1)>', '~~~\n<b>',
    '    <b>', '# <h1>', '<ScRiPt src=//x>', '<\x00script>', '[a]: javascript:x', '<iframe srcdoc="<script>">', '*<b>*',
    '\\`<b>\\`', '$<b>$']


@pytest.mark.parametrize('evil', EVIL)
def test_no_text_becomes_a_node(evil):
    from html.parser import HTMLParser

    from nbconvert.filters.markdown_mistune import markdown2html_mistune
    class Nodes(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag in ('p', 'table', 'thead', 'tbody', 'tr', 'th', 'td', 'code', 'a', 'em', 'span'), (tag, evil)
            assert not [k for k, v in attrs if k.startswith('on') or 'script' in (v or '')], (attrs, evil)

        def handle_comment(self, data):
            raise AssertionError(evil)
    for text in md_table([(evil, 1)], [f'x {esc(evil)}', 'y:']), f'A model named {esc(evil)} was run.':
        Nodes(convert_charrefs=True).feed(markdown2html_mistune(text))
    assert esc(esc(evil)) == esc(evil) and all(c.isprintable() for c in esc(evil))


def test_our_own_markdown_stays():
    assert '**together**' in md_table([('**together**', 1)], ['', ''])
    assert '[a](b)' in md_table([(core.Markdown('[a](b)'), None)], ['', ''])
    assert md_table([('a|b', 1.23456)], ['x', 'y:']).split('\n')[1:] == ['|---|---:|', r'| a\|b | 1.235 |']


# secrets

SECRETS = ['hf_' + 'aB3' * 12, 'sk-proj-' + 'x9' * 20, 'ghp_' + 'Z1' * 18, 'github_pat_' + '1a' * 20,
           'AKIA' + 'ABCD1234' * 2, 'nvapi-' + 'q' * 30, 'glpat-' + 'k' * 20, 'AIza' + 's' * 35,
           'eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.SflKxwRJSMeKKF2QT4', 'https://me:hunter2hunter2@host/x',
           'Authorization: Bearer abcdefgh12345678', 'password=correcthorse9', 'api_key=0123456789abcdef']


@pytest.mark.parametrize('secret', SECRETS)
def test_what_looks_like_a_secret(secret):
    hidden = secret.split('=')[-1].split(' ')[-1].removeprefix('https://').split('@')[0]
    for form in secret, f'error: {secret}, again', json.dumps(dict(a=secret)), html.escape(f'<{secret}>'):
        assert hidden not in redact(form), form
    assert hidden not in str(CookError(f'no model named {secret!r}'))


def test_values_of_secret_variables(monkeypatch):
    value = 'correct horse "battery" <staple>'
    monkeypatch.setenv('MY_ACCESS_KEY', value)
    monkeypatch.setenv('SHORT_TOKEN', 'abc')
    for form in value, json.dumps(value), html.escape(value), json.dumps(html.escape(value)):
        assert 'battery' not in redact(form) and '[MY_ACCESS_KEY]' in redact(form)
    assert redact('abc') == 'abc' # a word of three letters is no secret


@pytest.mark.parametrize('text', ['max_tokens=4096', 'eos_token: <|endoftext|>', 'sk-learn', 'https://host/a:b@c',
                                  'hf_quant_config.json', 'sha256 ' + 'a' * 64, 'token',
                                  'model.layers.0.self_attn', 'AKIA', 'bearer of news'])
def test_what_is_no_secret(text):
    assert redact(text) == text


def test_long_values_are_not_echoed():
    refused(lambda: core.need('x' * 5000, 'quantize'))
    assert len(core.suggest('x' * 5000, ['fp8'])) < 100


# results

@dataclass
class Span:
    value: float
    width: float

    def as_items(self, name):
        return {name: self.value, f'{name}_ci95': [self.value - self.width, self.value + self.width]}


@dataclass
class Found(Result):
    ratio: Span
    path: Path
    counts: np.ndarray
    tensor: object = field(default=None, repr=False)
    unknown: float = math.nan
    nested: object = None
    derived = ('double',)

    @property
    def double(self):
        return 2 * self.ratio.value


def test_results():
    inner = Found(Span(2., 0.), Path('.'), np.ones(2))
    r = Found(Span(1., .5), Path('a/b'), np.arange(3), tensor=np.zeros(10**7), nested=inner)
    d = r.to_dict()
    assert d['ratio'] == 1 and d['ratio_ci95'] == [.5, 1.5] and d['path'] == 'a/b' and d['counts'] == [0, 1, 2]
    assert d['double'] == 2 and d['nested']['ratio'] == 2 and not {'tensor', 'unknown'} & d.keys()
    json.dumps(d, allow_nan=False)
    assert len(repr(r)) < 400 and repr(r).startswith('Found(ratio=1.0') and '| ratio | 1 |' in r._repr_markdown_()


def test_a_results_own_repr_is_kept():
    @dataclass
    class Loud(Result):
        x: int

        def __repr__(self):
            return 'LOUD'
    assert repr(Loud(1)) == 'LOUD' and Loud(1).to_dict() == dict(x=1)


@pytest.mark.parametrize('bad, where', [
    (dict(a=[1, object()]), r'results.a\[1\]'), ({1: 2}, 'key 1'), (dict(a=dict(b=math.nan)), 'results.a.b'),
    (dict(a=np.float64('inf')), 'results.a'), (dict(a={2, 3}), 'set'), (dict(a=b'x'), 'bytes')])
def test_what_results_cannot_hold(bad, where):
    with pytest.raises(CookError, match=where):
        plain(bad, 'results', finite=True)


def test_temporary_folders_bear_the_number_of_their_process():
    "So that the runner clears what a kill has left; serving's lie in a folder of the run."
    with core.scratch() as name:
        assert Path(name).name.split('-')[1] == str(os.getpid())
    makers = re.compile(r'tempfile\.(TemporaryDirectory|NamedTemporaryFile|mkdtemp)\(')
    found = {p.stem for p in Path(core.__file__).parent.glob('*.py') if makers.search(p.read_text())}
    assert found == {'core', 'serving'}

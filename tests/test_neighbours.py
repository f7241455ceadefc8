"Neighbours of what was once found live, endless or obscure: each ends in a sentence and in time."
import contextlib
import copy
import json
import os
import re
import shutil
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import broken
from toy import PARAMS, write_recipe
from tqcook import (
    advice,
    bench,
    cli,
    contract,
    data,
    endpoint,
    findings,
    passport,
    recipe,
    served,
    shapes,
    sweep,
    tasks,
)
from tqcook.checkpoint import BadCheckpoint, Checkpoint, read_header
from tqcook.core import CookError


@contextlib.contextmanager
def in_time(seconds=10):
    def late(*_):
        raise AssertionError(f'it took more than {seconds} s')
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def refused(f, *words):
    "One sentence that says these words, and nothing of five libraries."
    with in_time(), pytest.raises(CookError) as e:
        f()
    said = str(e.value)
    assert '\n' not in said and len(said) < 1300 and all(w in said for w in words), said


# --- a config that no model can have

COUNTS = ('hidden_size', 'num_hidden_layers', 'num_attention_heads', 'num_key_value_heads', 'vocab_size')
CONFIGS = [(k, v) for k in COUNTS for v in (0, -1, 1.5, True, 'x', 10**400)]
CONFIGS += [('head_dim', -64), ('intermediate_size', []), ('rope_theta', 'x'), ('rope_theta', [0]),
            ('rope_theta', True),
            ('text_config', dict(hidden_size=0))]


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    return broken.write(broken.good(), tmp_path_factory.mktemp('neighbours')/'good')


@pytest.fixture
def ck(good, tmp_path):
    return shutil.copytree(good, tmp_path/'ck')


@pytest.mark.parametrize('key, value', CONFIGS, ids=[f'{k}={str(v)[:6]}' for k, v in CONFIGS])
def test_config(ck, key, value):
    config = json.loads((ck/'config.json').read_text()) | {key: value}
    if key == 'rope_theta':
        config.pop('rope_parameters')
    (ck/'config.json').write_text(json.dumps(config))
    if value != [] and value != [0]: # a list there names a value a layer, and is allowed where all are sound
        refused(lambda: Checkpoint.open(ck), key if key != 'text_config' else 'hidden_size')
    assert not contract.check(ck).ok or value == []
    if key in COUNTS:
        refused(lambda: shapes.shape_of(config), key)


ROOTS = ['[]', '5', '"x"', 'null', '', '{', '{"a": 1', '[' * 9999, '{"a":' * 9999, '\x00', '{"a": NaN, "a": 1}',
         '\ufeff{}']


@pytest.mark.parametrize('text', ROOTS, ids=[ascii(t)[:12] for t in ROOTS])
def test_config_json(ck, text):
    (ck/'config.json').write_text(text)
    refused(lambda: Checkpoint.open(ck), 'config.json')
    refused(lambda: shapes.shape_of(ck), 'config.json')
    assert not contract.check(ck).ok


# --- out of the folder

PLACES = ['..', '../x.safetensors', 'a/../../x.safetensors', '/etc/passwd', 'sub/x.safetensors', 'x.bin', 'x.pt', '~/x',
          './/model.safetensors/..', 'model.safetensors\x00.bin', '', 'C:\\x.safetensors', 'file:///x.safetensors']


@pytest.mark.parametrize('place', PLACES, ids=[ascii(p)[:16] for p in PLACES])
def test_index(ck, place):
    index = dict(weight_map={k: 'model.safetensors' for k in Checkpoint.open(ck).tensors} | {'extra': place})
    (ck/'model.safetensors.index.json').write_text(json.dumps(index))
    refused(lambda: Checkpoint.open(ck), 'index')


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json', 'tokenizer.json', 'hf_quant_config.json'])
@pytest.mark.parametrize('to', ['../outside', '/etc/passwd', 'itself', '/dev/zero'])
def test_links(ck, name, to):
    shutil.copy(ck/name, ck.parent/'outside')
    (ck/name).unlink()
    (ck/name).symlink_to(name if to == 'itself' else to)
    refused(lambda: Checkpoint.open(ck), name)


# --- headers of safetensors

def header(text, n=None, tail=b''):
    raw = text.encode() if isinstance(text, str) else json.dumps(text).encode()
    return struct.pack('<Q', len(raw) if n is None else n) + raw + tail

ONE = dict(dtype='F32', shape=[2], data_offsets=[0, 8])
HEADERS = [b'', b'\0' * 7, header('{}', 2**63), header('[]'), header('null'), header('{"a": 1}'), header('{"a": {}}'),
           header(dict(a=ONE)), header(dict(a=ONE | dict(shape=[-2])), tail=b'0' * 8),
           header(dict(a=ONE | dict(shape=[2**40, 2**40])), tail=b'0' * 8),
           header(dict(a=ONE | dict(dtype='F31')), tail=b'0' * 8), header('{"a":' * 9999), header('\x00\x00'),
           header(dict(a=ONE | dict(data_offsets=[8, 0])), tail=b'0' * 8),
           header(dict(a=ONE, b=ONE), tail=b'0' * 8), header('{"a": ' + json.dumps(ONE) + '}', tail=b'0' * 9)]


@pytest.mark.parametrize('raw', HEADERS, ids=range(len(HEADERS)))
def test_header(ck, raw):
    (ck/'model.safetensors').write_bytes(raw)
    with in_time(), pytest.raises(BadCheckpoint):
        read_header(ck/'model.safetensors')
    refused(lambda: Checkpoint.open(ck), 'model.safetensors')


# --- parameters

@pytest.fixture(scope='module')
def toy_recipe(tmp_path_factory):
    where = tmp_path_factory.mktemp('recipes')
    write_recipe(where, name='01_toy.ipynb', params=PARAMS)
    return recipe.read_recipe(where/'01_toy.ipynb')


VALUES = [('n', v) for v in ('1:30', '012', '0x10', '1_000', '１２', '1e3', '--1', 'nan', '9' * 5000, '[1]', '', ' ',
          'None')]
VALUES += [('rate', v) for v in ('nan', 'inf', '1e999', '1,5', '0x1p3', '١', '1e')]
VALUES += [('fast', v) for v in ('2', 'ja', '[]')]
VALUES += [('alphas', v) for v in ('[nan]', '{a: 1}', '[[[1', '[' * 9999, '&a [*a]', '[&a 1, *a]',
           '!!python/name:os.system',
                                   '[2]', '[-0.1]', 'a', '[1:30]')]
VALUES += [('__class__', '1'), ('n ', '1'), ('', '1')]


@pytest.mark.parametrize('name, value', VALUES, ids=[ascii(f'{n}={v}')[:24] for n, v in VALUES])
def test_values(toy_recipe, name, value):
    refused(lambda: recipe.resolve(toy_recipe, values={name: value}))


BOMB = 'n: &a [1,1,1,1,1,1,1,1,1]\n' + '\n'.join(f'{k}: &{k} [{",".join(["*" + p] * 9)}]' for p, k in
                                                zip(['a', 'rate', 'fast', 'model'],
                                                    ['rate', 'fast', 'model', 'out_dir']))
GRIDS = ['', '[]', '- 1', 'x', 'n: {a: 1}', 'n: [1, 1]', 'n: []', 'n: 1\nn: 2', '? [a]\n: 1', '? {a: 1}\n: 1', 'm: 1',
         BOMB,
         'n: ' + '[' * 9999, 'n: "\\ud800"', '\t', '%YAML 9.9\n---\nn: 1', 'n: !!python/object/apply:os.system [id]',
         '--- 1\n--- 2', 'n: 012', f'n: [{",".join(map(str, range(20_000)))}]',
         f'n: [{",".join(map(str, range(500)))}]\nrate: [{",".join(map(str, range(500)))}]', 'x' * 300_000]


@pytest.mark.parametrize('text', GRIDS, ids=range(len(GRIDS)))
def test_grids(toy_recipe, tmp_path, text):
    (tmp_path/'grid.yaml').write_text(text, errors='surrogatepass')
    refused(lambda: sweep.points(toy_recipe, sweep.read_grid(tmp_path/'grid.yaml')))


@pytest.mark.parametrize('name', ['sweep.json', 'results.json'])
@pytest.mark.parametrize('text', ['[]', 'null', '{', '{"parameters": []}', '{"grid": []}'])
def test_sweeps_of_others(toy_recipe, tmp_path, name, text):
    (tmp_path/name).write_text(text)
    with in_time(), contextlib.suppress(CookError):
        if name == 'results.json':
            assert not sweep.finished(tmp_path, dict(n=1))
        else:
            sweep._claim(tmp_path, toy_recipe, dict(n=1), '')
            raise AssertionError('taken for ours')


# --- numbers of the command line

GPU = ['--gpu', 'h100']
NUMBERS = [['advise', *GPU, f'--{k}', v] for k in ('batch', 'context', 'output') for v in ('0', '-1', '1' + '0' * 400)]
NUMBERS += [['advise', *GPU, '--kv', 'x'], ['advise', *GPU, '--trtllm', '9' * 500], ['advise', *GPU, '--goal', '<b>'],
            ['advise', *GPU, '--model', '/dev/zero'], ['advise', *GPU, '--model', 'x' * 5000],
            ['advise', '--gpu', 'sm-1']]
NUMBERS += [['bench', f'--{k}', v] for k in ('batches', 'contexts') for v in ('0', '-4', 'x', '1' + '0' * 30, '1,,2',
            '٣x')]
NUMBERS += [['bench', '--prompts', v] for v in ('1', '1x2x3', '0x0', '1x1' + '0' * 12)]
NUMBERS += [['bench', '--steps', v] for v in ('0', '-3', '1' + '0' * 15)]
NUMBERS += [['bench', 'nosuch'], ['bench', 'shape:x'], ['bench', '--schemes', 'fp8,,'], ['bench', '--device', 'cuda:x']]
NUMBERS += [['sweep', 'perplexity', 'GRID', f'--{k}', v]
            for k,
            v in (('workers', '0'), ('workers', '1' + '0' * 9), ('gpus', '-1'), ('retries', '-1'), ('out', 'FILE'))]
NUMBERS += [['sweep', 'perplexity', '/dev/zero'], ['new', ''], ['new', '../x'], ['new', 'a\nb'], ['new', 'x' * 99]]
NUMBERS += [['compare', 'demo', url] for url in ('http://', 'http://127.0.0.1:1', 'http://127.0.0.1:x', 'http://[::1',
                                                 'http://a b', 'http://127.0.0.1:1/\x01')]


@pytest.mark.parametrize('argv', NUMBERS, ids=[ascii(' '.join(a[:1] + a[-2:]))[:40] for a in NUMBERS])
def test_command_line(argv, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench, 'copy_bandwidth', lambda dev: pytest.fail('measured before it was checked'))
    monkeypatch.setattr(cli, 'open_model', lambda *a, **k: SimpleNamespace(context=512, tokenizer=None))
    monkeypatch.setattr(data, 'corpus', lambda *a, **k: SimpleNamespace(n_tokens=1))
    monkeypatch.setattr(cli.perplexity, 'pace', lambda *a: 1.)
    Path('GRID').write_text('context: [8, 16]\n')
    Path('FILE').write_text('x')
    with in_time(20): # the first that asks for a device imports PyTorch
        code = cli.main(argv)
    err = capsys.readouterr().err
    assert code in (1, 2) and 'Traceback' not in err and len(err) < 2500, (code, err)


# --- what a server answers

PROMPT = [5, 6, 7]
LIKELY = {'6': dict(logprob=-1.), '9': dict(logprob=-2.)}, {'7': dict(logprob=-1.)}
REPLIES = [[], None, 5, {}, dict(choices=[]), dict(choices=[[]]), dict(choices=[dict(prompt_logprobs=5)]),
           *(dict(choices=[dict(prompt_logprobs=[None, *rows])]) for rows in (
               [], [LIKELY[0]], [*LIKELY, LIKELY[0]], [[], []], [None, None], [{}, {}], [{'x': {}}, {}],
               [LIKELY[0], {'7': dict(logprob=5.)}], [LIKELY[0], {'7': dict(logprob='x')}],
               [LIKELY[0], {'7': dict(logprob=None)}], [LIKELY[0], {'7': []}],
               [LIKELY[0], {'7': dict(logprob=-1.), '9' * 40: dict(logprob=-1.)}]))]


@pytest.mark.parametrize('reply', REPLIES, ids=range(len(REPLIES)))
def test_replies(reply):
    read = served.DIALECTS['vllm'][2]
    refused(lambda: served._checked(read, reply, PROMPT, 2, None))


def test_a_good_reply():
    reply = dict(choices=[dict(prompt_logprobs=[None, *LIKELY])])
    p, top, _ = served._checked(served.DIALECTS['vllm'][2], reply, PROMPT, 2, None)
    assert p.tolist() == [-1, -1] and top[0].tolist() == [6, 9]


@contextlib.contextmanager
def answering(raw, endless=b''):
    "A server that says these bytes, and then `endless` for as long as somebody listens: its address, its ear."
    heard, s = [], socket.create_server(('127.0.0.1', 0))
    def go():
        with contextlib.suppress(OSError):
            while True:
                c, _ = s.accept()
                with c, contextlib.suppress(OSError):
                    heard.append(c.recv(65536))
                    c.sendall(raw)
                    while endless:
                        c.sendall(endless)
                        time.sleep(.05)
    threading.Thread(target=go, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{s.getsockname()[1]}', heard
    finally:
        s.close()


def http(body, head='200 OK', length=None):
    return f'HTTP/1.1 {head}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n{body}'.encode()

MODELS = '{"data": [{"id": "m", "owned_by": "vllm"}]}'
RAW = [b'', b'\0' * 99, b'SSH-2.0-x\r\n', b'HTTP/1.1 200 OK\r\n' + b'a: b\r\n' * 500 + b'\r\n', http('<html>'),
       http('[]'),
       http('null'), http('[' * 9999), http('{"data": 5}'), http('{"data": [5]}'), http('{"data": [{}]}'),
       http(MODELS[:20], length=9999), http('<script>', '500 x'), http('', '404 x'), http('{"data": [{"id": ["m"]}]}'),
       http('x', '302 x\r\nLocation: file:///etc/passwd'), http(MODELS, '999 x'), b'HTTP/1.1 x y\r\n\r\n',
       b'HTTP/1.1 200 ' + b'x' * 70_000]


@pytest.mark.parametrize('raw', RAW, ids=range(len(RAW)))
def test_servers(raw):
    with answering(raw) as (url, _):
        refused(lambda: endpoint.connect(url), '127.0.0.1')


def test_a_good_server_and_one_that_never_ends(monkeypatch):
    with answering(http(MODELS)) as (url, _):
        assert endpoint.connect(f'{url}/v1/').model == 'm'
    with answering(b'HTTP/1.1 200 OK\r\n\r\n{', b' ') as (url, _):
        refused(lambda: endpoint.ask(url, timeout=1), 'does not end')
    for url in 'file:///etc/passwd', 'ftp://127.0.0.1/x', 'localhost:8000', '':
        refused(lambda url=url: endpoint.connect(url), 'no address')


def test_the_key_stays_with_its_server(monkeypatch):
    monkeypatch.setenv(endpoint.KEY, 'a-key-of-the-server')
    with answering(http(MODELS)) as (other, heard), answering(http('x', f'302 x\r\nLocation: {other}')) as (url, first):
        refused(lambda: endpoint.connect(url), '302')
        assert b'a-key-of-the-server' in first[0] and not heard


def test_a_token_beyond_the_vocabulary(monkeypatch):
    monkeypatch.setattr(served, 'answers', lambda *a, **k: [(np.zeros(2), np.array([[4096.], [1.]]), np.zeros((2, 1)))])
    monkeypatch.setattr(served, 'check_corpus', lambda *a: None)
    monkeypatch.setattr(served, 'as_logits', lambda base: SimpleNamespace(vocab_size=4096))
    refused(lambda: served.compare_served(None, None, SimpleNamespace(doc=[0])), 'token 4096', 'tokenizers differ')


@pytest.mark.parametrize('line',
                         ['5', '[]', '{}', '{"key": 1}', '{"key": "a", "scores": 5}', '{"key": [], "scores": []}', '{',
                                  '[' * 9999, '\udcff'])
def test_records(tmp_path, line):
    (tmp_path/'r.jsonl').write_text(line, errors='surrogateescape')
    with in_time():
        assert served._recorded(tmp_path/'r.jsonl') == {}


# --- logs of lm-eval, notebooks, passports

LOGS = ['', '5', '[]', '{}', '[' * 9999, '{"doc_id": 0}', '{"doc_id": 0, "acc": 2}', '{"doc_id": 0, "acc": "1"}',
        '{"doc_id": 0, "acc": 1}\n{"doc_id": 0, "acc": 1}', '{"doc_id": 0, "acc": NaN}', '{"doc_id": 0, "acc": [1]}',
        '\x00']


@pytest.mark.parametrize('text', LOGS, ids=range(len(LOGS)))
def test_logs(tmp_path, text):
    (tmp_path/'a.jsonl').write_text(text)
    refused(lambda: tasks.read_lm_eval(tmp_path/'a.jsonl'), 'a.jsonl')


def test_logs_that_are_none(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    for path in tmp_path, tmp_path/'pipe', '/dev/zero', 'x' * 5000, '\0':
        refused(lambda path=path: tasks.read_lm_eval(path))


TAGGED = dict(cell_type='code', metadata=dict(tags=['parameters']))
BOOKS = ['', '[]', '{}', '{"cells": 5}', '{"cells": [5]}', '{"cells": [{}]}', '{"cells": []}', '[' * 9999,
         *(json.dumps(dict(cells=[TAGGED | dict(source=s)])) for s in (
             'a = open("x")  # type: str x', 'import os', 'a = 1', 'a = 1  # type: int', '(' * 500 + ')' * 500,
             'a = ' + '-' * 9999 + '1  # type: int x', 'a: int = 1', '\x00', 'a = "x"  # type: int no',
             'a = 9**9**9**9',
             'a = 1  # type: int x\na = 2  # type: int x')),
         json.dumps(dict(cells=[TAGGED | dict(source=''), TAGGED | dict(source='')]))]


@pytest.mark.parametrize('text', BOOKS, ids=range(len(BOOKS)))
def test_notebooks(tmp_path, text):
    (tmp_path/'01_x.ipynb').write_text(text)
    refused(lambda: recipe.read_recipe(tmp_path/'01_x.ipynb'), '01_x.ipynb')


EDITS = [dict(schema=2), dict(kind='x'), dict(files=5), dict(files={'../x': dict(bytes=1, sha256='')}),
         dict(files={'x': 5}),
         dict(checksum=5), dict(scheme='int4'), dict(files={}), dict(device=5, kind='engine'),
         dict(kind='engine', device=dict(name=[], sm='x'), parallel=dict(tp='x', pp=[])), dict(versions=5), dict(kv=[])]


@pytest.mark.parametrize('edit', EDITS, ids=range(len(EDITS)))
def test_passports(ck, edit):
    passport.write_passport(ck, scheme='fp8')
    assert passport.verify(ck).ok
    p = json.loads((ck/passport.PASSPORT).read_text()) | edit
    (ck/passport.PASSPORT).write_text(json.dumps(p))
    with in_time():
        assert not passport.verify(ck).ok
    refused(lambda: passport.verify_or_refuse(ck))


# --- what makes Markdown

LIVE = ['<script>alert(1)</script>', '<img src=x onerror=alert(1)>', '~~~~\n<svg onload=alert(1)>',
        '[x](javascript:alert(1))']


def makers(evil):
    "Everything that shows a name from outside."
    corpus = data.Corpus([], [], np.zeros(0, int), evil, 'a' * 64, '', 8, 8, 'disjoint', 'none', 0)
    yield corpus
    from tqcook.quantize import Quantized
    yield Quantized(SimpleNamespace(name=evil), 'fp8', 'none', None)
    from tqcook.runtime import Divergence, Generation
    one = Generation(evil, [1], evil, 1., evil)
    yield one
    yield Divergence(one, copy.copy(one), 0, evil)
    yield bench.Bench('CPU', 1., '', missed=[(evil, evil)])
    yield advice.Advice('GPU', evil, 'latency', 1, 1, 1, 'none', [])
    yield sweep.Sweep(evil, [dict(run=evil, status=evil, seconds=1., error=evil)])
    yield findings.Findings(evil, [findings.finding('file-size', evil, file=evil, tensor=evil, expected=evil)])


@pytest.mark.parametrize('evil', LIVE, ids=range(len(LIVE)))
def test_markdown(evil, ck):
    config = json.loads((ck/'config.json').read_text()) | dict(architectures=[evil])
    (ck/'config.json').write_text(json.dumps(config))
    for noun in [*makers(evil), Checkpoint.open(ck)]:
        text = noun._repr_markdown_()
        outside = '\n'.join(line for line in text.split('\n') if not line.startswith('    '))
        assert not re.search(r'<(script|img|svg)|\]\(javascript', outside), (type(noun).__name__, outside)


# --- templates

TEMPLATES = ["{{ raise_exception('') }}",
             '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
             "{{ 'x' * 10**11 }}", '{{ 9 ** (9 ** 9) }}', "{{ 'x' * 3000000000 }}", '{% if %}', '{{ a.b.c }}',
             '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}', "{{ ''.__class__.__mro__ }}",
             "{% include '/etc/passwd' %}"]


@pytest.mark.parametrize('template', TEMPLATES, ids=range(len(TEMPLATES)))
def test_templates(template):
    from tqcook import models, texts
    tokenizer = copy.deepcopy(models.demo_tokenizer())
    tokenizer.chat_template = template
    refused_in_time = dict(messages=[dict(role='user', content='hi')])
    with pytest.raises(CookError, match='chat template'):
        start = time.monotonic()
        texts.render_chat(refused_in_time, tokenizer, seconds=1)
    assert time.monotonic() - start < 10


def test_powers_are_told_from_keywords_and_bold():
    from tqcook import models, texts
    tokenizer = copy.deepcopy(models.demo_tokenizer())
    tokenizer.chat_template = "{% macro f(a) %}{{ a }}{% endmacro %}**{{ f(**dict(a='b')) }}** {{ '**' }}"
    assert texts.render_chat(dict(messages=[dict(role='user', content='')]), tokenizer) == '**b** **'


def test_there_are_more_than_a_hundred(request):
    lists = CONFIGS, ROOTS, PLACES, HEADERS, VALUES, GRIDS, NUMBERS, REPLIES, RAW, LOGS, BOOKS, EDITS, LIVE, TEMPLATES
    assert sum(map(len, lists)) >= 200
    mine = [i for i in request.session.items if i.path == request.path]
    assert len(mine) >= sum(map(len, lists)) or request.config.option.keyword or len(mine) == 1

"""Inputs of the kind that nobody plans for: one sentence, the right exit code, nothing of the reader's lost"""
import json, os, struct, subprocess, sys
from pathlib import Path
import pytest
from tqcook import data, models, texts, cli, runner
from tqcook.core import CookError

@pytest.fixture(scope='module')
def tok(): return models.demo_tokenizer()

def refused(f, *words):
    with pytest.raises(CookError) as e: f()
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)

# --- data

ROW = json.dumps(dict(text='hello world ' * 200)).encode()

@pytest.mark.parametrize('raw', [b'\xef\xbb\xbf' + ROW, ROW + b'\r\n\r\n' + ROW + b'\r\n', ROW[:-2] + b' \\ud83d\\ude00"}'])
def test_odd_but_good_jsonl(tmp_path, tok, raw):
    p = tmp_path/'é 漢.jsonl'
    p.write_bytes(raw)
    docs, _ = texts.read_text(str(p))
    assert docs[0].startswith('hello') and len(data.corpus(str(p), tok, 64))

@pytest.mark.parametrize('line, word', [(ROW[:-2] + b'\\ud800"}', 'surrogate'), (b'[' * 100_000, 'line 2'), (b'9' * 6000, 'line 2')])
def test_odd_and_bad_jsonl_names_the_line(tmp_path, tok, line, word):
    p = tmp_path/'a.jsonl'
    p.write_bytes(ROW + b'\n' + line)
    refused(lambda: data.corpus(str(p), tok, 64), 'line 2', word)

@pytest.mark.parametrize('text', [None, 5, '', 'a long text instead of a name ' * 50, '~nosuchuser/x', '/proc/self/mem'])
def test_text_of_the_wrong_kind(tok, text): refused(lambda: data.corpus(text, tok, 64))

@pytest.mark.parametrize('kw', [dict(context='64'), dict(context=64.5), dict(max_windows=2.5)])
def test_numbers_of_the_wrong_type(tok, kw): refused(lambda: data.corpus('prose', tok, **kw), 'whole number')

# --- models

def copy(d, edit=None, **config):
    from safetensors.torch import load_file, save_file
    d.mkdir()
    for p in models.demo_path().iterdir(): (d/p.name).write_bytes(p.read_bytes())
    c = json.loads((d/'config.json').read_text()) | config
    (d/'config.json').write_text(json.dumps(c))
    if edit: save_file(edit(load_file(d/'model.safetensors')), d/'model.safetensors', {'format': 'pt'})
    return d

Q = 'model.layers.0.self_attn.q_proj.weight'

def test_a_missing_weight_is_never_drawn_at_random(tmp_path):
    refused(lambda: models.load(copy(tmp_path/'a', lambda s: {k: v for k, v in s.items() if k != Q})), 'lacks 1 weight', Q)
    refused(lambda: models.load(copy(tmp_path/'b', lambda s: {'foo.' + k: v for k, v in s.items()})), 'lacks')
    refused(lambda: models.load(copy(tmp_path/'c', num_hidden_layers=99)), 'lacks')
    assert models.load(copy(tmp_path/'d')).weights == 'trained' # the same copy, undamaged

def test_a_weight_of_another_shape_is_named(tmp_path):
    refused(lambda: models.load(copy(tmp_path/'a', lambda s: s | {Q: s[Q][:2, :2].contiguous()})), Q, '[2, 2]')

@pytest.mark.parametrize('index', ['[]', '{"weight_map": [1]}', '{"weight_map": {"a": 1}}'])
def test_an_index_of_the_wrong_kind(tmp_path, index):
    (copy(tmp_path/'a')/'model.safetensors.index.json').write_text(index)
    refused(lambda: models.load(tmp_path/'a'), 'model.safetensors.index.json')

def test_a_header_nested_too_deep(tmp_path):
    h = b'[' * 90_000
    (copy(tmp_path/'a')/'model.safetensors').write_bytes(struct.pack('<Q', len(h)) + h)
    refused(lambda: models.load(tmp_path/'a'), 'header')

@pytest.mark.parametrize('model', [None, 5, [], 'x' * 400, '~nosuchuser/x'])
def test_a_model_of_the_wrong_kind(model): refused(lambda: models.load(model))

# --- the command

@pytest.mark.parametrize('content', ['[]', '{"cells": 3}', '{"cells": [{}]}', '\0', json.dumps(dict(cells=[dict(
    cell_type='code', metadata=dict(tags=['parameters']), source='x = (')]))])
def test_no_notebooks(tmp_path, capsys, content):
    (tmp_path/'r.ipynb').write_text(content)
    assert cli.main(['run', str(tmp_path/'r.ipynb')]) == 2
    assert capsys.readouterr().err.count('\n') == 1

def test_a_size_file_that_is_not_text(tmp_path, capsys):
    cell = dict(cell_type='code', metadata=dict(tags=['parameters']), source='x = 1  # type: int a number')
    (tmp_path/'r.ipynb').write_text(json.dumps(dict(cells=[cell])))
    (tmp_path/'params').mkdir()
    for raw in b'\xff\xfe\x00', b'[' * 5000:
        (tmp_path/'params'/'smoke.yaml').write_bytes(raw)
        assert cli.main(['run', str(tmp_path/'r.ipynb')]) == 2
        assert capsys.readouterr().err.startswith('tqcook: ')

def test_what_is_the_readers_stays(tmp_path, monkeypatch):
    run_, mine = tmp_path/'r', tmp_path/'r.unfinished'
    run_.mkdir(); mine.mkdir()
    (run_/'failed.ipynb').write_text(''); (mine/'thesis.txt').write_text('mine')
    with runner.run_folder(run_): pass
    assert (tmp_path/'r.unfinished.1'/'thesis.txt').exists() and (mine/'failed.ipynb').exists()
    (run_/'results.json').write_text('{}')
    (run_/'sub').mkdir()
    for where, name in (run_, '.'), (run_/'sub', '..'):
        monkeypatch.chdir(where)
        refused(lambda: runner.run_folder(name).__enter__(), 'the folder you are in')
    refused(lambda: runner.run_folder('/').__enter__())

def test_long_names(capsys):
    assert cli.main(['check', 'a' * 300]) == 1 and cli.main(['compare', 'demo', 'demo', '--context', '5000']) == 2
    assert 'Traceback' not in capsys.readouterr().err

def command(args, shell): # with the module, so that no PATH is needed
    return subprocess.run(['bash', '-c', f'"{sys.executable}" -m tqcook {args} {shell}'], capture_output=True, text=True)

def test_stdout_that_ends_early():
    closed = command('list', '| head -1; echo ${PIPESTATUS[0]}')
    assert closed.stdout.endswith('\n0\n') and closed.stderr == ''
    if not Path('/dev/full').exists(): return
    full = command('list', '> /dev/full')
    assert full.returncode == 1 and full.stderr == 'tqcook: No space left on device\n'

TINY_RUN = [dict(cell_type='code', id='a', metadata=dict(tags=['parameters']), source='n = 1  # type: int a number', outputs=[], execution_count=None),
            dict(cell_type='code', id='b', metadata={}, source='from tqcook import run\nrun.finish({})', outputs=[], execution_count=None)]

def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path/'r.ipynb').write_text(json.dumps(dict(cells=TINY_RUN, metadata={}, nbformat=4, nbformat_minor=5)))
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('HOME', str(tmp_path/'file'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('IPYTHONDIR', raising=False)
    assert cli.main(['run', 'r.ipynb', '-q', '-o', 'sp ace/é']) == 0 and (tmp_path/'sp ace/é/results.json').exists()

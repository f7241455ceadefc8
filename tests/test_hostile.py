"""Inputs of the kind that nobody plans for: one sentence, the right exit code, nothing of the reader's lost"""
import json
import struct

import pytest

from tqcook import data, models, texts
from tqcook.core import CookError


@pytest.fixture(scope='module')
def tok():
    return models.demo_tokenizer()

def refused(f, *words):
    with pytest.raises(CookError) as e:
        f()
    assert '\n' not in str(e.value) and all(w in str(e.value) for w in words), str(e.value)

# --- data

ROW = json.dumps(dict(text='hello world ' * 200)).encode()

@pytest.mark.parametrize(
    'raw', [b'\xef\xbb\xbf' + ROW, ROW + b'\r\n\r\n' + ROW + b'\r\n', ROW[:-2] + b' \\ud83d\\ude00"}']
)
def test_odd_but_good_jsonl(tmp_path, tok, raw):
    p = tmp_path/'é 漢.jsonl'
    p.write_bytes(raw)
    docs, _ = texts.read_text(str(p))
    assert docs[0].startswith('hello') and len(data.corpus(str(p), tok, 64))

@pytest.mark.parametrize(
    'line, word', [(ROW[:-2] + b'\\ud800"}', 'surrogate'), (b'[' * 100_000, 'line 2'), (b'9' * 6000, 'line 2')]
)
def test_odd_and_bad_jsonl_names_the_line(tmp_path, tok, line, word):
    p = tmp_path/'a.jsonl'
    p.write_bytes(ROW + b'\n' + line)
    refused(lambda: data.corpus(str(p), tok, 64), 'line 2', word)

@pytest.mark.parametrize(
    'text', [None, 5, '', 'a long text instead of a name ' * 50, '~nosuchuser/x', '/proc/self/mem']
)
def test_text_of_the_wrong_kind(tok, text):
    refused(lambda: data.corpus(text, tok, 64))

@pytest.mark.parametrize('kw', [dict(context='64'), dict(context=64.5), dict(max_windows=2.5)])
def test_numbers_of_the_wrong_type(tok, kw):
    refused(lambda: data.corpus('prose', tok, **kw), 'whole number')

# --- models

def copy(d, edit=None, **config):
    from safetensors.torch import load_file, save_file
    d.mkdir()
    for p in models.demo_path().iterdir():
        (d/p.name).write_bytes(p.read_bytes())
    c = json.loads((d/'config.json').read_text()) | config
    (d/'config.json').write_text(json.dumps(c))
    if edit:
        save_file(edit(load_file(d/'model.safetensors')), d/'model.safetensors', {'format': 'pt'})
    return d

Q = 'model.layers.0.self_attn.q_proj.weight'

def test_a_missing_weight_is_never_drawn_at_random(tmp_path):
    refused(
        lambda: models.load(copy(tmp_path/'a', lambda s: {k: v for k, v in s.items() if k != Q})), 'lacks 1 weight', Q
    )
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
def test_a_model_of_the_wrong_kind(model):
    refused(lambda: models.load(model))

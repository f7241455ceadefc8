"Documents: from every source that a recipe accepts, and what must be refused before it is read."
import json
import os
import socket
import sys
import time
import types

import numpy as np
import pytest

from tqcook import data, texts
from tqcook.core import CookError
from tqcook.models import demo_tokenizer

USER = dict(role='user', content='hi')


@pytest.fixture
def tok():
    "The demonstration tokenizer, its template put back afterwards."
    t = demo_tokenizer()
    template = t.chat_template
    yield t
    t.chat_template = template


def refused(fn, *words):
    with pytest.raises(CookError) as e:
        fn()
    said = str(e.value)
    assert '\n' not in said and all(w in said for w in words), said


def write(path, *rows):
    path.write_text('\n'.join(r if isinstance(r, str) else json.dumps(r) for r in rows) + '\n')
    return str(path)


def test_empty_text(tmp_path, tok):
    refused(lambda: data.corpus(write(tmp_path/'t.txt', ' '), tok), 'empty')


def test_missing_text(tok):
    refused(lambda: texts.read_text('cod'), "'code'")


def test_directory(tmp_path):
    refused(lambda: texts.read_text(str(tmp_path)), 'directory')


def test_not_utf8(tmp_path):
    (tmp_path/'t.txt').write_bytes(b'abc\xff\xfe')
    refused(lambda: texts.read_text(str(tmp_path/'t.txt')), 'UTF-8', 'byte 3')


def test_malformed_jsonl_names_the_line(tmp_path):
    refused(lambda: texts.read_text(write(tmp_path/'t.jsonl', '{"text": "a"}', '{"text": ')), 'line 2')


ROWS = ['{"txt": "a"}', '[]', '"a"', '{"text": 3}', '{"messages": "hi"}', '{"messages": null}']


@pytest.mark.parametrize('row', ROWS)
def test_jsonl_without_known_key(tmp_path, row):
    refused(lambda: texts.read_text(write(tmp_path/'t.jsonl', row)), 'line 1', '"messages"')


MESSAGES = ['hi', {}, dict(role=3, content='a'), dict(content='a'), dict(role='user', content=5),
            dict(role='user', content=[dict(type='image', url='x')])]


@pytest.mark.parametrize('message', MESSAGES)
def test_messages_of_the_wrong_kind(tmp_path, message):
    refused(lambda: texts.read_text(write(tmp_path/'t.jsonl', dict(messages=[USER, message]))), 'line 1')


@pytest.mark.parametrize('name', ['a.jsonl', 'a.JSONL', 'a.jsonl.txt', 'a.ndjson', 'a.json'])
def test_rows_in_any_spelling(tmp_path, name):
    assert texts.read_text(write(tmp_path/name, dict(text='one'), dict(text='two')))[0] == ['one', 'two']


def test_json_holds_a_list_or_one_object(tmp_path):
    assert texts.read_text(write(tmp_path/'a.json', [dict(text='one'), dict(text='two')]))[0] == ['one', 'two']
    (tmp_path/'b.json').write_text(json.dumps(dict(text='one'), indent=1))
    assert texts.read_text(str(tmp_path/'b.json'))[0] == ['one']
    refused(lambda: texts.read_text(write(tmp_path/'c.json', [dict(text='one'), 5])), 'entry 2')


def test_rows_under_another_name_are_not_scored_as_markup(tmp_path):
    refused(lambda: texts.read_text(write(tmp_path/'rows.txt', dict(text='one'))), 'name it .jsonl')
    assert texts.read_text(write(tmp_path/'c.txt', '{ int x; }'))[0] == ['{ int x; }\n']


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path/'pipe')
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path/'sock'))
    (tmp_path/'link').symlink_to('/dev/zero')
    start = time.monotonic()
    for path in ('/dev/zero', '/dev/urandom', '/dev/stdin', tmp_path/'pipe', tmp_path/'sock', tmp_path/'link'):
        if os.path.exists(path) and not os.path.isfile(path):
            refused(lambda: texts.read_text(str(path)), str(path))
    sock.close()
    assert time.monotonic() - start < 5


def test_size_is_bounded_before_reading(tmp_path):
    with open(tmp_path/'big.txt', 'wb') as f:
        f.truncate(2**40)
    refused(lambda: texts.read_text(str(tmp_path/'big.txt')), 'larger than 268 MB')


def test_chats_without_template(tmp_path, tok):
    tok.chat_template = None
    refused(lambda: data.corpus(write(tmp_path/'t.jsonl', dict(messages=[USER])), tok), 'chat template')


def test_null_and_parts_are_text(tmp_path, tok):
    parts = dict(role='assistant', content=[dict(type='text', text='one '), dict(type='text', text='two')])
    nothing = dict(role='assistant', content=None)
    docs, _ = texts.read_text(write(tmp_path/'t.jsonl', dict(messages=[USER, nothing, parts])))
    s = texts.render_chat(docs[0], tok)
    assert 'None' not in s and "'type'" not in s and 'one two' in s


def test_tools_reach_the_template(tmp_path, tok):
    call = dict(name='weather', description='', parameters=dict(type='object', properties={}))
    tool = dict(type='function', function=call)
    path = write(tmp_path/'t.jsonl', *[dict(messages=[USER], tools=[tool])] * 9)
    assert 'leaves them out' in data.corpus(path, tok, context=16).notes[0]
    tok.chat_template = ('{% for t in tools %}{{ t.function.name }}{% endfor %}'
                         '{% for m in messages %}{{ m.content }}{% endfor %}')
    c = data.corpus(path, tok, context=16)
    assert 'weather' in tok.decode(c.windows[0]) and c.notes == []
    bad = write(tmp_path/'u.jsonl', dict(messages=[USER], tools='weather'))
    refused(lambda: texts.read_text(bad), 'expected a list')


RAISING = {"{{ raise_exception('') }}": 'TemplateError', '{{ 1 / 0 }}': 'division', '{% for %}': 'chat template',
           "{{ raise_exception('roles\\nmust alternate') }}": 'roles'}


@pytest.mark.parametrize('template, word', RAISING.items())
def test_a_template_that_raises(tok, template, word):
    tok.chat_template = template
    refused(lambda: texts.render_chat(dict(messages=[USER]), tok), 'the chat template refused a conversation', word)


def test_a_template_that_never_ends(tok):
    tok.chat_template = '{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}'
    start = time.monotonic()
    refused(lambda: texts.render_chat(dict(messages=[USER]), tok, seconds=1), 'did not end within 1 s')
    assert time.monotonic() - start < 5


def test_held_out_modules_are_whole_and_disjoint():
    tops = {h: {m.partition('.')[0] for m in texts.stdlib_files() if texts.held_out(m) == h} for h in (True, False)}
    assert tops[True].isdisjoint(tops[False]) and 5 <= len(tops[True]) <= 60


def test_the_mixture_is_even_and_its_parts_are_disjoint(tok):
    kinds = {}
    for part in ('held-out', 'train'):
        docs = texts.mixture_documents(part)
        code = {d[:8000] for d in texts.code_documents(part)}
        kind = ['chat' if not isinstance(d, str) else 'code' if d in code else 'prose' for d in docs]
        size = {k: sum(texts.count_characters(d) for d, x in zip(docs, kind, strict=True) if x == k) for k in set(kind)}
        assert set(size) == {'chat', 'code', 'prose'} and max(size.values()) < 2.5 * min(size.values()), size
        half = len(docs) // 2
        assert set(kind[:half]) == set(kind[half:])  # spread, not one after the other
        kinds[part] = {json.dumps(d) for d in docs}
    assert kinds['held-out'].isdisjoint(kinds['train'])
    assert all(isinstance(d, str) for d in texts.mixture_documents(chats=False))


def test_the_default_text_follows_the_model(tok):
    import copy
    assert data.corpus('auto', tok, 128, max_windows=2).source.startswith('code (')
    other = copy.deepcopy(tok)
    other.add_tokens(['<more>'])
    c = data.corpus('auto', other, 128, max_windows=9)
    assert c.source.startswith('mixture of prose, code and chats') and c.chat
    assert data.calibration('auto', other, 4, 128).source.startswith('mixture-train')
    other.chat_template = None
    assert data.corpus('auto', other, 128, max_windows=9).source.startswith('mixture of prose and code (')
    assert np.all(data.overlap(data.calibration('auto', other, 64, 128), c) < .05)


def test_a_dataset_without_its_package(monkeypatch):
    "No extra has it, so that the remedy is the package itself."
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(CookError, match=r'datasets is not installed here; install it with: pip install datasets$'):
        texts.read_text('dataset:Salesforce/wikitext:wikitext-2-raw-v1:test')


def test_rows_of_a_dataset_are_documents(monkeypatch):
    "Asked for as the README has it; empty rows are left out."
    class Rows(list):
        column_names = ['text']

        def __getitem__(self, key):
            return list(self)

    asked = []
    load = lambda *args, **kw: asked.append((args, kw)) or Rows([' = Robert = ', '', 'He acts.'])
    monkeypatch.setitem(sys.modules, 'datasets', types.SimpleNamespace(load_dataset=load))
    documents, source = texts.read_text('dataset:Salesforce/wikitext:wikitext-2-raw-v1:test')
    assert documents == [' = Robert = ', 'He acts.'] and source.startswith('dataset:')
    assert asked == [(('Salesforce/wikitext', 'wikitext-2-raw-v1'), {'split': 'test'})]

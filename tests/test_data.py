"Corpora: policies against independent definitions, bytes that add up, bad text."
import json
import numpy as np, pytest
from tqcook import data
from tqcook.core import CookError
from tqcook.models import demo_tokenizer

@pytest.fixture(scope='module')
def tok(): return demo_tokenizer()

def _refused(fn, *words):
    with pytest.raises(CookError) as e: fn()
    for w in words: assert w in str(e.value), (w, str(e.value))

def test_empty_text(tmp_path, tok):
    f = tmp_path/'t.txt'; f.write_text(' \n')
    _refused(lambda: data.corpus(str(f), tok), 'empty')

def test_short_text(tmp_path, tok):
    f = tmp_path/'t.txt'; f.write_text('x = 1\n')
    _refused(lambda: data.corpus(str(f), tok, context=64), 'shorter than one window')

def test_missing_text(tok): _refused(lambda: data.corpus('cod', tok), "'code'")
def test_directory(tmp_path, tok): _refused(lambda: data.corpus(str(tmp_path), tok), 'directory')

def test_not_utf8(tmp_path, tok):
    f = tmp_path/'t.txt'; f.write_bytes(b'abc\xff\xfe')
    _refused(lambda: data.corpus(str(f), tok), 'UTF-8', 'byte 3')

def test_malformed_jsonl_names_the_line(tmp_path, tok):
    f = tmp_path/'t.jsonl'; f.write_text('{"text": "a"}\n{"text": \n')
    _refused(lambda: data.corpus(str(f), tok), 'line 2')

@pytest.mark.parametrize('row', ['{"txt": "a"}', '[]', '"a"', '{"text": 3}'])
def test_jsonl_without_known_key(tmp_path, tok, row):
    f = tmp_path/'t.jsonl'; f.write_text(row + '\n')
    _refused(lambda: data.corpus(str(f), tok), 'line 1', '"messages"')

def test_chats_without_template(tmp_path, tok):
    f = tmp_path/'t.jsonl'; f.write_text(json.dumps(dict(messages=[dict(role='user', content='hi')])) + '\n')
    old, tok.chat_template = tok.chat_template, None
    try: _refused(lambda: data.corpus(str(f), tok), 'chat template')
    finally: tok.chat_template = old

@pytest.mark.parametrize('kw, word', [(dict(policy='sliced'), 'sliding'), (dict(context=1), 'context'), (dict(stride=5), 'stride'), (dict(max_windows=-1), 'max_windows'),
                                      (dict(policy='sliding', stride=-1), 'stride')])
def test_bad_arguments(tok, kw, word): _refused(lambda: data.corpus('prose', tok, **kw), word)

@pytest.mark.parametrize('n', [0, -3])
def test_no_calibration_samples(tok, n): _refused(lambda: data.calibration('prose', tok, samples=n), 'at least 1')

@pytest.mark.parametrize('text', ['plain ascii', 'naïve 日本語 😀 mixed\n\ttabs', 'é' * 50, ''])
def test_bytes_add_up(tok, text):
    ids, nb, doc = data.tokenize([text], tok)
    assert nb.sum() == len(text.encode()) and len(ids) == len(nb) == len(doc)

@pytest.mark.parametrize('policy', ['lm_eval', 'sliding'])
def test_every_token_is_scored_once(tok, policy):
    docs = data.prose_documents()[:6]
    c = data.corpus('x', tok, context=64, policy=policy, stride=24 if policy == 'sliding' else 0, pack=False, documents=docs)
    n = sum(len(tok(d, add_special_tokens=False)['input_ids']) for d in docs)
    assert c.n_scored == n and c.n_bytes == sum(len(d.encode()) for d in docs)
    assert all(len(w) <= 65 and not s[0] for w, s in zip(c.windows, c.scored))

def test_half_is_llama_cpps(tok):
    c = data.corpus('prose', tok, context=64, policy='half')
    assert all(w[0] == tok.bos_token_id and s[:33].sum() == 0 for w, s in zip(c.windows, c.scored))
    assert sum(s[33:].sum() for s in c.scored) > .99 * 31 * len(c)

def test_held_out_modules_are_whole_and_disjoint():
    held = {m for m in data.stdlib_files() if data.held_out(m)}
    assert {m.partition('.')[0] for m in held}.isdisjoint({m.partition('.')[0] for m in data.stdlib_files()} - {m.partition('.')[0] for m in held})
    assert 5 <= len({m.partition('.')[0] for m in held}) <= 60

def test_calibration_does_not_touch_evaluation(tok):
    a, b = data.calibration('code-train', tok, 32, 256), data.corpus('code', tok, 256, max_windows=32)
    assert data.overlap(a, b) < .05 and data.overlap(b, b) == 1

def test_calibration_is_reproducible(tok):
    a, b, c = (data.calibration('prose', tok, 8, 128, seed=s) for s in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(a.windows, b.windows)) and not all(np.array_equal(x, y) for x, y in zip(a.windows, c.windows))

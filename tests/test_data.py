"Corpora: policies against independent definitions, bytes that add up, bad text."

import numpy as np
import pytest

from tqcook import data, texts
from tqcook.core import CookError
from tqcook.models import demo_tokenizer


@pytest.fixture(scope='module')
def tok():
    return demo_tokenizer()


def _refused(fn, *words):
    with pytest.raises(CookError) as e:
        fn()
    for w in words:
        assert w in str(e.value), (w, str(e.value))


def test_short_text(tmp_path, tok):
    f = tmp_path / 't.txt'
    f.write_text('x = 1\n')
    _refused(lambda: data.corpus(str(f), tok, context=64), 'shorter than one window')


@pytest.mark.parametrize(
    'kw, word',
    [
        (dict(policy='sliced'), 'sliding'),
        (dict(context=1), 'context'),
        (dict(stride=5), 'stride'),
        (dict(max_windows=-1), 'max_windows'),
        (dict(policy='sliding', stride=-1), 'stride'),
    ],
)
def test_bad_arguments(tok, kw, word):
    _refused(lambda: data.corpus('prose', tok, **kw), word)


@pytest.mark.parametrize('n', [0, -3])
def test_no_calibration_samples(tok, n):
    _refused(lambda: data.calibration('prose', tok, samples=n), 'at least 1')


@pytest.mark.parametrize('text', ['plain ascii', 'naïve 日本語 😀 mixed\n\ttabs', 'é' * 50, ''])
def test_bytes_add_up(tok, text):
    ids, nb, doc = data.tokenize([text], tok)
    assert nb.sum() == len(text.encode()) and len(ids) == len(nb) == len(doc)


@pytest.mark.parametrize('policy', ['lm_eval', 'sliding'])
def test_every_token_is_scored_once(tok, policy):
    docs = texts.prose_documents()[:6]
    c = data.corpus(
        'x', tok, context=64, policy=policy, stride=24 if policy == 'sliding' else 0, pack=False, documents=docs
    )
    n = sum(len(tok(d, add_special_tokens=False)['input_ids']) for d in docs)
    assert c.n_scored == n and c.n_bytes == sum(len(d.encode()) for d in docs)
    assert all(len(w) <= 65 and not s[0] for w, s in zip(c.windows, c.scored))


def test_half_is_llama_cpps(tok):
    c = data.corpus('prose', tok, context=64, policy='half')
    assert all(w[0] == tok.bos_token_id and s[:33].sum() == 0 for w, s in zip(c.windows, c.scored))
    assert sum(s[33:].sum() for s in c.scored) > 0.99 * 31 * len(c)


def test_windows_are_spread_evenly_over_documents(tok):
    docs = ['x = 1\n' * n for n in (2000, 400, 60, 60)]
    every, some = (data.corpus('four', tok, context=32, max_windows=n, pack=False, documents=docs) for n in (0, 30))
    there, kept = np.bincount(every.doc), np.bincount(some.doc)
    assert len(some) == 30 and len({w.tobytes() for w in some.windows}) > 1
    assert np.ptp(kept[kept < there]) <= 1 and kept[kept < there].min() >= kept.max() - 1
    assert np.array_equal(some.doc, np.sort(some.doc))
    few = data.corpus('many', tok, context=32, max_windows=5, pack=False, documents=docs[:2] * 10)
    assert len(set(few.doc.tolist())) == 5 and np.ptp(np.diff(few.doc)) == 0


def test_windows_of_one_document_lie_in_the_middles_of_equal_parts(tok):
    one = [''.join(f'x{i} = {i}\n' for i in range(2000))]
    every, some = (data.corpus('one', tok, context=64, max_windows=n, documents=one) for n in (0, 4))
    place = [next(i for i, w in enumerate(every.windows) if np.array_equal(w, v)) for v in some.windows]
    assert place == [int((k + .5) * len(every) / 4) for k in range(4)]


def test_built_in_code_holds_documents_enough_for_a_verdict(tok):
    "Eight effective blocks are needed; spread by length, 48 windows were worth 7."
    parts = data.corpus('code', tok, max_windows=48), data.halves('code', tok, 512, (32, 48))[1]
    for c, least in zip(parts, (12, 8.5)):
        n = np.bincount(c.doc).astype(float)
        assert len(c) == 48
        assert n.sum()**2 / (n**2).sum() > least
    few = data.halves('code', tok, 512, (64, 192))[0]
    assert len(set(few.doc)) >= 5 # by windows alone there were 3 documents to choose by


def test_calibration_does_not_touch_evaluation(tok):
    a, b = data.calibration('code-train', tok, 32, 256), data.corpus('code', tok, 256, max_windows=32)
    assert data.overlap(a, b) < 0.05 and data.overlap(b, b) == 1


def test_calibration_is_reproducible(tok):
    a, b, c = (data.calibration('prose', tok, 8, 128, seed=s) for s in (0, 0, 1))
    assert all(np.array_equal(x, y) for x, y in zip(a.windows, b.windows))
    assert not all(np.array_equal(x, y) for x, y in zip(a.windows, c.windows))


class Bos:
    "The demonstration tokenizer with another habit: whether it has BOS and EOS, and whether it writes BOS by itself."

    is_fast = True
    chat_template = None

    def __init__(self, tok, bos=0, eos=1, writes=False):
        self.tok, self.bos_token_id, self.eos_token_id, self.writes = tok, bos, eos, writes

    def __call__(self, text, add_special_tokens=True, **kw):
        d = self.tok(text, add_special_tokens=False, **kw)
        if add_special_tokens and self.writes:
            d['input_ids'] = [self.bos_token_id] + d['input_ids']
        return d

    def get_vocab(self):
        return self.tok.get_vocab()


DOCS = ['x = 1\n' * 40, 'y = 2\n' * 40]


def starts(c):
    return [int(w[0]) for w in c.windows]


def cut(t, **kw):
    return data.corpus('x', t, documents=DOCS, **(dict(context=32) | kw))


def test_bos_follows_the_tokenizer(tok):
    writes, has, lacks = Bos(tok, writes=True), Bos(tok), Bos(tok, bos=None)
    assert [data.bos_rule(t) for t in (tok, writes, has, lacks)] == ['doc', 'doc', 'none', 'none']
    assert cut(writes).bos == 'doc' and starts(cut(writes))[0] == 0 and 0 not in np.concatenate(cut(has).windows)
    assert 0 in np.concatenate(cut(has, bos='doc').windows)  # asked for, it is written
    # as llama.cpp: where the tokenizer writes one
    assert starts(cut(writes, policy='half')) == [0] * len(cut(writes, policy='half'))
    assert 0 not in starts(cut(has, policy='half'))


def test_bos_in_front_of_each_window(tok):
    plain = np.concatenate([tok(d, add_special_tokens=False)['input_ids'] for d in DOCS])
    for kw in (dict(), dict(policy='sliding', stride=10)):
        c = cut(tok, bos='window', **kw)
        assert set(starts(c)) == {0} and max(map(len, c.windows)) == 32 and not any(s[0] for s in c.scored)
    assert c.n_scored == len(plain)  # sliding, with BOS as context: every token of text once
    got = np.concatenate([w[1:] for w in cut(tok, bos='window').windows])
    assert (got == plain[: len(got)]).all()


def test_bos_that_is_not_there(tok):
    _refused(lambda: cut(Bos(tok, bos=None), bos='doc'), 'no BOS token')
    _refused(lambda: cut(tok, bos='docs'), "'doc'")
    _refused(lambda: cut(tok, bos='window', policy='lm_eval'), 'own prefix')
    _refused(lambda: cut(Bos(tok, bos=None, eos=None), policy='lm_eval'), 'neither')
    assert starts(cut(Bos(tok, bos=None), policy='lm_eval'))[0] == 1  # EOS, as lm-eval takes


def test_lm_eval_says_when_bos_would_stand_twice(tok):
    assert 'twice' in cut(tok, policy='lm_eval').notes[0] and cut(Bos(tok), policy='lm_eval').notes == []
    w = cut(tok, policy='lm_eval').windows[0]
    assert w[0] == 0 and w[1] != 0


def test_a_part_of_a_corpus_is_a_corpus(tok):
    c = cut(tok)
    part = c.take([0, 2])
    assert len(part) == 2
    assert part.n_bytes == round(c.n_bytes * part.n_scored / c.n_scored)
    assert part.doc.tolist() == c.doc[[0, 2]].tolist()
    assert len(c) > 2 and c.n_bytes > part.n_bytes

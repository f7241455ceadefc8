"""served: a running server scored through three dialects, against the library's own scores."""
import numpy as np
import pytest
from served_standin import running

from tqcook import perplexity, served
from tqcook.core import CookError


@pytest.fixture(scope='module')
def few(demo):
    from tqcook import data
    return data.corpus('code', demo.tokenizer, context=64, max_windows=6)


def nll(found, corpus):
    "Of the scored tokens, in the order of the corpus."
    return np.concatenate([-p[keep[1:]] for (p, _, _), keep in zip(found, corpus.scored)])


@pytest.mark.parametrize('dialect', ['vllm', 'sglang', 'echo'])
def test_scores_equal_our_own(demo, few, dialect):
    with running(demo, dialect) as (url, server):
        end = served.connect(url)
        assert end.dialect == dialect and end.model == 'demo'
        found = served.answers(end, few, demo.tokenizer)
    own = perplexity.score(demo, few, progress=False)
    assert np.abs(nll(found, few) - own.tokens['nll']).max() < 1e-5
    assert abs(nll(found, few).mean() - own.tokens['nll'].mean()) < 1e-6


def test_the_greedy_choice_at_every_place(demo, few):
    "Ids of the likeliest token agree with the model's; the echo dialect leaves out what it cannot name, and invents nothing."
    import torch
    from tqcook.perplexity import as_logits
    z = as_logits(demo)
    with torch.no_grad():
        best = z.head(z.hidden(torch.tensor(few.windows[0][None, :-1])))[0].argmax(-1).numpy()
    for dialect in ('vllm', 'sglang', 'echo'):
        with running(demo, dialect) as (url, server):
            _, top, _ = served.answers(served.connect(url), few, demo.tokenizer)[0]
        named = top[:, 0] >= 0
        assert (top[named, 0] == best[named]).all() and named.mean() > (.9 if dialect == 'echo' else .999)


REFUSED = {  # what the server does: what the reader is told
    'prefix cache': ('sglang', dict(cached=8), 'scored other tokens'),
    'truncated': ('vllm', dict(cut=16), 'of 16 tokens for a prompt of 64'),
    'key': ('vllm', dict(key='s3cret'), 'TQCOOK_API_KEY'),
    'length': ('vllm', dict(max_model_len=32), 'allows 32'),
    'trtllm': ('tensorrt_llm', {}, 'no log-probabilities of a prompt'),
    'dies': ('vllm', dict(dies_after=2), 'HTTP 500'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_scored_is_told_in_one_sentence(demo, few, case, monkeypatch):
    dialect, attributes, said = REFUSED[case]
    monkeypatch.setenv(served.KEY, 'another-key')
    with running(demo, dialect, **attributes) as (url, server), pytest.raises(CookError, match=said) as e:
        served.answers(served.connect(url), few, demo.tokenizer)
    assert 'another-key' not in str(e.value) and '\n' not in str(e.value)


def test_a_busy_server_is_asked_again(demo, few):
    with running(demo, 'vllm', busy=3) as (url, server):
        assert len(served.answers(served.connect(url), few, at_once=1)) == len(few)
        assert server.requests == len(few) + 3


def test_a_server_that_died_half_way_is_asked_only_for_the_rest(demo, few, tmp_path):
    record = tmp_path/'answers.jsonl'
    with running(demo, 'vllm', dies_after=4) as (url, server):
        with pytest.raises(CookError):
            served.answers(served.connect(url), few, at_once=1, record=record)
        with open(record, 'a') as f:
            f.write('{"key": "cut o')
        server.dies_after, server.requests = None, 0
        assert len(served.answers(served.connect(url), few, at_once=1, record=record)) == len(few)
        assert server.requests == len(few) - 4


def test_the_key_is_sent_and_never_written(demo, few, tmp_path, monkeypatch):
    monkeypatch.setenv(served.KEY, 's3cret-key')
    with running(demo, 'vllm', key='s3cret-key') as (url, server):
        served.answers(served.connect(url), few, record=tmp_path/'answers.jsonl')
    assert 's3cret' not in (tmp_path/'answers.jsonl').read_text()


def test_another_model_behind_the_name(demo):
    with running(demo, 'vllm') as (url, server), pytest.raises(CookError, match='serves demo; expected llama'):
        served.connect(url, 'llama')

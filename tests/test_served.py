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


@pytest.fixture(scope='module')
def more(demo):
    from tqcook import data
    return data.corpus('code', demo.tokenizer, context=128, max_windows=24)


def nll(found, corpus):
    "Of the scored tokens, in the order of the corpus."
    return np.concatenate([-p[keep[1:]] for (p, _, _), keep in zip(found, corpus.scored, strict=True)])


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
    "The likeliest token is the model's; the echo dialect leaves out what it cannot name, and invents nothing."
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


@pytest.fixture(scope='module')
def halved(demo):
    "The demonstration model with the scale of one projection halved, as a wrong loader leaves it."
    import copy
    from dataclasses import replace
    model = copy.deepcopy(demo.model)
    model.model.layers[3].mlp.down_proj.weight.data /= 2
    return replace(demo, model=model)


def test_a_faithful_server_passes_and_one_with_a_halved_scale_fails(demo, more, halved):
    with running(demo, 'vllm') as (url, server):
        same = served.compare_served(demo, served.connect(url), more, progress=False)
    with running(halved, 'sglang') as (url, server):
        other = served.compare_served(demo, served.connect(url), more, progress=False)
    assert same.verdict == 'PASS' and abs(same.stats['ppl_ratio'].value - 1) < 1e-6 and not served.causes(same)
    assert other.verdict == 'FAIL' and 'fused projections' in served.causes(other)[0]
    assert any('lower bound' in w for w in other.warnings)


def test_the_divergence_is_a_lower_bound_and_a_close_one(demo, more, halved):
    "Against the whole distributions, which only the library's own comparison has."
    from tqcook.compare import compare
    whole = compare(demo, halved, more, noise_floor='none', progress=False)
    for k, least in ((20, .7), (1, .2)):
        with running(halved, 'vllm') as (url, server):
            part = served.compare_served(demo, served.connect(url), more, 'none', k, progress=False)
        assert abs(part.stats['ppl_ratio'].value / whole.stats['ppl_ratio'].value - 1) < 1e-6
        assert part.stats['top1_agreement'].value == whole.stats['top1_agreement'].value
        assert (part['kld'] <= whole['kld'] + 1e-4).all()
        assert least < part.stats['kld_mean'].value / whole.stats['kld_mean'].value <= 1 + 1e-6


def test_load_reads_what_aiperf_writes(tmp_path, monkeypatch):
    "A stand-in that refuses unknown flags and writes a report as AIPerf 0.13 did, in its units."
    tool = tmp_path/'aiperf'
    tool.write_text("""#!/usr/bin/env python3
import argparse, json, os, pathlib
p = argparse.ArgumentParser(allow_abbrev=False)
p.add_argument('command', choices=['profile'])
p.add_argument('-m')
for f in ('url endpoint-type tokenizer concurrency request-count prompt-input-tokens-mean prompt-output-tokens-mean '
          'extra-inputs random-seed goodput output-artifact-dir').split():
    p.add_argument('--' + f, required=True)
for f in ('streaming', 'no-server-metrics', 'no-gpu-telemetry'):
    p.add_argument('--' + f, action='store_true')
a = p.parse_args()
assert 'HF_HUB_OFFLINE' not in os.environ  # AIPerf 0.13 then takes a folder for the name of a repository
out = pathlib.Path(a.output_artifact_dir)
out.mkdir(parents=True)
c = int(a.concurrency)
report = dict(time_to_first_token=dict(p50=8.7 * c, p99=16.6), inter_token_latency=dict(p50=5.4), goodput=dict(avg=36.),
              output_token_throughput=dict(avg=588.5 * c), request_throughput=dict(avg=36.8))
(out/'profile_export_aiperf.json').write_text(json.dumps(report))
""")
    tool.chmod(0o755)
    monkeypatch.setenv(served.AIPERF, str(tool))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    end = served.Endpoint('http://localhost:1', 'vllm', 'm', 0)
    rows = served.load(end, 'tokenizer', tmp_path/'out', (1, 4))
    assert [r['concurrency'] for r in rows] == [1, 4]
    assert rows[1]['ttft'] == pytest.approx(.0348) and rows[1]['tokens_per_s'] == 2354
    served.plot_load(dict(BF16=rows))


def test_a_load_test_that_fails_says_why(tmp_path, monkeypatch):
    tool = tmp_path/'aiperf'
    tool.write_text('#!/bin/sh\necho no such tokenizer >&2\nexit 3\n')
    tool.chmod(0o755)
    monkeypatch.setenv(served.AIPERF, str(tool))
    end = served.Endpoint('http://localhost:1', 'vllm', 'm', 0)
    with pytest.raises(CookError, match='code 3: no such tokenizer'):
        served.load(end, 'tokenizer', tmp_path/'out', (1,))
    monkeypatch.delenv(served.AIPERF)
    monkeypatch.setenv('PATH', str(tmp_path/'empty'))
    with pytest.raises(CookError, match=r'tqcook\[load\]'):
        served.load(end, 'tokenizer', tmp_path/'out', (1,))


def test_compare_takes_the_address_of_a_server(demo, halved, capsys):
    from tqcook.cli import main
    words = '--text code --context 128 --max-windows 24 --device cpu'.split()
    with running(demo, 'vllm') as (url, server):
        assert main(['compare', 'demo', url, *words]) == 0
    with running(halved, 'vllm') as (url, server):
        assert main(['compare', 'demo', url, *words]) == 10
    assert 'lower bound' in capsys.readouterr().out

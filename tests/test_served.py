"""served, fidelity, loadtest: running servers scored through three dialects, told from a faithful one, and driven."""
import copy
import json
from dataclasses import replace

import numpy as np
import pytest

from served_standin import LEGACY, running
from tqcook import data, endpoint, fidelity, loadtest, models, perplexity, served, serving
from tqcook.core import CookError
from tqcook.endpoint import Endpoint, connect

DIALECTS = 'vllm', 'sglang', 'echo'


@pytest.fixture(scope='module')
def demo():
    "In float32: a CPU that multiplies in BF16 rounds a window alone otherwise than in a batch."
    return models.load('demo', device='cpu', dtype='float32')


@pytest.fixture(scope='module')
def few(demo):
    return data.corpus('code', demo.tokenizer, context=64, max_windows=6)


@pytest.fixture(scope='module')
def more(demo):
    return data.corpus('code', demo.tokenizer, context=96, max_windows=24)


@pytest.fixture(scope='module')
def short(demo):
    return data.corpus('code', demo.tokenizer, context=32, max_windows=60)


def changed(demo, change):
    "The demonstration model, changed."
    model = copy.deepcopy(demo.model)
    change(model)
    return replace(demo, model=model)


@pytest.fixture(scope='module')
def halved(demo):
    "With the scale of one projection halved, as a wrong loader leaves it."
    def change(model):
        model.model.layers[3].mlp.down_proj.weight.data /= 2
    return changed(demo, change)


@pytest.fixture(scope='module')
def fp8_kv(demo):
    "With keys and values that went through E4M3."
    from tqcook.runtime import fp8_kv_attention
    return changed(demo, lambda model: model.set_attn_implementation(fp8_kv_attention('sdpa')))


def nll(found, corpus):
    "Of the scored tokens, in the order of the corpus."
    return np.concatenate([-p[keep[1:]] for (p, _, _), keep in zip(found, corpus.scored, strict=True)])


# scores

@pytest.mark.parametrize('dialect', DIALECTS)
def test_scores_equal_our_own(demo, few, dialect):
    with running(demo, dialect) as (url, server):
        end = connect(url)
        found = served.answers(end, few, demo.tokenizer)
    assert end.dialect == dialect and end.model == 'demo'
    own = perplexity.score(demo, few, progress=False).tokens['nll']
    assert (np.abs(nll(found, few) - own) <= 1e-6 * np.maximum(own, 1)).all()


def test_the_greedy_choice_at_every_place(demo, few):
    "The likeliest token is the model's; the echo dialect leaves out what it cannot name, and invents nothing."
    import torch
    z = perplexity.as_logits(demo)
    with torch.no_grad():
        best = z.head(z.hidden(torch.tensor(few.windows[0][None, :-1])))[0].argmax(-1).numpy()
    for dialect in DIALECTS:
        with running(demo, dialect) as (url, server):
            _, top, _ = served.answers(connect(url), few, demo.tokenizer)[0]
        named = top[:, 0] >= 0
        assert (top[named, 0] == best[named]).all() and named.mean() > (.9 if dialect == 'echo' else .999)


def test_the_divergence_is_a_lower_bound_and_a_close_one(demo, more, halved):
    "Against the whole distributions, which only the library's own comparison has."
    from tqcook.compare import compare
    whole = compare(demo, halved, more, noise_floor='none', progress=False)
    for k, least in ((20, .7), (1, .2)):
        with running(halved, 'vllm') as (url, server):
            part = served.compare_served(demo, connect(url), more, 'none', k, progress=False)
        assert abs(part.stats['ppl_ratio'].value / whole.stats['ppl_ratio'].value - 1) < 1e-6
        assert part.stats['top1_agreement'].value == whole.stats['top1_agreement'].value
        assert (part['kld'] <= whole['kld'] + 1e-4).all()
        assert least < part.stats['kld_mean'].value / whole.stats['kld_mean'].value <= 1 + 1e-6


def test_equal_ones_are_ranked_whatever_the_text_says():
    "vLLM names the text's own token first; in BF16 two are often equal, and each would count as the likeliest."
    for own in 7, 9:
        row = {str(i): dict(logprob=-1., rank=1) for i in (own, 16 - own)} | {'5': dict(logprob=-2., rank=3)}
        reply = dict(choices=[dict(prompt_logprobs=[None, row])])
        _, top, _ = served._rows(*served._vllm(reply, [1, own], None), [1, own], 3)
        assert top.tolist() == [[7, 9, 5]]


def test_of_unnamed_tokens_the_likeliest_stays():
    likely = {'?': -.1, 'a': -2., '!': -4.}
    reply = dict(choices=[dict(logprobs=dict(token_logprobs=[None, -3.], top_logprobs=[None, likely]))])
    _, top, p = served._rows(*served._echo(reply, [1, 2], dict(a=2)), [1, 2], 3)
    assert top.tolist() == [[-1, 2, -1]] and p[0, :2].tolist() == [-.1, -2.]


# bad input

class Letters:
    "A tokenizer of somebody else."
    def __call__(self, text, add_special_tokens=True):
        return dict(input_ids=list(map(ord, text)))


REFUSED = {  # what the server does: what the reader is told
    'prefix cache': ('sglang', dict(cached=8), 'scored other tokens'),
    'truncated': ('vllm', dict(cut=16), r'other tokens than it was sent \(16 of 64\)'),
    'no scores': ('vllm', dict(mute=True), 'returns no log-probabilities of a prompt'),
    'no scores, sglang': ('sglang', dict(mute=True), 'returns no log-probabilities of a prompt'),
    'no scores, echo': ('echo', dict(mute=True), 'returns no log-probabilities of a prompt'),
    'other vocabulary': ('vllm', dict(shift=10**6), 'tokenizers differ'),
    'other tokenizer': ('sglang', dict(other=Letters()), 'another tokenizer'),
    'key': ('vllm', dict(key='s3cret'), 'TQCOOK_API_KEY'),
    'length': ('vllm', dict(max_model_len=32), 'allows 32'),
    'trtllm': ('tensorrt_llm', {}, 'no log-probabilities of a prompt'),
    'dies': ('vllm', dict(dies_after=2), 'HTTP 500'),
    'rate limit': ('vllm', dict(limited=True), 'HTTP 429'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_scored_is_told_in_one_sentence(demo, few, case, monkeypatch):
    dialect, attributes, said = REFUSED[case]
    monkeypatch.setenv(endpoint.KEY, 'another-key')
    body, timeout, _, read = endpoint.ask.__defaults__
    monkeypatch.setattr(endpoint.ask, '__defaults__', (body, timeout, .6, read))  # seconds of patience
    with running(demo, dialect, **attributes) as (url, server), pytest.raises(CookError, match=said) as e:
        served.compare_served(demo, connect(url), few, 'none', progress=False)
    assert 'another-key' not in str(e.value) and '\n' not in str(e.value)


def test_no_server_there():
    for url, said in {'http://127.0.0.1:9': 'no usable answer from http://127.0.0.1:9/v1/models',
                      'http://no.such.host': 'no usable answer', 'ftp://x': 'no address of a server'}.items():
        with pytest.raises(CookError, match=said):
            connect(url)


def test_a_reply_of_another_form_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setattr(served, 'ask', lambda url, body: dict(choices=[]))
    with pytest.raises(CookError, match="form that is not its dialect's .IndexError"):
        served._one(Endpoint('http://x', 'vllm', 'm'), [1, 2], 5, None)


def test_a_busy_server_is_asked_again(demo, few):
    with running(demo, 'vllm', busy=3) as (url, server):
        assert len(served.answers(connect(url), few, at_once=1)) == len(few)
        assert server.requests == len(few) + 3


def test_a_server_that_died_half_way_is_asked_only_for_the_rest(demo, few, tmp_path):
    record = tmp_path/'answers.jsonl'
    with running(demo, 'vllm', dies_after=4) as (url, server):
        with pytest.raises(CookError):
            served.answers(connect(url), few, at_once=1, record=record)
        with open(record, 'a') as f:
            f.write('{"key": "cut o')
        server.dies_after, server.requests = None, 0
        assert len(served.answers(connect(url), few, at_once=1, record=record)) == len(few)
        assert server.requests == len(few) - 4
        server.kv, server.requests = 'fp8', 0  # started anew with another KV cache: nothing of the record holds
        served.answers(connect(url), few, at_once=1, record=record)
        assert server.requests == len(few)


def test_the_key_is_sent_and_never_written(demo, few, tmp_path, monkeypatch):
    monkeypatch.setenv(endpoint.KEY, 's3cret-key')
    with running(demo, 'vllm', key='s3cret-key') as (url, server):
        c = served.compare_served(demo, connect(url), few, 'none', record=tmp_path/'answers.jsonl', progress=False)
    assert 's3cret' not in (tmp_path/'answers.jsonl').read_text() + json.dumps(c.to_dict()) + repr(connect)


def test_the_cache_is_told_from_its_neighbours_and_the_version_is_read(demo):
    "Of /metrics of vLLM 0.32.0: mamba_cache_dtype and mamba_ssm_cache_dtype stand behind cache_dtype."
    for dialect, version in dict(vllm='0.32.0', sglang='0.5.23', echo='').items():
        with running(demo, dialect, kv='fp8_e4m3') as (url, server):
            end = connect(url)
        assert (end.kv, end.version) == ('' if dialect == 'echo' else 'fp8_e4m3', version)


def test_another_model_behind_the_name(demo):
    with running(demo, 'vllm') as (url, server), pytest.raises(CookError, match='serves demo; expected llama'):
        connect(url, 'llama')


# told from a faithful one, by verdict and by name

@pytest.mark.parametrize('dialect', DIALECTS)
def test_a_faithful_server(demo, more, dialect):
    with running(demo, dialect) as (url, server):
        there = connect(url)
        c = served.compare_served(demo, there, more, progress=False)
        found = fidelity.admitted(there, demo.tokenizer, 'none')
    assert c.verdict != 'FAIL' and abs(c.stats['ppl_ratio'].value - 1) < 1e-6
    assert fidelity.faithful(c).verdict == 'PASS' and fidelity.causes(c, found) == []
    assert any('lower bound' in w for w in c.warnings)


def test_halved_scales(demo, more, halved):
    with running(halved, 'sglang') as (url, server):
        c = served.compare_served(demo, connect(url), more, progress=False)
    assert c.verdict == 'FAIL' and fidelity.faithful(c).verdict == 'FAIL'
    assert fidelity.causes(c)[0].startswith('Requantized scales')
    assert len(fidelity.causes(c)) == len(fidelity.CAUSES)


@pytest.mark.parametrize('dialect', ['vllm', 'sglang'])
def test_another_kv_format(demo, more, fp8_kv, dialect):
    "It passes for quality, and not for what was loaded; the server names the format itself."
    with running(fp8_kv, dialect, kv='fp8_e4m3') as (url, server):
        there = connect(url)
        c = served.compare_served(demo, there, more, progress=False)
        found = fidelity.admitted(there, demo.tokenizer, 'none')
        as_the_file = fidelity.admitted(there, demo.tokenizer, 'fp8')
    assert fidelity.faithful(c).verdict == 'FAIL' and c.verdict != 'FAIL'
    assert fidelity.causes(c, found)[0].startswith('KV cache format (the server keeps fp8_e4m3') and not as_the_file


@pytest.mark.parametrize('dialect,plain', [('vllm', False), ('sglang', False), ('echo', True), ('tensorrt_llm', True)])
def test_another_chat_template(demo, more, dialect, plain):
    "The scores are the same, for token ids went in: only a chat shows it."
    with running(demo, dialect, template=LEGACY, plain=plain) as (url, server):
        found = fidelity.admitted(connect(url), demo.tokenizer, 'none')
    assert list(found) == ['template'] and fidelity.causes(None, found)[0].startswith('Chat template (a chat of')


def test_a_doubled_bos(demo):
    with running(demo, 'vllm', bos=[demo.tokenizer.bos_token_id]) as (url, server):
        found = fidelity.admitted(connect(url), demo.tokenizer, 'none')
    assert list(found) == ['bos'] and fidelity.causes(None, found)[0].startswith('BOS doubled or missing')


@pytest.mark.slow
def test_sampling_penalties(demo, more, short):
    "Faithful scores, and texts that part early."
    with running(demo, 'vllm', penalty=3.) as (url, server):
        there = connect(url)
        c = served.compare_served(demo, there, more, progress=False)
        written = fidelity.agree(demo, there, short, tokens=5)
        server.penalty = 1.
        plain = fidelity.agree(demo, there, short, tokens=5)
    assert fidelity.causes(c, {}, written)[0].startswith('Sampling penalties (the same 5 tokens after')
    assert fidelity.causes(c, {}, plain) == []


def test_agreement_can_fail_and_never_passes(demo, short):
    "Where only greedy texts come back: a broken server is worse, a faithful one is not shown to be good."
    def shuffle(model):
        model.model.layers[3].mlp.down_proj.weight.data *= -4
    for model, verdict in (demo, 'INCONCLUSIVE'), (changed(demo, shuffle), 'FAIL'):
        with running(model, 'tensorrt_llm') as (url, server):
            assert fidelity.agree(demo, connect(url), short, tokens=1).verdict == verdict


# the command

WORDS = '--text code --context 256 --device cpu --max-windows'.split()


def test_compare_takes_the_address_of_a_server(demo, halved, capsys):
    from tqcook.cli import main
    with running(demo, 'vllm', template=LEGACY) as (url, server):
        assert main(['compare', 'demo', url, *WORDS, '24']) == 0
        assert 'Chat template (' in capsys.readouterr().out
    with running(halved, 'vllm') as (url, server):
        assert main(['compare', 'demo', url, *WORDS, '8']) == 10
    assert 'lower bound' in capsys.readouterr().out


def test_compare_of_what_a_server_writes_is_inconclusive(demo, capsys):
    from tqcook.cli import main
    with running(demo, 'tensorrt_llm') as (url, server):
        assert main(['compare', 'demo', url, '--context', '32', *WORDS[4:], '4']) == 11
    assert 'McNemar' in capsys.readouterr().out


# engines in environments of their own

def test_the_commands_of_engines(tmp_path, monkeypatch):
    monkeypatch.delenv('TQCOOK_VLLM_PYTHON', raising=False)
    monkeypatch.setenv('TQCOOK_VLLM_COMMAND', 'docker run image')
    command = serving.engine_command('vllm', tmp_path/'a b', 128, tp=2)
    assert command[:4] == ['docker', 'run', 'image', 'vllm'] and str(tmp_path/'a b') in command
    assert command[command.index('--tensor-parallel-size') + 1] == '2'
    monkeypatch.setenv('TQCOOK_SGLANG_PYTHON', '/env/bin/python')
    assert serving.engine_command('sglang', 'x', 128)[:3] == ['/env/bin/python', '-m', 'sglang.launch_server']


@pytest.mark.slow
@pytest.mark.parametrize('engine', ['vllm', 'sglang'])
def test_an_engine_is_started_where_its_variable_says(demo, few, engine, tmp_path, monkeypatch):
    from served_standin import install
    from test_serving import free_port, gone
    assert serving.engine_at(engine) == ()
    monkeypatch.setenv(f'TQCOOK_{engine.upper()}_PYTHON', str(install(tmp_path/'env')))
    port = free_port()
    command = serving.engine_command(engine, models.demo_path(), 128, port=port, host='127.0.0.1')
    with serving.serve(command, port, tmp_path/'log', ready=90, host='127.0.0.1') as server:
        end = connect(server.url)
        assert end.dialect == engine and nll(served.answers(end, few), few).mean() < 4
    assert gone(server.process.pid)


# load

AIPERF = """#!/usr/bin/env python3
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
"""


def tool(path, text):
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_load_reads_what_aiperf_writes(tmp_path, monkeypatch):
    "A stand-in that refuses unknown flags and writes a report as AIPerf 0.13 did, in its units."
    monkeypatch.setenv(loadtest.AIPERF, tool(tmp_path/'aiperf', AIPERF))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    rows = loadtest.load(Endpoint('http://localhost:1', 'vllm', 'm'), 'tokenizer', tmp_path/'out', (1, 4))
    assert [r['concurrency'] for r in rows] == [1, 4]
    assert rows[1]['ttft'] == pytest.approx(.0348) and rows[1]['tokens_per_s'] == 2354
    assert len(loadtest.plot_load(dict(BF16=rows, fp8=rows)).axes[0].lines) == 2


def test_an_answer_in_one_piece_has_no_time_between_tokens():
    "AIPerf 0.13.0 reports 0 ms for a small model whose tokens all come in the first piece; that is no speed."
    row = dict(concurrency=1, ttft=.2, itl=0., tokens_per_s=233.)
    assert 'in one piece' in loadtest.load_table(dict(BF16=[row])) and '5 ms' in loadtest.load_table(
        dict(BF16=[row | dict(itl=.005)]))


def test_a_load_test_that_fails_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv(loadtest.AIPERF, tool(tmp_path/'aiperf', '#!/bin/sh\necho no such tokenizer >&2\nexit 3\n'))
    end = Endpoint('http://localhost:1', 'vllm', 'm')
    with pytest.raises(CookError, match='code 3: no such tokenizer'):
        loadtest.load(end, 'tokenizer', tmp_path/'out', (1,))
    monkeypatch.delenv(loadtest.AIPERF)
    monkeypatch.setenv('PATH', str(tmp_path/'empty'))
    with pytest.raises(CookError, match=r'tqcook\[load\]'):
        loadtest.load(end, 'tokenizer', tmp_path/'out', (1,))

"Advice for every GPU, scheme, goal and version: nothing that cannot run, and an answer to what people ask for."
import json
import sys
from subprocess import run

import pytest

from tqcook.advice import GOALS, MEASURED_KL, advise, risk_of
from tqcook.core import CookError
from tqcook.device import DEVICES, Device
from tqcook.schemes import SCHEMES, trtllm_support


@pytest.mark.parametrize('gpu', DEVICES)
def test_no_advice_that_the_support_matrix_forbids(gpu):
    for version in '1.2.1', '1.3.0rc21', '1.4.0rc1':
        for goal in GOALS:
            a = advise(gpu, 'shape:llama-3.1-8b', batch=4, context=1024, goal=goal, trtllm=version)
            assert [o.scheme for o in a.options if o.scheme == a.chosen] == [a.chosen] and a.reasons
            assert {o.scheme for o in a.options} == {'none', *SCHEMES}
            for o in a.options:
                if o.scheme != 'none' and o.backend:
                    assert trtllm_support(o.scheme, version, o.backend, DEVICES[gpu].sm).runs, o
                assert o.why and (o.gpus is None) == (o.gain is None)
            best = next(o for o in a.options if o.scheme == a.chosen)
            assert best.runs and best.fits and best.tokens_per_second > 0
            assert 'tokens' in a._repr_markdown_() and a.to_dict()['chosen'] == a.chosen


def named(gpu, **kw):
    a = advise(gpu, 'shape:llama-3.1-8b', **kw)
    return a, ' '.join(a.reasons)


def test_what_people_ask_for():
    a, said = named('a100', batch=16)
    assert a.chosen in ('int8_token', 'int8_sq', 'int4_awq') and 'Not fp8' in said and 'sm80' in said # no FP8 on Ampere
    assert 'tensor cores for FP8, one scale a tensor begin with sm89' in said and 'take int' in said
    a, said = named('h200', batch=64)
    assert a.chosen == 'fp8' and 'Not nvfp4' in said # INT8 on Hopper: FP8
    a, said = named('h200', batch=64, trtllm='1.4.0rc1')
    assert a.chosen == 'fp8' and 'Not int8_token' in said and 'no INT8 SmoothQuant' in said
    a, _ = named('b200', batch=16)
    assert a.chosen == 'nvfp4'
    a, said = named('a100')
    assert a.goal == 'latency' and 'saves memory, not arithmetic' in said
    assert 'A100 datasheet, times the shares that an H200 reached' in said # not measured, and says so


def test_three_gpus_by_hand():
    """One request, 2048 + 256 tokens: 15.0 GB of weights (no embedding) and .285 GB of cache over .9 of the bandwidth,
    .75 of that for the cache, 224 kernels of 4 us; a prompt's 31 TFLOP over .75 of the rate."""
    for gpu, bandwidth, rate in ('a100', 2.039e12, 312e12), ('h200', 4.8e12, 989e12), ('b200', 7.7e12, 2250e12):
        step = (15.01e9 + .285e9 / .75) / (.9 * bandwidth) + 224 * 4e-6
        prompt = (2 * 2048 * 6.98e9 + 2048**2 / 2 * 32 * 16384 / .75) / (.75 * rate)
        a, _ = named(gpu)
        base = next(o for o in a.options if o.scheme == 'none')
        assert 1 / base.tokens_per_second == pytest.approx(step + prompt / 256, rel=.03), gpu
        room = .9 * (DEVICES[gpu].memory_bytes - 16.06e9 - 2.2e9)
        assert base.gain == 1
        assert base.requests == pytest.approx(room / (2304 * 131072), rel=.02)


def test_measured_ceilings_are_taken_where_there_are_some(monkeypatch):
    from dataclasses import replace

    from tqcook import advice, roofline
    h200 = replace(DEVICES['h200'], here=True)
    slow = replace(roofline.from_datasheet(h200), bandwidth=1e12, measured=True)
    monkeypatch.setattr(advice, 'kept', lambda device: slow)
    measured, table = (advise(d, 'shape:llama-3.1-8b', batch=4) for d in (h200, 'h200'))
    assert 'measured here' in ' '.join(measured.reasons) and 'datasheet' in ' '.join(table.reasons)
    assert measured.options[0].tokens_per_second < .5 * table.options[0].tokens_per_second


def test_goals():
    quality, _ = named('h200', batch=64, goal='quality')
    able = [o.scheme for o in quality.options if o.runs and o.fits and o.scheme != 'none']
    known = {n: MEASURED_KL.get(n, 1.) for n in able}
    assert quality.chosen == min(known, key=known.get) == 'int8_wo'
    room, _ = named('l4', context=8192, goal='context')
    assert room.chosen == 'int4_awq'
    fast, said = named('h200', batch=64)
    assert 'With less risk: int8_wo' in said and fast.goal == 'throughput'


def test_what_a_smaller_cache_adds():
    long = 'An FP8 KV cache would add'
    assert long in named('h200', batch=64, context=16384)[1]
    assert long not in named('h200')[1] and long not in named('h200', batch=64, context=16384, kv='fp8')[1]
    assert long not in named('a100', batch=64, context=16384)[1] # it has no FP8


def test_models_that_need_several_gpus():
    big = dict(model_type='llama', hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
               num_attention_heads=64, num_key_value_heads=8, vocab_size=128256)
    a = advise('h100', big, batch=16, context=8192)
    gpus = {o.scheme: o.gpus for o in a.options if o.fits}
    assert gpus['none'] > gpus['fp8'] >= gpus['int4_awq']
    split = {o.gpus: o.split for o in a.options if o.fits}
    assert split[1] == 'tp 1, pp 1' if 1 in split else split[min(split)] == f'tp {min(split)}, pp 1'
    with pytest.raises(CookError, match='nothing runs and fits'):
        advise('t4', big, batch=4096, context=100_000)


@pytest.mark.parametrize('kw', [dict(device='h10'), dict(device='sm90'), dict(model='shape:lama'), dict(batch=-1),
                                dict(batch=0), dict(context=0), dict(goal='speed'), dict(trtllm='new'),
                                dict(kv='int4'), dict(model={}), dict(device=Device('a CPU', 'cpu'))])
def test_what_cannot_be_advised(kw):
    with pytest.raises(CookError):
        advise(**dict(device='h100', model='shape:llama-3.1-8b') | kw)


@pytest.mark.parametrize('kw, words', [
    (dict(device='h10'), "did you mean 'h100'"), (dict(batch=-1), 'batch is -1; expected a whole number, 1 to 65536: '),
    (dict(batch=10**12), 'batch is 1000000000000'), (dict(batch=65536), 'do not fit on 64'),
    (dict(output=0), 'output is 0'), (dict(context=131072), 'more than the 131072 positions'),
    (dict(model=dict(model_type='llama', hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=100,
                     max_position_embeddings=512)), 'more than the 512 positions'),
    (dict(model='no/such-model'), 'could not be loaded'), (dict(model='nowhere'), 'does not exist')])
def test_bad_input_is_one_sentence(kw, words):
    with pytest.raises(CookError) as e:
        advise(**dict(device='h100', model='shape:llama-3.1-8b') | kw)
    assert words in str(e.value) and '\n' not in str(e.value)


def test_a_hub_id_in_the_cache(tmp_path, monkeypatch):
    "Only config.json is there, and only that is needed."
    hub = pytest.importorskip('huggingface_hub')
    from tqcook.shapes import SHAPES
    snapshot = tmp_path/'models--some--model/snapshots/abc'
    snapshot.mkdir(parents=True)
    (snapshot/'config.json').write_text(json.dumps(dict(SHAPES['llama-3.1-8b'], model_type='llama')))
    (tmp_path/'models--some--model/refs').mkdir()
    (tmp_path/'models--some--model/refs/main').write_text('abc')
    real = hub.snapshot_download
    asked = []
    def here(name, **kw):
        asked.append(kw['allow_patterns'])
        return real(name, cache_dir=tmp_path, local_files_only=True, **kw)
    monkeypatch.setattr(hub, 'snapshot_download', here)
    found, known = (advise('h200', m, batch=8) for m in ('some/model', 'shape:llama-3.1-8b'))
    assert found.chosen == known.chosen and found.options[0].gain == known.options[0].gain
    assert set(map(tuple, asked)) == {('config.json',)}


def test_risk_is_what_was_measured():
    assert risk_of('int8_token') == 'KL 0.011 on SmolLM2-135M' and risk_of('int4_awq') == 'not measured'
    assert set(MEASURED_KL) <= {'none', *SCHEMES}


def test_a_width_that_groups_do_not_divide_is_no_advice():
    "576 = 4.5 x 128: int4_awq cannot be made of SmolLM2-135M, NVFP4 (groups of 16) can."
    config = dict(model_type='llama', hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
                  num_key_value_heads=3, intermediate_size=1536, vocab_size=49152)
    found = {o.scheme: o for o in advise('b200', config, batch=16).options}
    awq = found['int4_awq']
    assert not awq.runs and awq.why == 'groups 128 inputs under one scale, and a layer has 576'
    assert found['nvfp4'].runs and found['fp8_block'].runs


def test_needs_no_torch():
    code = '''import sys
sys.modules.update(dict.fromkeys(('torch', 'transformers', 'modelopt')))
from tqcook.advice import advise
print(advise('b200', 'shape:llama-3.1-8b', batch=64, context=4096).chosen)'''
    out = run([sys.executable, '-c', code], capture_output=True, text=True)
    assert out.stdout.strip() == 'nvfp4', out.stderr

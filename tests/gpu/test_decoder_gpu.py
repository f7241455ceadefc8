"The kernels of the fast tier against the file, against plain PyTorch, and against engines that are wrong on purpose."
import json
import os
import subprocess
import sys

import pytest
import torch

from tqcook import bench, decoder, kernels, models, step, synthetic
from tqcook.core import CookError

pytestmark = pytest.mark.gpu
BOUND = 4e-3
SIZE = {'hidden_size': 256, 'intermediate_size': 512, 'num_hidden_layers': 2}
SCHEMES = [None, *synthetic.STORED]
needs_triton = pytest.mark.skipif(bool(kernels.missing()), reason=kernels.missing() or 'Triton is here')


def rel(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def made(path, scheme=None, arch='llama', kv='none', **kw):
    "A tiny random checkpoint in a scheme, loaded from its directory."
    source = synthetic.Synthetic(models.tiny(arch, **SIZE).model.config.to_dict(), scheme, kv)
    kw = {'scales': 'file', 'activations': 'token' if scheme == 'int8_token' else 'static'} | kw
    return decoder.load(source.save(path), 'cuda', **kw), path


@pytest.mark.parametrize('scheme', SCHEMES)
@needs_triton
def test_kernels_compute_what_the_file_says(tmp_path, scheme):
    d, path = made(tmp_path, scheme)
    assert d.fast
    for rows in (1, 16, 40):
        assert max(decoder.product_errors(d, path, rows).values()) < BOUND


@pytest.mark.parametrize('scheme', SCHEMES)
@needs_triton
def test_a_wrong_scale_is_noticed(tmp_path, scheme):
    d, path = made(tmp_path, scheme)
    p = d.layers[1].o
    if p.scale is None:
        p.weight = p.weight * 1.02
    else:
        p.scale = p.scale * 1.02
    d.fast.ports.clear()
    errors = decoder.product_errors(d, path)
    assert errors.pop('1.o') > BOUND and max(errors.values()) < BOUND


@pytest.mark.parametrize(
    'arch, scheme, kv',
    [
        ('llama', 'fp8', 'none'),
        ('llama', 'fp8', 'fp8'),
        ('mistral', 'fp8_rowwise', 'none'),
        ('qwen2', 'int8_sq', 'none'),
        ('qwen3', 'int8_wo', 'none'),
        ('llama', 'fp8_block', 'fp8'),
        ('qwen3', None, 'none'),
        ('qwen2', 'int8_token', 'none'),
    ],
)
@needs_triton
def test_a_step_is_what_plain_pytorch_computes(tmp_path, arch, scheme, kv):
    "Padded prompts, several splits of attention, two steps; grid steps of 8-bit formats allow some per cent."
    d, _ = made(tmp_path, scheme, arch, kv)
    ids = [[1, 5, 9, 17, 33, 2, 7] * 33, [4, 8, 15] * 7]
    fast, d.fast = d.fast, None
    with torch.inference_mode():
        cache, first = decoder.start(d, ids, 8)
        token = first.argmax(-1)
        second = d.logits(d.forward(token[:, None], cache)[:, -1])
        third = d.logits(d.forward(second.argmax(-1)[:, None], cache)[:, -1])
        d.fast = fast
        for knobs in (step.Knobs(), step.Knobs(splits=8, block=16), step.Knobs(pdl=False, splits=1)):
            cache, got = decoder.start(d, ids, 8)
            s = step.Step(fast, cache, knobs)
            s.slot.fill_(cache.used)
            s.tokens.copy_(token)
            s.replay()
            one = s.logits[0].clone()
            s.tokens.copy_(second.argmax(-1))
            s.replay()
            bound = .015 if scheme is None else .06
            assert rel(got, first) < bound and rel(one, second) < bound and rel(s.logits[0], third) < bound


@needs_triton
def test_a_run_can_be_repeated(tmp_path):
    d, _ = made(tmp_path, 'fp8')
    ids = [[1, 2, 3] * 40, [7]]
    for kw in ({}, {'temperature': .8, 'top_p': .9, 'seed': 3}):
        runs = [[g.ids for g in decoder.generate(d, ids, 16, stop=(), **kw)] for _ in range(3)]
        assert runs[0] == runs[1] == runs[2]


@needs_triton
def test_a_short_prefill_is_recorded_and_stays_the_same(tmp_path):
    d, _ = made(tmp_path, 'fp8')
    ids = torch.randint(0, 4096, (2, 64), device='cuda', generator=torch.Generator('cuda').manual_seed(0))
    with torch.inference_mode():
        cache, outs = d.cache(2, 64), []
        for _ in range(3):
            cache.used = 0
            outs.append(d.forward(ids, cache).clone())
    assert d.fast.recorded.get('graph') and torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_plain_pytorch_where_the_kernels_are_not_wanted(tmp_path):
    d, path = made(tmp_path, 'fp8', fast=False)
    assert d.fast is None and d.why_eager == 'asked for'
    assert (
        max(decoder.product_errors(d, path).values()) < BOUND
        and len(decoder.generate(d, [[1, 2]], 4, stop=())[0].ids) == 4
    )


def test_without_triton_the_decoder_runs_and_says_so(tmp_path):
    synthetic.Synthetic(models.tiny('llama', **SIZE).model.config.to_dict(), 'fp8').save(tmp_path/'c')
    (tmp_path/'triton').mkdir()
    (tmp_path/'triton/__init__.py').write_text('raise ImportError("no", name="triton")')
    load = f"from tqcook import decoder; d = decoder.load({str(tmp_path/'c')!r}, 'cuda')"
    code = f'{load}; print(d.why_eager, decoder.generate(d, [[1]], 2)[0].ids)'
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, timeout=200)
    assert r.returncode == 0 and 'triton is not installed' in r.stdout, r.stderr[-800:]


def test_a_batch_that_does_not_fit_names_the_largest_that_does(tmp_path):
    d, _ = made(tmp_path, 'fp8')
    with pytest.raises(CookError, match='at most [0-9]+ such sequences fit'):
        d.cache(10**7, 512)


@needs_triton
def test_fp8_is_faster_than_bf16(tmp_path):
    "Eight layers of the 8 B shape; the whole shape is in the gallery."
    config = models.shape_config('llama-3.1-8b', num_hidden_layers=8, vocab_size=32768).to_dict()
    t = {}
    for scheme in (None, 'fp8', 'int8_wo'):
        d = synthetic.synthetic(config, scheme, device='cuda')
        t[scheme] = bench.decode(d, 1, 512, steps=16).seconds, bench.prefill(d, 4, 1024).seconds
        d = None
        bench.free()
    assert t[None][0] / t['fp8'][0] > 1.4 and t[None][0] / t['int8_wo'][0] > 1.35 and t[None][1] / t['fp8'][1] > 1.35
    print(json.dumps({str(k): v for k, v in t.items()}))

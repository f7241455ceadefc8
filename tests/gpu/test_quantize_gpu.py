"""Quantizing on a GPU: the same ranges as plain ModelOpt, no compiled extension, memory that runs out, NVFP4."""
import copy
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tqcook import data, export, formats, mixed, models, quantize

pytestmark = pytest.mark.gpu  # conftest.py skips or fails without one
SM = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


def text(n=32, length=256, seed=0, vocab=4096):
    rng = np.random.default_rng(seed)
    return SimpleNamespace(windows=[rng.integers(0, vocab, length) for _ in range(n)])


@pytest.fixture(scope='module')
def base():
    return models.load('shape:llama-100m', device='cuda')


@pytest.fixture
def no_extensions(tmp_path, monkeypatch):
    "An empty folder for compiled extensions, which must stay empty: a forgotten call fails instead of compiling."
    import modelopt.torch.quantization.tensor_quant as tq
    def never(*a, **kw):
        raise AssertionError('a CUDA extension would be compiled')
    for f in ('get_cuda_ext', 'get_cuda_ext_fp8'):
        monkeypatch.setattr(tq, f, never)
    (tmp_path/'ext').mkdir()
    monkeypatch.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path/'ext'))
    yield
    assert not os.listdir(tmp_path/'ext')


def ranges(model):
    return {n: q._amax.float().cpu() for n, q in model.named_modules() if hasattr(q, '_amax')}


def test_ranges_are_those_of_plain_modelopt(base, no_extensions):
    import modelopt.torch.quantization as mtq
    c, m = text(), copy.deepcopy(base.model)
    with models.quiet(prints=True), torch.no_grad():
        mtq.quantize(m, mtq.FP8_DEFAULT_CFG,
                     lambda m: [m(torch.from_numpy(w)[None].cuda(), use_cache=False) for w in c.windows])
    a, b = ranges(quantize.quantize(base, c, 'fp8', keep_apart=True, progress=False).loaded.model), ranges(m)
    assert a.keys() == b.keys() and len(a) == 2 * len(models.linears(base.model))
    for n in a:
        ulp = 2. ** (torch.floor(torch.log2(b[n].clamp(min=1e-30))) - 7)
        if 'weight_quantizer' in n:
            assert torch.equal(a[n], b[n]), n
        else:
            assert ((a[n] - b[n]).abs() <= 2 * ulp).all(), n


def test_rounding_is_the_same_on_cpu_and_gpu():
    for dt in (torch.float32, torch.bfloat16):
        x = torch.randn(256, 512, dtype=dt)
        for a in (x.abs().max(), x.abs().amax(1, keepdim=True), torch.tensor(.25)):
            assert torch.equal(formats.fake_e4m3(x, a), formats.fake_e4m3(x.cuda(), a.cuda()).cpu())
            assert torch.equal(formats.fake_int(x, a), formats.fake_int(x.cuda(), a.cuda()).cpu())


@pytest.mark.parametrize('scheme', ['fp8', 'fp8_rowwise', 'fp8_block', 'int8_sq', 'int8_wo', 'int4_awq', 'mxfp8'])
def test_every_scheme_runs_and_exports_without_an_extension(base, scheme, no_extensions, tmp_path):
    q = quantize.quantize(base, text(8), scheme, kv='fp8', target=text(4, seed=1), progress=False)
    ids = torch.arange(64, device='cuda')[None]
    with torch.no_grad():
        a, b = base.model(ids).logits.float(), q.loaded.model(ids).logits.float()
    assert 0 < (a - b).norm() / a.norm() < 1
    out = export.export(q, tmp_path/scheme)
    assert (out/'hf_quant_config.json').exists() and (out/'passport.json').exists()


@pytest.mark.skipif(SM < (8, 9), reason="ModelOpt's Triton kernels for FP4 begin with sm89")
def test_nvfp4(base, tmp_path):
    q = quantize.quantize(base, text(8), 'nvfp4', progress=False)
    ids = torch.arange(64, device='cuda')[None]
    with torch.no_grad():
        a, b = base.model(ids).logits.float(), q.loaded.model(ids).logits.float()
    assert 0 < (a - b).norm() / a.norm() < 1.5
    assert (export.export(q, tmp_path/'nvfp4')/'model.safetensors').exists()


def test_real_memory_that_runs_out_halves_the_batch(base):
    c = text(64, 512)
    whole = ranges(quantize.quantize(base, c, 'fp8', progress=False).loaded.model)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        # room for a copy and a small batch
        torch.cuda.set_per_process_memory_fraction(min(1., (torch.cuda.memory_allocated() + 900e6) / total))
        with warnings.catch_warnings(record=True) as w:
            warnings.simplefilter('always')
            q = quantize.quantize(base, c, 'fp8', batch_size=64, progress=False)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.)
    assert q.report.facts['batch_halved'] >= 1 and len([x for x in w if 'out of memory' in str(x.message)]) == 1
    low = ranges(q.loaded.model)
    assert all(((low[n] - whole[n]).abs() <= 4 * 2.**-7 * whole[n]).all() for n in whole)


def test_a_model_larger_than_the_gpu_is_calibrated(base, tmp_path):
    pytest.importorskip('accelerate')
    from accelerate import dispatch_model
    c = text(8)
    whole = ranges(quantize.quantize(base, c, 'fp8', progress=False).loaded.model)
    m = models.load('shape:llama-100m', device='cuda')
    place = {'model.embed_tokens': 0, 'model.norm': 0, 'model.rotary_emb': 0, 'lm_head': 0} | {
        f'model.layers.{i}': 0 if i < 6 else 'cpu' for i in range(m.config.num_hidden_layers)
    }
    m.model = dispatch_model(m.model, place, main_device=0)
    low = ranges(quantize.quantize(m, c, 'fp8', copy=False, progress=False).loaded.model)
    assert low.keys() == whole.keys() and all(((low[n] - whole[n]).abs() <= 4 * 2.**-7 * whole[n]).all() for n in whole)


def test_products_are_judged_by_gradients_on_the_gpu(no_extensions):
    demo = models.load('demo', device='cuda')
    corpus = data.corpus('code', demo.tokenizer, context=128, max_windows=4)
    q = quantize.quantize(demo, corpus, 'fp8', progress=False, details=False)
    found = mixed.by_product(demo, q, corpus, 2)
    assert not found.why and all(x.value > 0 for x in found.groups.values())

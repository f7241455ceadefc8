"Loading exported checkpoints: what runs, what is refused, what is generated."
import copy
import math
import shutil
import time

import pytest
import torch

from small import SCHEMES, Windows, cook, edit, edit_quantization, rel, tokens
from tqcook import export, formats, models, parity, quantize, runtime, skeleton
from tqcook.checkpoint import Checkpoint
from tqcook.core import CookError
from tqcook.device import Device


@pytest.mark.parametrize('scheme', SCHEMES)
def test_file_holds_the_weights_that_went_in(cooked, scheme):
    "The dequantized file against the base model's weights: the format's own rounding and no more."
    path, base, _ = cooked(scheme)
    ck, w = Checkpoint.open(path), dict(base.model.named_modules())
    bound = dict(int4_awq=.15, int8_sq=.015, int8_wo=.012).get(scheme, .035)
    for s in skeleton.plan(ck, skeleton.skeleton(ck)):
        t = {k: ck.read(f'{s.source}.{k}') for k in ck.modules[s.source]}
        got = formats.dequantize(s.storage, t)
        if 'pre_quant_scale' in t: # the input is multiplied by it, so the weight was divided
            got = got * t['pre_quant_scale'].float()
        elif scheme == 'int4_awq': # q, k, v, gate, up: the factor went into the norm before them
            continue
        assert rel(got, w[s.target].weight) < bound, s.source


@pytest.mark.parametrize('scheme', SCHEMES)
def test_load(cooked, scheme):
    path, base, fake = cooked(scheme)
    e = runtime.load(path, device='cpu')
    assert (e.kind, e.scheme, e.notes['linears']) == ('runtime', scheme, len(models.linears(base.model)))
    assert models.linears(e.model) == {} # none was left behind
    narrow = dict(int8_sq=torch.int8, int8_wo=torch.int8, int4_awq=torch.bfloat16)
    assert e.model.model.layers[0].mlp.up_proj.weight.dtype == narrow.get(scheme, torch.float8_e4m3fn)
    p = runtime.products(e)
    assert [(storage, n) for storage, _, n, _ in p.rows] == [(scheme, 14)]
    assert p.kernel(scheme).startswith('torch.') == (scheme in ('fp8', 'fp8_rowwise', 'int8_sq'))
    assert [how for _, how, _, _ in p.rows] == e.notes['arithmetic']


@pytest.mark.parametrize('scheme', ['fp8', 'int8_sq'])
def test_stored_weights_stay_small(cooked, scheme):
    "A byte less for each weight, a few scales more."
    path, base, _ = cooked(scheme)
    linear = sum(m.weight.numel() for m in models.linears(base.model).values())
    assert runtime.load(path, device='cpu').nbytes < base.nbytes - .95 * linear


# ModelOpt's export gives q, k and v one amax where each is a single block, as here
@pytest.mark.parametrize('scheme', [s for s in SCHEMES if s != 'fp8_block'])
def test_reference_is_near_the_fake_quantized_model(cooked, scheme):
    "The export comparison: what was calibrated and what lies in the file differ by less than the scheme costs."
    path, base, fake = cooked(scheme)
    ref = runtime.load(path, device='cpu', kernels='reference')
    with torch.no_grad():
        r, b = ref.model(tokens()).logits.float(), base.model(tokens()).logits.float()
    assert ref.kind == 'dequantized' and rel(r, fake) < .95 * rel(r, b)


def test_excluded_linears_stay_as_they_were(tmp_path, both):
    base = models.tiny('llama', hidden_size=128, intermediate_size=384, num_hidden_layers=2)
    q = quantize.quantize(base, Windows(), 'fp8', exclude=('*.down_proj',), progress=False)
    e, ref = both(export.export(q, tmp_path/'x'))
    assert e.notes['linears'] == 12
    assert list(models.linears(e.model)) == [f'model.layers.{i}.mlp.down_proj' for i in (0, 1)]
    assert torch.equal(e.model.model.layers[0].mlp.down_proj.weight, base.model.model.layers[0].mlp.down_proj.weight)
    p = parity.parity(e, ref, tokens(), base)
    assert p.passed and p.expected == 12, p.failures


def test_nvfp4_runs_on_dequantized_weights(cooked, tmp_path, both):
    "A file without input scales, packed by ModelOpt's own tensor class from a BF16 model."
    from modelopt.torch.quantization.qtensor import NVFP4QTensor
    path, base, _ = cooked('fp8')
    def pack(t, c):
        for n, m in models.linears(base.model).items():
            q, s, s2 = NVFP4QTensor.quantize(m.weight.detach().float().clone(), 16)
            t.update({f'{n}.weight': q._quantized_data, f'{n}.weight_scale': s, f'{n}.weight_scale_2': s2.reshape(())})
    d = edit_quantization(edit(path, tmp_path/'nv', pack), quant_algo='NVFP4', group_size=16)
    e, ref = both(d)
    p = parity.parity(e, ref, tokens(), base)
    assert p.passed and p.scheme == 'nvfp4' and .05 < p.cost < .6, p.failures
    assert 'dequantized' in runtime.products(e)._repr_markdown_()
    assert p.arithmetic == ['W4A16, inputs as they are']
    groups = both(d, activations='group')
    q = parity.parity(*groups, tokens(), base)
    assert q.worst < q.bound and q.arithmetic == ['W4A4, inputs a scale per group'] and q.cost > p.cost, q.failures


@pytest.mark.parametrize('scheme', ['nvfp4', 'mxfp8'])
def test_blackwell_formats_compute_what_was_judged(both, scheme, tmp_path):
    "Layer by layer on the same input: with inputs in groups the file does what fake quantization did, else not."
    q = quantize.quantize(models.tiny('llama'), Windows(), scheme, progress=False)
    path = export.export(q, tmp_path/scheme)
    x = torch.randn(32, 128, generator=torch.Generator().manual_seed(0)).bfloat16()
    for activations in ('group', 'none'):
        for e in both(path, activations=activations):
            for n, m in runtime.quantized(e.model).items():
                mine = x if m.in_features == 128 else x.repeat(1, 2)
                with torch.no_grad():
                    far = rel(m(mine), q.loaded.model.get_submodule(n)(mine))
                assert (far < .01) == (activations == 'group'), (activations, e.kind, n, far)


def test_passport_is_checked_before_loading(cooked, tmp_path):
    from tqcook.passport import write_passport
    d = shutil.copytree(cooked('fp8')[0], tmp_path/'p')
    (d/'passport.json').unlink(missing_ok=True)
    write_passport(d, scheme='fp8')
    assert runtime.load(d, device='cpu').kind == 'runtime'
    f = d/'model.safetensors'
    raw = bytearray(f.read_bytes())
    raw[-1] ^= 1
    f.write_bytes(raw)
    with pytest.raises(CookError, match='model.safetensors'):
        runtime.load(d, device='cpu')


# --- layouts of other tools


@pytest.mark.parametrize('scheme,layout', [('int8_token', 'compressed-tensors'), ('int8_wo', 'compressed-tensors'),
                                           ('int4_awq', 'compressed-tensors'), ('fp8_rowwise', 'compressed-tensors'),
                                           ('fp8_block', 'deepseek')])
def test_layouts_that_other_engines_load(tmp_path, both, scheme, layout):
    "What stands in a file of another layout is computed as its config says."
    base = models.tiny('llama', hidden_size=128, intermediate_size=384, num_hidden_layers=2)
    kw = dict(folded=True) if scheme == 'int4_awq' else {}
    q = quantize.quantize(base, Windows(), scheme, progress=False, **kw)
    e, ref = both(export.export(q, tmp_path/'x', layout=layout))
    assert {m.storage for m in runtime.quantized(e.model).values()} == {scheme}
    p = parity.parity(e, ref, tokens(), base)
    assert p.passed and p.linears == 14, p.failures
    if scheme == 'int8_token':
        assert p.arithmetic == ['W8A8, inputs a scale per token']
        assert e.model.model.layers[0].mlp.up_proj.weight.dtype == torch.int8
    if scheme == 'fp8_block':
        assert p.arithmetic == ['W8A8, inputs a scale per group']
        weights_only = runtime.load(e.path, device='cpu', activations='none')
        assert not parity.parity(weights_only, ref, tokens(), base).passed # another arithmetic under the same name


def test_int8_as_compressed_tensors_by_hand(cooked, tmp_path, both):
    "Config and tensors as vLLM loads them, written here and not by our export."
    path, base, _ = cooked('fp8')
    def pack(t, c):
        for n, m in models.linears(base.model).items():
            w = m.weight.float()
            s = w.abs().amax(1, keepdim=True) / 127
            t.pop(f'{n}.input_scale')
            t.update({f'{n}.weight': (w / s).round().to(torch.int8), f'{n}.weight_scale': s})
        eight = dict(num_bits=8, type='int', symmetric=True)
        group = dict(targets=['Linear'], weights=eight | dict(strategy='channel', dynamic=False),
                     input_activations=eight | dict(strategy='token', dynamic=True))
        c['quantization_config'] = dict(quant_method='compressed-tensors', format='int-quantized', ignore=['lm_head'],
                                        quantization_status='compressed', config_groups=dict(group_0=group))
    d = edit(path, tmp_path/'ct', pack)
    (d/'hf_quant_config.json').unlink()
    e, ref = both(d)
    p = parity.parity(e, ref, tokens(), base)
    assert p.passed and p.arithmetic == ['W8A8, inputs a scale per token'] and p.cost < .05, p.failures


def test_loaders_that_fuse_round_again(cooked, tmp_path, both):
    "q, k, v and gate, up of different scales: codes go to the largest one, and the result says so."
    path, base, _ = cooked('fp8')
    def spread(t, c):
        for n, m in models.linears(base.model).items():
            s = m.weight.float().abs().max() / 448
            t.update({f'{n}.weight': formats.quantize_e4m3(m.weight, s), f'{n}.weight_scale': s})
    d = edit(path, tmp_path/'x', spread)
    e, ref = both(d)
    layer = e.model.model.layers[0].self_attn
    assert layer.q_proj.weight_scale == layer.k_proj.weight_scale == layer.v_proj.weight_scale
    p, apart = parity.parity(e, ref, tokens(), base), runtime.load(d, device='cpu', fused=False)
    assert p.passed and p.arithmetic[-1].startswith('4 fused products'), p.failures
    assert apart.notes['arithmetic'] == p.arithmetic[:-1]
    other = apart.model.model.layers[0].self_attn
    codes = [[getattr(a, n).weight.view(torch.uint8) for n in ('q_proj', 'k_proj', 'v_proj')] for a in (layer, other)]
    assert 1 <= sum(torch.equal(x, y) for x, y in zip(*codes)) < 3 # those of the largest scale stay
    assert not parity.parity(apart, ref, tokens(), base).passed # the two are told apart


# --- the KV cache


def test_wrapping_attention_changes_nothing_by_itself(cooked, monkeypatch):
    "With the rounding taken out, the FP8-cache attention is the plain one, bit for bit."
    plain, path = cooked('fp8')[0], cooked('fp8', 'fp8')[0]
    kv = runtime.load(path, device='cpu')
    assert kv.notes['kv'] == 'fp8'
    with torch.no_grad():
        rounded = kv.model(tokens()).logits
        monkeypatch.setattr(runtime, 'round_e4m3', lambda x: x)
        same, want = kv.model(tokens()).logits, runtime.load(plain, device='cpu').model(tokens()).logits
    assert torch.equal(same, want) and not torch.equal(rounded, want)


def test_keys_are_rounded_after_rope(cooked):
    "What attention receives lies on the E4M3 grid, and differs from rounding before RoPE."
    e, seen = runtime.load(cooked('fp8', 'fp8')[0], device='cpu'), []
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table
    name = e.model.config._attn_implementation
    wrapped = table[name]
    def spy(module, q, k, v, *a, **kw):
        seen.append((k, v))
        return wrapped(module, q, k, v, *a, **kw)
    table[name] = spy
    try:
        with torch.no_grad():
            e.model(tokens())
    finally:
        table[name] = wrapped
    k = seen[0][0]
    assert len(seen) == 2 and not torch.equal(formats.round_e4m3(k), k) # arrives unrounded, rotary embedding applied
    assert torch.equal(formats.round_e4m3(formats.round_e4m3(k)), formats.round_e4m3(k))


def test_cached_generation_is_uncached_generation_under_fp8_kv(cooked):
    e = runtime.load(cooked('fp8', 'fp8')[0], device='cpu', kernels='reference', dtype='float32')
    ids = [3, 1, 4, 1, 5, 9, 2, 6]
    got = runtime.generate(e, ids, 6).ids
    for _ in range(6):
        with torch.no_grad():
            ids = ids + [int(e.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    assert got == ids[8:]


# --- text


def test_generate_is_transformers_greedy(cooked):
    e = runtime.load(cooked('fp8')[0], device='cpu')
    got = runtime.generate(e, [5, 6, 7, 8], 12).ids
    kw = dict(max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert got == e.model.generate(torch.tensor([[5, 6, 7, 8]]), **kw)[0, 4:].tolist()


def test_diverge(cooked):
    path, base, _ = cooked('fp8')
    e = runtime.load(path, device='cpu')
    d = runtime.diverge(base, e, [5, 6, 7], 40)
    assert d.a.ids[:d.index] == d.b.ids[:d.index] and (d.index is None or d.a.ids[d.index] != d.b.ids[d.index])
    same = runtime.diverge(e, e, [5, 6, 7], 8)
    assert same.index is None and 'the same 8 tokens' in same._repr_markdown_()


@pytest.mark.parametrize('prompt,n,word', [([], 4, 'empty'), ([1] * 512, 4, 'context'), ('text', 4, 'tokenizer'),
                                           ([1], 0, 'max_new_tokens')])
def test_generate_bad_input(cooked, prompt, n, word):
    e = copy.copy(runtime.load(cooked('fp8')[0], device='cpu'))
    e.tokenizer = None
    with pytest.raises(CookError, match=word):
        runtime.generate(e, prompt, n)


# --- bad checkpoints

UP = 'model.layers.1.mlp.up_proj'


def one_layer_more(t, c):
    t.update({k.replace('layers.1', 'layers.2'): v.clone() for k, v in list(t.items()) if 'layers.1' in k})


def no_scales(t, c):
    for k in [k for k in t if 'scale' in k]:
        t.pop(k)


def scale(value, leaf='weight_scale'):
    return lambda t, c: t.update({f'{UP}.{leaf}': torch.tensor(value)})


BAD = {
    'a scale of NaN': (scale(math.nan), 'up_proj.weight_scale'),
    'a negative scale': (scale(-.01), 'up_proj.weight_scale'),
    'an infinite scale': (scale(math.inf, 'input_scale'), 'up_proj.input_scale'),
    'an absurd scale': (scale(1e30), 'up_proj.weight_scale'),
    'a scale of zero': (scale(0.), 'up_proj.weight_scale'),
    'a norm is missing': (lambda t, c: t.pop('model.norm.weight'), 'model.norm.weight'),
    'a weight is missing, its scale is not': (lambda t, c: t.pop(f'{UP}.weight'), 'up_proj'),
    'a scale is missing': (lambda t, c: t.pop(f'{UP}.weight_scale'), 'up_proj'),
    'a tensor too many': (lambda t, c: t.update({'model.layers.1.mlp.extra.weight': torch.ones(2, 2)}), 'extra'),
    'a layer too many': (one_layer_more, 'layers.2'),
    'another width': (lambda t, c: c.update(intermediate_size=256), '384'),
    'another vocabulary': (lambda t, c: c.update(vocab_size=1000), '1000'),
    'an unknown architecture': (lambda t, c: c.update(model_type='nosuch'), 'nosuch'),
    'no heads': (lambda t, c: c.update(num_attention_heads=0), 'config.json'),
    'code of its own': (lambda t, c: c.update(auto_map={'AutoModelForCausalLM': 'x.Y'}), 'auto_map'),
    'no quantized linear': (no_scales, 'weight_scale'),
}


@pytest.mark.parametrize('what', BAD)
def test_bad_checkpoint_is_refused(cooked, tmp_path, what):
    change, word = BAD[what]
    with pytest.raises(CookError) as e:
        runtime.load(edit(cooked('fp8')[0], tmp_path/'bad', change), device='cpu')
    assert word in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('kv', ['INT8', 'NVFP4'])
def test_other_kv_formats_are_refused(cooked, tmp_path, kv):
    d = edit_quantization(edit(cooked('fp8')[0], tmp_path/'kv', lambda t, c: None), kv_cache_quant_algo=kv)
    with pytest.raises(CookError, match=kv.lower()):
        runtime.load(d, device='cpu')


def test_truncated_file(cooked, tmp_path):
    d = shutil.copytree(cooked('fp8')[0], tmp_path/'cut')
    f = d/'model.safetensors'
    f.write_bytes(f.read_bytes()[:-1000])
    with pytest.raises(CookError):
        runtime.load(d, device='cpu')


@pytest.mark.parametrize('kw,word', [(dict(kernels='fast'), 'kernels'), (dict(dtype='int8'), 'dtype'),
                                     (dict(dtype='float32'), 'float32'), (dict(activations='dynamic'), 'activations')])
def test_bad_arguments(cooked, kw, word):
    with pytest.raises(CookError, match=word):
        runtime.load(cooked('fp8')[0], device='cpu', **kw)


def test_missing_directory(tmp_path):
    with pytest.raises(CookError):
        runtime.load(tmp_path/'none', device='cpu')


def test_ampere_is_told_that_it_cannot_run_fp8():
    a100, slots = Device('NVIDIA A100-SXM4-80GB', sm=80), [skeleton.Slot('a', 'a', 'fp8')]
    with pytest.raises(CookError, match="sm80.*fake-quantized.*kernels='reference'"):
        runtime._check_device(slots, a100)
    runtime._check_device([skeleton.Slot('a', 'a', 'int8_sq')], a100)
    runtime._check_device(slots, Device('NVIDIA L4', sm=89))


# --- cost


@pytest.mark.slow
def test_forward_costs_at_most_five_times_bf16_on_the_cpu(tmp_path):
    "In the shape of the demonstration model, 4 windows of 512; processor time, so that a busy machine does not count."
    path, base, _ = cook(tmp_path/'x', hidden_size=256, intermediate_size=768, num_hidden_layers=8)
    e, ids, best = runtime.load(path, device='cpu'), tokens(4, 512), [math.inf, math.inf]
    threads = torch.get_num_threads()
    torch.set_num_threads(1) # threads that wait for one another count as processor time
    try:
        with torch.no_grad():
            for _ in range(4):
                for i, model in enumerate((base, e)):
                    start = time.process_time()
                    model.model(ids, use_cache=False)
                    best[i] = min(best[i], time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    print(f'runtime {best[1]:.3f} s, BF16 {best[0]:.3f} s of processor time: {best[1] / best[0]:.2f} times')
    assert best[1] < 5 * best[0]

"The fast tier: every scheme against its file, tokens against Hugging Face, and what it refuses."
import json

import numpy as np
import pytest
import torch

from tqcook import bench, decoder, export, kernels, models, quantize, synthetic, tuning
from tqcook.core import CookError
from warm import command

BOUND = 4e-3
SCHEMES = ['fp8', 'fp8_rowwise', 'fp8_block', 'int8_sq', 'int8_token', 'int8_wo', 'int4_awq']
SIZE = {'hidden_size': 128, 'intermediate_size': 256, 'num_hidden_layers': 2}


class Windows:
    "The little of a Corpus that calibration needs."
    windows = [np.random.default_rng(i).integers(0, 4096, 64) for i in range(4)]


@pytest.fixture(scope='module')
def cooked(tmp_path_factory):
    "(scheme, kv) -> directory, made once each."
    made = {}

    def get(scheme, kv='none'):
        if (scheme, kv) not in made:
            q = quantize.quantize(models.tiny('llama', **SIZE), Windows(), scheme, kv=kv, progress=False)
            made[scheme, kv] = export.export(q, tmp_path_factory.mktemp('cooked')/f'{scheme}-{kv}')
        return made[scheme, kv]
    return get


def plain(path, arch='llama', **over):
    "A tiny random model on disk, with everything set that a family has of its own -> (model, directory)."
    loaded = models.tiny(arch, dtype='float32', **(SIZE | over))
    for layer in loaded.model.model.layers:
        attention = layer.self_attn
        for name in 'q_proj', 'k_proj', 'v_proj':
            if getattr(attention, name).bias is not None:
                getattr(attention, name).bias.data.normal_(0, .5)
        for name in 'q_norm', 'k_norm':
            if hasattr(attention, name):
                getattr(attention, name).weight.data.uniform_(.5, 1.5)
    loaded.model.save_pretrained(path)
    return loaded.model, path


# ---- products

@pytest.mark.parametrize('scheme', SCHEMES)
def test_products_compute_what_the_file_says(cooked, scheme):
    d = decoder.load(cooked(scheme), 'cpu', scales='file')
    errors = decoder.product_errors(d, cooked(scheme))
    assert len(errors) == 8 and max(errors.values()) < BOUND


def test_int8_with_a_scale_for_each_token(cooked):
    d = decoder.load(cooked('int8_sq'), 'cpu', activations='token')
    assert d.kinds == ['int8_token'] and max(decoder.product_errors(d, cooked('int8_sq')).values()) < BOUND


@pytest.mark.parametrize('scheme', SCHEMES)
def test_a_wrong_scale_is_noticed(cooked, scheme):
    d = decoder.load(cooked(scheme), 'cpu', scales='file')
    p = d.layers[1].o
    if p.scale is None:
        p.weight = p.weight * 1.02
    else:
        p.scale = p.scale * 1.02
    errors = decoder.product_errors(d, cooked(scheme))
    assert errors.pop('1.o') > BOUND and max(errors.values()) < BOUND


@pytest.mark.parametrize('scheme', ['fp8', 'int8_sq'])
def test_a_wrong_input_scale_and_exchanged_rows_are_noticed(cooked, scheme):
    d = decoder.load(cooked(scheme), 'cpu', scales='file')
    d.layers[0].down.input_scale = d.layers[0].down.input_scale * 1.02
    w = d.layers[1].gate_up.weight.view(torch.uint8)
    w[:2] = w[:2].flip(0)
    errors = decoder.product_errors(d, cooked(scheme))
    assert errors['0.down'] > BOUND and errors['1.gate_up'] > BOUND


def test_shared_scales_are_the_largest_and_what_that_costs_is_told(tmp_path):
    "Checkpoints of others have a scale for each of q, k and v; those exported here share one already."
    from safetensors.torch import load_file, save_file
    path = synthetic.Synthetic(models.tiny('llama', **SIZE).model.config.to_dict(), 'fp8').save(tmp_path)
    t = load_file(path/'model.safetensors')
    t['model.layers.0.self_attn.k_proj.weight_scale'] *= .8
    save_file(t, path/'model.safetensors', {'format': 'pt'})
    file, served = (decoder.load(path, 'cpu', scales=s) for s in ('file', 'max'))
    for x, y in zip(file.layers, served.layers):
        assert y.qkv.scale.unique().numel() == 1 and y.qkv.scale[0] == x.qkv.scale.max()
    assert file.unified.groups == 0 and served.unified.groups == 1 and 1e-3 < served.unified.error < .05
    assert max(decoder.product_errors(file, path).values()) < BOUND
    assert decoder.product_errors(served, path)['0.qkv'] > BOUND


def test_four_bits_are_widened_and_said(cooked):
    assert 'int4_awq weights were widened to 16 bits' in decoder.load(cooked('int4_awq'), 'cpu').notes


# ---- tokens

@pytest.mark.parametrize('arch, over', [
    ('llama', {}), ('mistral', {}), ('qwen2', {}), ('qwen3', {}), ('llama', {'tie_word_embeddings': True}),
    ('llama', {'rope_parameters': {'rope_type': 'llama3', 'rope_theta': 1e4, 'factor': 8., 'low_freq_factor': 1.,
                                   'high_freq_factor': 4., 'original_max_position_embeddings': 64}})])
def test_greedy_tokens_are_those_of_transformers(tmp_path, arch, over):
    model, path = plain(tmp_path, arch, **over)
    d = decoder.load(path, 'cpu', dtype='float32')
    prompts = [[5, 9, 300, 4000, 17, 2, 8], [40, 41], [7]]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    want = model.generate(
        ids, attention_mask=mask, max_new_tokens=24, min_new_tokens=24, do_sample=False, pad_token_id=0
    )
    got = decoder.generate(d, prompts, 24, stop=())
    assert [g.ids for g in got] == want[:, longest:].tolist()


def test_the_demonstration_model_says_what_it_said(tmp_path):
    d, hf = decoder.load(models.demo_path(), 'cpu', dtype='float32'), models.load('demo', 'cpu', 'float32')
    text = 'import json\n\ndef load(path):\n'
    ids = hf.tokenizer(text, return_tensors='pt')['input_ids']
    want = hf.model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)[0, ids.shape[1]:].tolist()
    assert decoder.generate(d, text, 40)[0].ids == want


def test_seeds_top_p_and_temperature(tmp_path):
    d = decoder.load(plain(tmp_path)[1], 'cpu', dtype='float32')
    say = lambda **kw: decoder.generate(d, [[1, 2, 3]], 12, stop=(), **kw)[0].ids
    assert say(temperature=1., seed=1) == say(temperature=1., seed=1) != say(temperature=1., seed=2)
    assert say(temperature=1., top_p=1e-6) == say()


def test_streaming_and_stop_tokens(tmp_path):
    d = decoder.load(plain(tmp_path)[1], 'cpu', dtype='float32')
    whole = [g.ids for g in decoder.generate(d, [[1, 2, 3], [9]], 8, stop=())]
    seen = []
    short = decoder.generate(d, [[1, 2, 3], [9]], 8, stop={whole[0][2]}, on_token=seen.append)
    end = whole[0].index(whole[0][2]) + 1
    assert short[0].ids == whole[0][:end] and [s[0] for s in seen if s[0] is not None] == short[0].ids


def test_an_fp8_cache_rounds_keys_and_values(cooked):
    d = decoder.load(cooked('fp8', 'fp8'), 'cpu')
    cache, _ = decoder.start(d, [[1, 2, 3, 4]], 4)
    assert d.kv == 'fp8' and cache.k.dtype == torch.float8_e4m3fn and cache.k[:, :, :, :4].float().abs().sum() > 0


def test_logits_of_windows_are_those_of_transformers(tmp_path):
    model, path = plain(tmp_path, 'qwen3')
    lg = decoder.DecoderLogits(decoder.load(path, 'cpu', dtype='float32'))
    ids = torch.randint(0, 4096, (2, 48), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model(ids).logits
    got = torch.stack([lg.head(h) for h in lg.hidden(ids)])
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


# ---- what is refused

def sentence(f, *args, **kw):
    "The sentence that something is refused with."
    with pytest.raises(CookError) as e:
        f(*args, **kw)
    assert '\n' not in str(e.value)
    return str(e.value)


def test_bad_input(tmp_path):
    d = decoder.load(plain(tmp_path)[1], 'cpu', dtype='float32')
    say = lambda *a, **kw: sentence(decoder.generate, d, *a, **kw)
    assert 'the prompt is empty' in say([[1], []])
    assert 'no prompts' in say([])
    assert 'has no tokenizer' in say('text')
    assert 'knows 0 to 4095' in say([[4096]])
    assert 'max_new_tokens is 0; expected a whole number, 1 to' in say([[1]], 0)
    assert 'do not fit into a cache of 16; at most 8 tokens' in say([[1] * 10], 8, capacity=16)
    assert 'positions' in say([[1] * 510], 8)
    assert 'at most' in sentence(d.cache, 10**9, 512)
    assert 'expected one of max, file' in sentence(decoder.load, tmp_path, 'cpu', scales='sum')


def test_what_has_no_fast_tier_is_told(tmp_path):
    models.tiny('gemma2').model.save_pretrained(tmp_path)
    told = sentence(decoder.load, tmp_path, 'cpu')
    assert 'architecture is gemma2' in told and 'the general tier runs it' in told
    models.demo_tokenizer().save_pretrained(tmp_path)
    loaded, why = decoder.serve(tmp_path, 'cpu')
    assert loaded.kind == 'hf' and 'gemma2' in why


def test_the_fast_tier_is_taken_where_it_serves(cooked):
    d, why = decoder.serve(cooked('fp8'), 'cpu')
    assert isinstance(d, decoder.Decoder) and not why


@pytest.mark.slow
def test_compare_takes_a_decoder(demo, held_out):
    from tqcook import compare
    c = compare.compare(
        demo,
        decoder.DecoderLogits(decoder.load(models.demo_path(), 'cpu')),
        held_out[:8] if isinstance(held_out, list) else held_out,
        noise_floor='none',
        progress=False,
    )
    assert abs(c.stats['ppl_ratio'].value - 1) < 2e-3


def test_a_changed_checkpoint_is_refused(cooked, tmp_path):
    import shutil
    path = shutil.copytree(cooked('fp8'), tmp_path/'changed')
    config = json.loads((path/'config.json').read_text())
    (path/'config.json').write_text(json.dumps(config | {'rms_norm_eps': .1}))
    if (path/'passport.json').exists():
        assert 'config.json' in sentence(decoder.load, path, 'cpu')


def test_a_missing_tensor_is_named(tmp_path):
    _, path = plain(tmp_path)
    from safetensors.torch import load_file, save_file
    t = load_file(path/'model.safetensors')
    t.pop('model.layers.1.mlp.up_proj.weight')
    save_file(t, path/'model.safetensors', {'format': 'pt'})
    assert 'model.layers.1.mlp.up_proj' in sentence(decoder.load, path, 'cpu', dtype='float32')


def test_no_triton_is_one_sentence(monkeypatch):
    monkeypatch.setattr(kernels, 'missing', lambda: 'triton is not installed')
    kernels.ready.cache_clear()
    assert 'triton is not installed' in sentence(kernels.ready)


# ---- block sizes and speeds

def test_forms_fit_what_they_are_for():
    for n, k in ((6144, 4096), (4096, 14336), (256, 256), (768, 64), (151936, 4096)):
        for batch in (1, 4, 16, 64):
            for size in (1, 2):
                assert all(f.fits(n, k) for f in tuning.forms(n, k, batch, size)) and tuning.forms(n, k, batch, size)


def test_a_damaged_file_of_choices_costs_a_measurement(tmp_path):
    (tmp_path/'forms.json').write_text('{"some GPU": [1, 2')
    c = tuning.Choices('some GPU', tmp_path/'forms.json')
    assert c.get('x') is None
    c.put('x', tuning.Form())
    c.save()
    assert tuning.Choices('some GPU', tmp_path/'forms.json').get('x') == tuning.Form()


def test_digits_hold_an_activation():
    "The arithmetic of `kernels._put_digits` and `_add_digits`, in integers."
    y = torch.randn(1000, dtype=torch.float64) * torch.logspace(-3, 0, 1000)
    s = y.abs().max() / 8323072
    q = torch.floor(y / s + .5).long()
    high = (q + 32896) >> 16
    q = q - high * 65536
    mid = (q + 128) >> 8
    low = q - mid * 256
    assert all(d.min() >= -128 and d.max() <= 127 for d in (high, mid, low))
    assert ((high * 65536 + mid * 256 + low) * s - y).abs().max() <= .51 * s


def test_random_weights_are_finite_in_every_scheme():
    config = models.tiny('qwen3', **SIZE).model.config.to_dict()
    for scheme in (None, *synthetic.STORED):
        d = synthetic.synthetic(config, scheme, device='cpu')
        with torch.inference_mode():
            assert torch.isfinite(d.forward(torch.arange(32)[None])).all(), scheme


def test_bench_command(tmp_path):
    args = '--schemes bf16,int8_wo --batches 1 --contexts 32 --prompts 1x32 --steps 2 --device cpu --json'
    r = command('bench', *args.split(), cwd=tmp_path)
    assert r.returncode == 0, r.stderr
    points = json.loads(r.stdout)['points']
    expected = [(w, s) for s in ('bf16', 'int8_wo') for w in ('decode', 'prefill')]
    assert [(p['what'], p['scheme']) for p in points] == expected
    assert all(p['tokens_per_second'] > 0 for p in points)
    told = sentence(bench.measure, 'demo', ['nope'], device='cpu')
    assert told.startswith("schemes is 'nope'; expected a list, each a scheme or bf16: number formats")
    assert 'batches is 0' in sentence(bench.measure, 'demo', ['bf16'], [0], device='cpu')


@pytest.mark.slow
def test_speed_recipe(tmp_path):
    r = command('run', 'speed', '-o', 'speed', '-p', 'schemes=["bf16", "int8_wo"]', '-p', 'batches=[1]', cwd=tmp_path)
    assert r.returncode == 0, r.stderr[-2000:]
    speed = json.loads((tmp_path/'speed/results.json').read_text())['runtime']['speed']
    assert {t['scheme'] for t in speed['ladder']} == {'bf16', 'fp8'} and len(speed['points']) == 4 and speed['peers']
    assert list((tmp_path/'speed/figures').iterdir())

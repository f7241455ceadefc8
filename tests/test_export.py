"What export writes: for which engine, in which types, read back, and configs under TensorRT-LLM 1.2's transformers."
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tqcook import checkpoint, compare, data, export, models, parity, quantize, runtime, schemes
from tqcook.core import CookError

READ = '''
import json, os, sys
sys.path.insert(0, os.environ['TQCOOK_TRANSFORMERS4'])
import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
def default(c):
    share = getattr(c, 'partial_rotary_factor', None) or getattr(c, 'rotary_pct', 1.)
    base = getattr(c, 'rope_theta', None) or c.rotary_emb_base
    d = int((getattr(c, 'head_dim', None) or c.hidden_size // c.num_attention_heads) * share)
    return 1 / base ** (torch.arange(0, d, 2).float() / d)
out = {}
for d in sys.argv[1:]:
    c = AutoConfig.from_pretrained(d)
    scaling = getattr(c, 'rope_scaling', None) or {}
    kind = scaling.get('rope_type', scaling.get('type', 'default'))
    f = default(c) if kind == 'default' else ROPE_INIT_FUNCTIONS[kind](c, 'cpu')[0]
    out[os.path.basename(d)] = dict(inv_freq=f.tolist(), local=getattr(c, 'rope_local_base_freq', None))
print(json.dumps(out))
'''
PLAIN = dict(rope_type='default', rope_theta=5e4)
LONG = dict(rope_type='longrope', rope_theta=1e4, short_factor=[1.] * 16, long_factor=[2.] * 16)
CASES = dict(
    llama={},
    partial=dict(model_type='phi', rope_parameters=PLAIN | dict(partial_rotary_factor=.25)),
    neox=dict(model_type='gpt_neox', rope_parameters=PLAIN | dict(partial_rotary_factor=.5)),
    linear=dict(rope_parameters=dict(rope_type='linear', factor=4., rope_theta=5e5)),
    llama3=dict(rope_parameters=dict(rope_type='llama3', factor=8., low_freq_factor=1., high_freq_factor=4.,
                                     original_max_position_embeddings=128, rope_theta=5e5)),
    yarn=dict(rope_parameters=dict(rope_type='yarn', factor=4., original_max_position_embeddings=128, rope_theta=1e6)),
    longrope=dict(model_type='phi3', rope_parameters=LONG, original_max_position_embeddings=512),
    gemma3=dict(model_type='gemma3_text', head_dim=32, layer_types=['sliding_attention', 'full_attention']),
    glm=dict(model_type='glm', head_dim=32, rope_parameters=PLAIN | dict(partial_rotary_factor=.5)),
    stablelm=dict(model_type='stablelm', rope_parameters=PLAIN | dict(partial_rotary_factor=.25)),
    qwen3=dict(model_type='qwen3', head_dim=32, rope_parameters=dict(rope_type='yarn', factor=4., rope_theta=1e6,
                                                                     original_max_position_embeddings=128)),
    mistral=dict(model_type='mistral', rope_parameters=PLAIN),
    mixtral=dict(model_type='mixtral', rope_parameters=PLAIN),
    cohere=dict(model_type='cohere', rope_parameters=PLAIN),
    olmo2=dict(model_type='olmo2', rope_parameters=PLAIN),
    phi3_partial=dict(model_type='phi3', rope_parameters=PLAIN | dict(partial_rotary_factor=.75)),
)


def test_rotary_settings_survive_the_way_back(tmp_path):
    "Under 4.57 (TQCOOK_TRANSFORMERS4 names a folder with it) the portable config gives the same inverse frequencies."
    if 'TQCOOK_TRANSFORMERS4' not in os.environ:
        pytest.skip('TQCOOK_TRANSFORMERS4 names no folder with transformers 4.57')
    import transformers as tr
    want = {}
    for name, case in CASES.items():
        small = dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
                     num_key_value_heads=2, vocab_size=512, max_position_embeddings=512, pad_token_id=1)
        kind = case.get('model_type', 'llama')
        config = tr.AutoConfig.for_model(kind, **small, **{k: v for k, v in case.items() if k != 'model_type'})
        with models.quiet():
            model = tr.AutoModelForCausalLM.from_config(config)
        buffers = {n: b for n, b in model.named_buffers() if n.endswith('inv_freq') and 'original' not in n}
        want[name] = next((b for n, b in buffers.items() if 'full' in n), next(iter(buffers.values()))).tolist()
        config.architectures = [type(model).__name__]
        config.save_pretrained(tmp_path/name)
        if name == 'partial':
            config.save_pretrained(tmp_path/'raw')
        export.make_portable(tmp_path/name)
    dirs = [str(tmp_path/name) for name in (*CASES, 'raw')]
    r = subprocess.run([sys.executable, '-c', READ, *dirs], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    got = json.loads(r.stdout.splitlines()[-1])
    for name, frequencies in want.items():
        assert got[name]['inv_freq'] == pytest.approx(frequencies, rel=1e-3), name
    assert got['gemma3']['local'] == 1e4
    assert got['raw']['inv_freq'] != pytest.approx(want['partial'], rel=1e-3) # as transformers 5 writes it


@pytest.fixture(scope='module')
def cut():
    g = np.random.default_rng(0)
    return SimpleNamespace(windows=[g.integers(0, 4096, 64) for _ in range(8)])


def test_the_layout_of_an_engine():
    assert export.layout_of('fp8') == export.layout_of('fp8', 'sglang') == 'hf'
    assert export.layout_of('fp8_block', 'sglang') == 'deepseek'
    for name, s in schemes.SCHEMES.items():
        for engine in 'trtllm', 'vllm', 'sglang':
            if engine in s.layouts:
                assert s.storage in export.LAYOUTS[export.layout_of(name, engine)]
            else:
                with pytest.raises(CookError, match=f'{engine} loads {name} in no layout'):
                    export.layout_of(name, engine)


@pytest.mark.parametrize('spoil', [None, 'scale', 'codes', 'missing'])
def test_the_legacy_layout_is_read_back(cut, tmp_path, monkeypatch, spoil):
    from safetensors.torch import load_file, save_file
    write = export.write_legacy
    def spoiled(q, out, *args):
        write(q, out, *args)
        f, at = out/'rank0.safetensors', 'transformer.layers.1.mlp.proj.'
        t = load_file(f)
        if spoil == 'scale':
            t[at + 'per_channel_scale'] *= 1.2
        if spoil == 'codes':
            t[at + 'weight'] = t[at + 'weight'].flip(1).contiguous()
        if spoil == 'missing':
            t[at + 'weight'] = t[at + 'weight'].bfloat16()
        save_file(t, f)
    monkeypatch.setattr(export, 'write_legacy', spoiled)
    q = quantize.quantize(models.tiny('llama'), cut, 'int8_token', progress=False)
    if spoil:
        with pytest.raises(CookError, match='does not hold what int8_token promises'):
            export.export(q, tmp_path/'c', engine_for='trtllm')
    else:
        export.export(q, tmp_path/'c', engine_for='trtllm')
    assert (tmp_path/'c').exists() == (spoil is None)


def test_a_comparison_says_that_a_loader_rounds_again(cut, tmp_path):
    "Scales that differ within a fused product: what is compared is what the loader will compute, and it says so."
    m, e = models.tiny('llama'), data.corpus('code', models.demo_tokenizer(), 64, max_windows=4)
    for apart in True, False:
        q = quantize.quantize(m, cut, 'fp8', keep_apart=apart, progress=False)
        loaded = runtime.load(export.export(q, tmp_path/str(apart)), device='cpu')
        said = '\n'.join(compare.compare(m, loaded, e, noise_floor='none', progress=False).lines())
        assert ('4 fused products rounded again to one scale, as loaders do' in said) == apart


def test_a_part_of_a_fused_product_cannot_be_left_out(cut, tmp_path):
    for exclude, good in (['*.q_proj'], False), (['*.up_proj'], False), (['*.q_proj', '*.k_proj', '*.v_proj'], True):
        q = quantize.quantize(models.tiny('llama'), cut, 'fp8', exclude=exclude, progress=False)
        if good:
            export.export(q, tmp_path/'c')
        else:
            with pytest.raises(CookError, match='engines fuse into one product'):
                export.export(q, tmp_path/'c')
        assert (tmp_path/'c').exists() == good


def test_experts_have_no_legacy_layout(cut, tmp_path):
    q = quantize.quantize(models.tiny('mixtral'), cut, 'int8_token', progress=False)
    with pytest.raises(CookError, match='take another layout'):
        export.export(q, tmp_path/'c', layout='trtllm_legacy')


@pytest.mark.slow
@pytest.mark.parametrize('scheme', ['fp8', 'int8_token'])
def test_where_bf16_is_emulated_everything_computes_in_float32(demo, held_out, tmp_path, monkeypatch, scheme):
    "Base, fake-quantized and exported alike, and the file is in the types of the model all the same."
    for room in models, runtime:
        monkeypatch.setattr(room, 'emulates_bf16', lambda: True)
    m = models.load('demo', device='cpu')
    assert (m.dtype, m.model.dtype) == ('float32', torch.float32) and 'emulates bfloat16' in m.to_dict()['widened']
    assert models.load('demo', device='cpu', dtype='bfloat16').dtype == 'bfloat16' # who asks for it gets it
    q = quantize.quantize(m, held_out.take(range(6)), scheme, progress=False)
    out = export.export(q, tmp_path/'c')
    kinds = {t.dtype for n, t in checkpoint.Checkpoint.open(out).tensors.items() if 'scale' not in n}
    assert kinds == {'BF16', dict(fp8='F8_E4M3', int8_token='I8')[scheme]}
    real, ref = runtime.load(out, device='cpu'), runtime.load(out, device='cpu', kernels='reference')
    assert real.dtype == ref.dtype == 'float32' and parity.parity(real, ref).passed
    if scheme != 'fp8':
        return # INT8 differs from itself by as much: rows that round the other way
    few, kw = held_out.take(range(8)), dict(progress=False, noise_floor='none')
    step = compare.compare(q.loaded, real, few, **kw).stats['kld_mean'].value
    # sums in another order differ by 1e-7, which tips roundings from the second layer on: .17 to .30, by CPU
    assert step < .5 * compare.compare(m, real, few, **kw).stats['kld_mean'].value # the file is what was judged



@pytest.mark.parametrize('scheme, tp', [('fp8', 1), ('int8_sq', 1), ('int8_token', 2), ('int4_awq', 1)])
def test_the_legacy_layout_is_read_back_value_by_value(cut, tmp_path, monkeypatch, scheme, tp):
    "Two rows or two columns that changed places, and matrices that are swapped, lost or added, fail the export."
    from safetensors.torch import load_file, save_file
    layer, write = 'transformer.layers.1.', export.write_legacy
    def rows(t):
        t[f'{layer}attention.dense.weight'][[0, 1]] = t[f'{layer}attention.dense.weight'][[1, 0]]
    def columns(t):
        t[f'{layer}mlp.proj.weight'] = t[f'{layer}mlp.proj.weight'].roll(1, 1).contiguous()
    def heads(t):
        t[f'{layer}attention.qkv.weight'] = t[f'{layer}attention.qkv.weight'].roll(8, 0).contiguous()
    def swapped(t):
        gate, fc = ({n: x for n, x in t.items() if f'{layer}mlp.{p}.' in n} for p in ('gate', 'fc'))
        t.update({n.replace('.gate.', '.fc.'): x for n, x in gate.items()})
        t.update({n.replace('.fc.', '.gate.'): x for n, x in fc.items()})
    def lost(t):
        del t[f'{layer}mlp.proj.weight']
    def added(t):
        t[f'{layer}mlp.more.weight'] = t[f'{layer}mlp.proj.weight'].clone()
    wrong = {None: '', rows: 'o_proj', columns: 'down_proj', heads: 'q_proj.*k_proj', swapped: 'gate_proj.*up_proj',
             lost: 'down_proj', added: 'mlp.more'}
    for change, named in wrong.items():
        def broken(q, out, *args):
            write(q, out, *args)
            if change:
                f = out/f'rank{tp - 1}.safetensors'
                t = load_file(f)
                change(t)
                save_file(t, f)
        monkeypatch.setattr(export, 'write_legacy', broken)
        q = quantize.quantize(models.tiny('llama'), cut, scheme, progress=False)
        if change:
            with pytest.raises(CookError, match=f'does not hold what {scheme} promises.*{named}'):
                export.export(q, tmp_path/'c', layout='trtllm_legacy', tp=tp)
        else:
            export.export(q, tmp_path/'good', layout='trtllm_legacy', tp=tp)
        assert not (tmp_path/'c').exists()

"Bad models: one clear sentence each, and never a pickle."
import json
import shutil
import struct

import numpy as np
import pytest
import torch

from tqcook import models
from tqcook.core import CookError


def _copy(tmp_path):
    "A copy of the demonstration model to spoil."
    return shutil.copytree(models.demo_path(), tmp_path/'m', ignore=shutil.ignore_patterns('*.md'))

def _refused(path, *words, **kw):
    with pytest.raises(CookError) as e:
        models.load(str(path), device='cpu', **kw)
    msg = str(e.value)
    assert '\n' not in msg and len(msg) < 500
    for w in words:
        assert w in msg, (w, msg)

def test_missing_path(tmp_path):
    _refused(tmp_path/'none', 'does not exist')
def test_empty_name():
    _refused('', 'empty')
def test_directory_without_config(tmp_path):
    _refused(tmp_path, 'config.json')
def test_unknown_shape():
    _refused('shape:llama-3.1-8x', 'llama-3.1-8b')
def test_unknown_dtype():
    _refused('demo', 'dtype', dtype='fp16')
def test_hub_id_offline():
    _refused('nobody/nothing', 'nobody/nothing', 'hub id')

def test_directory_without_weights(tmp_path):
    p = _copy(tmp_path)
    (p/'model.safetensors').unlink()
    _refused(p, 'no weights')

def test_pickle_is_refused_and_never_opened(tmp_path):
    p = _copy(tmp_path)
    (p/'model.safetensors').unlink()
    (p/'pytorch_model.bin').write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path/'pwned').encode() + b"'\ntR.")
    _refused(p, 'pickle', 'pytorch_model.bin')
    assert not (tmp_path/'pwned').exists()

def test_truncated_safetensors(tmp_path):
    p = _copy(tmp_path)
    f = p/'model.safetensors'
    f.write_bytes(f.read_bytes()[:-1000])
    _refused(p, 'damaged', 'model.safetensors')

@pytest.mark.parametrize(
    'raw',
    [
        b'',
        b'\x00' * 4,
        struct.pack('<Q', 2**40) + b'{}',
        struct.pack('<Q', 2) + b'no',
        struct.pack('<Q', 14) + b'{"a":{"b":[]}}',
    ],
)
def test_nonsense_safetensors(tmp_path, raw):
    p = _copy(tmp_path)
    (p/'model.safetensors').write_bytes(raw)
    _refused(p, 'safetensors')

def test_nan_weight_is_named(tmp_path):
    from safetensors.torch import load_file, save_file
    p = _copy(tmp_path)
    t = load_file(p/'model.safetensors')
    t['model.layers.3.mlp.up_proj.weight'][5, 7] = float('nan')
    save_file(t, p/'model.safetensors', metadata={'format': 'pt'})
    _refused(p, 'model.layers.3.mlp.up_proj.weight', 'NaN')

def test_config_without_architectures(tmp_path):
    p = _copy(tmp_path)
    c = json.loads((p/'config.json').read_text())
    del c['architectures']
    (p/'config.json').write_text(json.dumps(c))
    _refused(p, 'architectures')

def test_remote_code_is_refused(tmp_path):
    p = _copy(tmp_path)
    c = json.loads((p/'config.json').read_text())
    c['auto_map'] = {'AutoModelForCausalLM': 'evil.Model'}
    (p/'config.json').write_text(json.dumps(c))
    _refused(p, 'trust_remote_code')

def test_malformed_config(tmp_path):
    p = _copy(tmp_path)
    (p/'config.json').write_text('{')
    _refused(p, 'not valid JSON')

def test_missing_shard(tmp_path):
    p = _copy(tmp_path)
    (p/'model.safetensors.index.json').write_text(
        json.dumps(dict(weight_map={'a': 'model-00002-of-00002.safetensors'}))
    )
    _refused(p, 'incomplete')

def test_adapter_is_named(tmp_path):
    p = _copy(tmp_path)
    (p/'adapter_config.json').write_text('{}')
    _refused(p, 'LoRA')

def test_already_quantized(demo_fp8):
    _refused(demo_fp8, 'already quantized')

def test_gguf(tmp_path):
    f = tmp_path/'m.gguf'
    f.write_bytes(b'GGUF')
    _refused(f, 'not a readable GGUF file')

def test_random_weights_are_called_random():
    t = models.tiny('llama')
    assert t.weights == 'random' and t.model.config.architectures == ['LlamaForCausalLM']

def test_seed_decides_random_weights():
    a, b, c = (models.tiny('llama', seed=s).model.lm_head.weight for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)

def test_peek_counts_what_load_counts(demo):
    assert models.peek('demo')['parameters'] == demo.n_params

@pytest.mark.parametrize('arch', list(models.TINY))
def test_linears_are_all_of_the_body(arch):
    m = models.tiny(arch).model
    big = {
        n
        for n, p in m.named_parameters()
        if p.ndim == 2
        and 'embed' not in n
        and 'wte' not in n
        and 'wpe' not in n
        and 'lm_head' not in n
        and 'gate.weight' not in n
    }
    assert {f'{n}.weight' for n in models.linears(m)} >= big

# files that contradict themselves or lead elsewhere

def _edited(tmp_path, edit=None, **config):
    "A copy of the demonstration model with other entries in config.json, and other tensors."
    from safetensors.torch import load_file, save_file
    p = _copy(tmp_path)
    c = json.loads((p/'config.json').read_text()) | config
    (p/'config.json').write_text(json.dumps(c))
    if edit:
        save_file(edit(load_file(p/'model.safetensors')), p/'model.safetensors', metadata={'format': 'pt'})
    return p

@pytest.mark.parametrize('config, words', [
    (dict(num_hidden_layers=2), ['no place', 'model.layers.2']),
    (dict(num_hidden_layers=0), ['num_hidden_layers', 'positive']),
    (dict(num_hidden_layers=-1), ['num_hidden_layers', 'positive']),
    (dict(max_position_embeddings=0), ['max_position_embeddings']),
    (dict(num_attention_heads=0), ['num_attention_heads']),
    (dict(vocab_size=10**400), ['vocab_size']),
    (dict(hidden_size='x'), ['hidden_size']),
    (dict(architectures=['GPT2LMHeadModel']), ['GPT2LMHeadModel', 'gpt2']),
    (dict(architectures=['NoSuchModel']), ['NoSuchModel', 'does not have']),
    (dict(rope_parameters=dict(rope_type='default', rope_theta=0)), ['rope_theta', 'finite']),
    (dict(rope_parameters=dict(rope_type='default', rope_theta=float('nan'))), ['rope_theta', 'finite']),
])
def test_a_config_that_contradicts_its_file(tmp_path, config, words):
    _refused(_edited(tmp_path, **config), *words)

def test_a_tensor_without_a_place_is_named(tmp_path):
    p = _edited(tmp_path, lambda t: t | {'model.layers.0.self_attn.extra.weight': torch.ones(2)})
    _refused(p, 'no place', 'model.layers.0.self_attn.extra.weight')

def test_a_key_twice(tmp_path):
    p = _copy(tmp_path)
    (p/'config.json').write_text((p/'config.json').read_text().rstrip().rstrip('}') + ', "model_type": "llama"}')
    _refused(p, 'config.json', 'twice')

def test_a_hundred_thousand_brackets(tmp_path):
    p = _copy(tmp_path)
    (p/'config.json').write_text('[' * 100_000)
    _refused(p, 'nested too deep')

def _head(t, change):
    return t | {'lm_head.weight': t['model.embed_tokens.weight'].clone() + change}

def test_a_tied_flag_and_another_head(tmp_path):
    p = _edited(tmp_path, lambda t: _head(t, 1), tie_word_embeddings=True)
    _refused(p, 'ties the head', 'tie_word_embeddings to false')

def test_a_tied_flag_and_the_same_head(tmp_path):
    p = _edited(tmp_path, lambda t: _head(t, 0), tie_word_embeddings=True)
    assert models.load(p, device='cpu').weights == 'trained'

def test_a_pipe_as_config_does_not_hang(tmp_path):
    import os
    p = _copy(tmp_path)
    (p/'config.json').unlink()
    os.mkfifo(p/'config.json')
    _refused(p, 'config.json', 'no regular file')

def test_a_link_to_itself(tmp_path):
    (tmp_path/'m').symlink_to(tmp_path/'m')
    _refused(tmp_path/'m', 'does not exist')
    p = _copy(tmp_path/'x')
    (p/'model.safetensors').unlink()
    (p/'model.safetensors').symlink_to('model.safetensors')
    _refused(p, 'model.safetensors')

@pytest.mark.parametrize('name', ['../model.safetensors', '/etc/model.safetensors', 'pytorch_model.bin'])
def test_an_index_that_leads_elsewhere(tmp_path, name):
    p = _copy(tmp_path)
    shutil.move(p/'model.safetensors', tmp_path/'model.safetensors')
    shutil.copy(tmp_path/'model.safetensors', p/'model-00001-of-00001.safetensors')
    from safetensors import safe_open
    with safe_open(p/'model-00001-of-00001.safetensors', 'pt') as f:
        where = dict.fromkeys(f.keys(), 'model-00001-of-00001.safetensors')
    where['model.norm.weight'] = name
    (p/'model.safetensors.index.json').write_text(json.dumps(dict(weight_map=where)))
    _refused(p, 'index', name)

def test_weights_that_lie_elsewhere(tmp_path):
    p = _copy(tmp_path)
    shutil.move(p/'model.safetensors', tmp_path/'model.safetensors')
    (p/'model.safetensors').symlink_to(tmp_path/'model.safetensors')
    _refused(p, 'symbolic link', 'model.safetensors')

# attention, and configs that only transformers reads

_TINY = dict(vocab_size=4096, hidden_size=64, num_hidden_layers=1, num_attention_heads=2)
_WITHOUT_SDPA = {
    'gpt_oss': dict(_TINY, num_key_value_heads=1, head_dim=32, intermediate_size=64, num_local_experts=2,
                    num_experts_per_tok=1, layer_types=['full_attention']),
    'bloom': dict(vocab_size=4096, hidden_size=64, n_layer=1, n_head=2),
    'gptj': dict(vocab_size=4096, n_embd=64, n_layer=1, n_head=2, rotary_dim=16, n_positions=64),
    'mpt': dict(vocab_size=4096, d_model=64, n_layers=1, n_heads=2, max_seq_len=64),
    'mamba2': dict(vocab_size=4096, hidden_size=64, num_hidden_layers=1, num_heads=8, head_dim=16, state_size=16,
                   n_groups=1, chunk_size=16)}

@pytest.mark.parametrize('kind', _WITHOUT_SDPA)
def test_models_that_cannot_do_sdpa_take_what_they_can(kind, tmp_path):
    "Saved and loaded; Mamba 2's config holds an infinity that plain JSON does not."
    import transformers
    config = transformers.AutoConfig.for_model(kind, **_WITHOUT_SDPA[kind])
    made = transformers.AutoModelForCausalLM.from_config(config)
    made.save_pretrained(tmp_path/'m')
    models.demo_tokenizer().save_pretrained(tmp_path/'m')
    loaded = models.load(tmp_path/'m', device='cpu')
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.isfinite(loaded.model(ids).logits).all()

# GGUF

def _gguf(path, kind='F32', **keys):
    "A Llama of one layer as a GGUF file."
    gguf = pytest.importorskip('gguf')
    w = gguf.GGUFWriter(path, 'llama')
    w.add_context_length(64)
    w.add_embedding_length(64)
    w.add_block_count(1)
    w.add_feed_forward_length(64)
    w.add_head_count(2)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(6)
    w.add_tokenizer_model('gpt2')
    w.add_token_list(['a', 'b', 'ab', 'c', 'abc', '<s>'])
    w.add_token_types([1, 1, 1, 1, 1, 3])
    w.add_token_merges(['a b', 'ab c'])
    w.add_bos_token_id(5)
    w.add_eos_token_id(5)
    rng, q = np.random.default_rng(0), gguf.GGMLQuantizationType[kind]
    square = ('attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_up', 'ffn_down')
    shapes = {'token_embd': (6, 64), 'output': (6, 64), 'output_norm': (64,), 'blk.0.attn_norm': (64,),
              'blk.0.ffn_norm': (64,), **{f'blk.0.{n}': (64, 64) for n in square}}
    for name, shape in shapes.items():
        x = rng.standard_normal(shape).astype(np.float32)
        if len(shape) > 1 and kind != 'F32':
            w.add_tensor(f'{name}.weight', gguf.quantize(x, q), raw_dtype=q)
        else:
            w.add_tensor(f'{name}.weight', x)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path

@pytest.mark.parametrize('kind', ['Q8_0', 'Q4_1'])
def test_a_gguf_file_is_dequantized_and_says_so(tmp_path, kind):
    m = models.load(str(_gguf(tmp_path/'tiny.gguf', kind)), device='cpu')
    assert m.name == f'tiny ({kind}, dequantized to bfloat16)' and m.to_dict()['name'] == m.name
    assert m.dtype == 'bfloat16' and m.vocab_size == 6 and m.tokenizer('ab')['input_ids'][-1] == 2
    assert models.peek(str(tmp_path/'tiny.gguf'))['parameters'] == m.n_params
    assert models.sized(tmp_path/'tiny.gguf').total == m.n_params
    gguf = pytest.importorskip('gguf')
    read = {t.name: t for t in gguf.GGUFReader(tmp_path/'tiny.gguf').tensors}['blk.0.ffn_up.weight']
    want = torch.from_numpy(gguf.dequantize(read.data, read.tensor_type)).bfloat16()
    assert torch.equal(m.model.model.layers[0].mlp.up_proj.weight, want)

def test_the_shape_of_a_gguf_file_is_timed(tmp_path):
    from tqcook import bench
    path = _gguf(tmp_path/'tiny.gguf')
    d = bench.open_model(path, 'fp8', device='cpu')
    assert d.weights == 'random' and d.arch.hidden == models.config_of(path)['hidden_size']
    assert bench.open_model(path, device='cpu').scheme is None

def test_gguf_files_that_are_refused(tmp_path):
    (tmp_path/'m-00001-of-00002.gguf').write_bytes(b'GGUF')
    _refused(tmp_path/'m-00001-of-00002.gguf', 'part', 'merge')
    with pytest.raises(CookError, match='one part of several'): # a recipe reads the config first
        models.config_of(tmp_path/'m-00001-of-00002.gguf')
    whole = _gguf(tmp_path/'whole.gguf').read_bytes()
    for n in (0, 4, 40, len(whole) // 2, len(whole) - 100):
        (tmp_path/'cut.gguf').write_bytes(whole[:n])
        _refused(tmp_path/'cut.gguf', 'cut.gguf')

def test_a_quantization_that_cannot_be_read(tmp_path, monkeypatch):
    gguf = pytest.importorskip('gguf')
    _gguf(tmp_path/'m.gguf', 'Q8_0')
    def refuse(data, kind):
        raise NotImplementedError(kind)
    monkeypatch.setattr(gguf, 'dequantize', refuse)
    _refused(tmp_path/'m.gguf', 'Q8_0', 'cannot be dequantized')

def test_smollm2_of_another_version_is_named(tmp_path, monkeypatch):
    import importlib.util
    from types import SimpleNamespace

    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', lambda *a: None)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    _refused('smollm2-135m', 'tqcook[real]')
    (tmp_path/'SmolLM2.gguf').write_bytes(b'another')
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: SimpleNamespace(origin=str(tmp_path/'__init__.py')))
    _refused('smollm2-135m', 'b179c9523d0e6a0f', 'SmolLM2.gguf', 'sha256')

@pytest.mark.slow
def test_smollm2_speaks():
    pytest.importorskip('gguf')
    try:
        models.locate('smollm2-135m')
    except CookError as e:
        pytest.skip(str(e))
    m = models.load('smollm2-135m', device='cpu')
    assert m.n_params == 134_515_008 and m.context == 8192 and m.tokenizer.chat_template
    if m.path.suffix == '.gguf':
        assert 'Q4_1' in m.name and 'dequantized' in m.name
    ids = m.tokenizer('The capital of France is', return_tensors='pt')
    assert m.tokenizer.decode(m.model.generate(**ids, max_new_tokens=2, do_sample=False)[0]).endswith('Paris.')

ODD = [None, 0, -1, 1.5, '', 'x', [], {}, True, [None], {'a': 1}, 10**30, float('inf'), 'llama', 2]

@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))
def test_any_value_in_any_config_loads_or_is_one_sentence(tmp_path, seed):
    import random
    p, rnd = _copy(tmp_path), random.Random(seed)
    for f in sorted(p.glob('*.json')):
        whole = f.read_text()
        keys = list(json.loads(whole))
        for _ in range(12):
            x = json.loads(whole)
            key = rnd.choice(keys)
            x[key] = rnd.choice(ODD)
            f.write_text(json.dumps(x))
            try:
                models.load(p, device='cpu')
            except CookError as e:
                assert '\n' not in str(e) and len(str(e)) < 700, str(e)
        f.write_text(whole)


def test_an_unknown_architecture_is_counted_by_its_headers(tmp_path):
    import json

    from tqcook import shapes
    m = models.tiny('mixtral')
    m.model.save_pretrained(tmp_path/'m')
    f = tmp_path/'m/config.json'
    known = models.sized(tmp_path/'m')
    config = json.loads(f.read_text())
    f.write_text(json.dumps(config | dict(model_type='unheard_of')))
    found = models.sized(tmp_path/'m')
    assert (found.total, found.linear, found.kv_width) == (known.total, known.linear, known.kv_width)
    assert (found.active, found.experts) == (known.active, known.experts)
    with pytest.raises(CookError, match='not in the table of families'): # the config alone does not say
        shapes.shape_of(f)
    f.write_text(json.dumps(config | dict(model_type='unheard_of', mamba_d_state=16)))
    with pytest.raises(CookError, match='mamba_d_state, whose cache and cost are not counted'):
        models.sized(tmp_path/'m')
    f.write_text(json.dumps(config | dict(model_type='unheard_of', num_attention_heads='many')))
    with pytest.raises(CookError, match='num_attention_heads'):
        models.sized(tmp_path/'m')


def test_configs_by_every_name(tmp_path):
    from tqcook.shapes import SHAPES
    config = models.config_of('shape:llama-3.1-8b')
    assert config == models.config_of(config) == SHAPES['llama-3.1-8b']
    assert models.config_of('demo') == models.config_of(models.demo_path()/'config.json')
    assert models.sized('demo').total == models.peek('demo')['parameters']
    with pytest.raises(CookError, match="hub id 'no/such' could not be loaded"):
        models.config_of('no/such')
    with pytest.raises(CookError, match='does not exist'):
        models.config_of(str(tmp_path/'nowhere'))

"Bad models: one clear sentence each, and never a pickle."
import json
import shutil
import struct

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

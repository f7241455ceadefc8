"Opening a directory: what is in it comes back as it is, what is wrong is one sentence."
import os

import numpy as np
import pytest

import broken
from tqcook.checkpoint import Checkpoint
from tqcook.contract import check
from tqcook.core import CookError


def test_open_raises_one_sentence(tmp_path):
    for name, word in (
        ('a_lora_adapter', 'merge'),
        ('pickle_only', 'pickle'),
        ('second_shard_missing', 'model-00002'),
        ('gigabyte_header', 'header too large'),
    ):
        c = broken.CASES[name]['make']()
        broken.CASES[name]['break_'](c)
        with pytest.raises(CookError, match=word) as e:
            Checkpoint.open(broken.write(c, tmp_path/name))
        assert '\n' not in str(e.value)

def test_a_link_inside_the_hub_cache_is_fine(tmp_path):
    blobs, snap = tmp_path/'models--a--b'/'blobs', tmp_path/'models--a--b'/'snapshots'/'rev'
    broken.write(broken.good(), blobs)
    snap.mkdir(parents=True)
    for p in blobs.iterdir():
        (snap/p.name).symlink_to(f'../../blobs/{p.name}')
    assert check(snap).codes == []

@pytest.mark.parametrize('scheme', ['fp8', 'fp8_rowwise', 'fp8_block', 'int8_wo', 'int4_awq', 'nvfp4'])
def test_dequantize_gives_back_the_weight(scheme, tmp_path):
    c, bound = (
        Checkpoint.open(broken.write(broken.good(scheme), tmp_path/'c')),
        dict(int4_awq=0.13, nvfp4=0.11, int8_wo=0.01).get(scheme, 0.03),
    )
    for m, w in broken.weights().items():
        rel = np.linalg.norm(c.dequantize(m) - w) / np.linalg.norm(w)
        assert rel < bound, (m, rel)

def test_read_agrees_with_the_safetensors_library(tmp_path):
    torch = pytest.importorskip('torch')
    from safetensors.torch import load_file
    d = broken.write(broken.good('nvfp4'), tmp_path/'c')
    c, ref = Checkpoint.open(d), load_file(d/broken.ONE)
    assert set(ref) == set(c.tensors)
    for k, t in ref.items():
        mine = c.read(k)
        assert mine.dtype == t.dtype
        assert mine.shape == t.shape
        assert torch.equal(mine.view(torch.uint8) if mine.ndim else mine, t.view(torch.uint8) if t.ndim else t)
        np.testing.assert_array_equal(c.array(k), t.float().numpy() if t.is_floating_point() else t.numpy())

def test_needs_neither_torch_nor_modelopt():
    import subprocess
    import sys
    heavy = ['torch', 'modelopt', 'transformers', 'matplotlib']
    code = f'import sys; from tqcook import checkpoint; print([m for m in {heavy} if m in sys.modules])'
    how = dict(capture_output=True, text=True, check=True, env=dict(os.environ))
    assert subprocess.run([sys.executable, '-c', code], **how).stdout.strip() == '[]'

def test_unreadable_and_dangling(tmp_path):
    c = broken.good()
    c['links'] = {'model-extra.safetensors': 'nothing'}
    assert check(broken.write(c, tmp_path/'a')).codes == ['half-written']
    d = broken.write(broken.good(), tmp_path/'b')
    (d/'more.safetensors').mkdir()
    assert check(d).codes == ['half-written']

@pytest.mark.parametrize('make, bound', [
    (broken.deepseek, .03), (broken.compressed, .03), (lambda: broken.compressed('int'), .01),
    (lambda: broken.packed(8), .01), (lambda: broken.packed(4), .13)])
def test_other_layouts_hold_the_same_weights(make, bound, tmp_path):
    c = Checkpoint.open(broken.write(make(), tmp_path/'c'))
    for m, w in broken.weights().items():
        assert np.linalg.norm(c.dequantize(m) - w) / np.linalg.norm(w) < bound, m

@pytest.mark.parametrize('key, value, word', [
    ('num_hidden_layers', 0, 'positive'), ('num_hidden_layers', -1, 'positive'), ('num_attention_heads', 0, 'positive'),
    ('hidden_size', 'x', 'whole number'), ('vocab_size', 10**400, 'whole number'), ('rope_theta', 0, 'finite'),
    ('rope_theta', float('nan'), 'finite'), ('max_position_embeddings', 0, 'positive')])
def test_a_config_of_no_model_is_refused(key, value, word, tmp_path):
    c = broken.good('none')
    c['json']['config.json'][key] = value
    with pytest.raises(CookError, match=f'{key}.*{word}'):
        Checkpoint.open(broken.write(c, tmp_path/'c'))

def test_the_lines_of_a_checkpoint_are_few(tmp_path):
    c = broken.good('fp8')
    for i in range(3000):
        c['st'][broken.ONE][f'model.extra.{i}.weight'] = broken.f32(np.zeros(1))
    opened = Checkpoint.open(broken.write(c, tmp_path/'c'))
    assert repr(opened).count('\n') < 30 and opened._repr_markdown_().count('\n') < 30 and len(repr(opened)) < 500

def test_fused_names_and_ancestors_are_excluded_as_each_reader_does(tmp_path):
    c = broken.good()
    c['json']['hf_quant_config.json']['quantization']['exclude_modules'] = [
        'model.layers.0.self_attn.qkv_proj', 'model.layers.1.mlp', 're:.*o_proj$', 'model.norm.*']
    c = Checkpoint.open(broken.write(c, tmp_path/'c'))
    names = ('model.layers.0.self_attn.k_proj', 'model.layers.1.mlp.up_proj', 'model.layers.1.self_attn.o_proj')
    assert [c.excluded(m) for m in names] == [True, False, False]
    c.ancestors = True
    assert [c.excluded(m) for m in (*names, 'model.norm')] == [True, True, True, True]
    assert not c.excluded('model.layers.1.self_attn.q_proj')

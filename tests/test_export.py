"Exported configs, read by the transformers that TensorRT-LLM 1.2 pins: TQCOOK_TRANSFORMERS4 names a folder with 4.57."
import json
import os
import subprocess
import sys

import pytest

from tqcook import export, models

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
)


def test_rotary_settings_survive_the_way_back(tmp_path):
    "The same inverse frequencies under transformers 5 and, from the portable config, under 4.57."
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
        export.make_portable(tmp_path/name)
    dirs = [str(tmp_path/name) for name in CASES]
    r = subprocess.run([sys.executable, '-c', READ, *dirs], capture_output=True, text=True)
    assert r.returncode == 0, r.stderr[-2000:]
    got = json.loads(r.stdout.splitlines()[-1])
    for name, frequencies in want.items():
        assert got[name]['inv_freq'] == pytest.approx(frequencies, rel=1e-3), name
    assert got['gemma3']['local'] == 1e4

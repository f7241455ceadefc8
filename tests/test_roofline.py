"""The memory plan against numbers counted in another way."""
import json

import pytest

from tqcook import memory, shapes
from tqcook.core import CookError

CONFIG = dict(hidden_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, vocab_size=1000,
              intermediate_size=512)


@pytest.mark.parametrize('arch,over', [('llama', {}), ('mistral', {}), ('qwen2', {}), ('qwen3', {}), ('phi3', {}),
                                       ('gemma2', {}), ('mixtral', {}), ('llama', dict(tie_word_embeddings=True))])
def test_parameters_equal_the_model(arch, over):
    pytest.importorskip('transformers')
    from tqcook import models
    loaded = models.tiny(arch, **over)
    p = shapes.parameters(loaded.model.config)
    small = sum(t.numel() for n, t in loaded.model.named_parameters() if t.ndim == 1 or 'router' in n
                or n.endswith('mlp.gate.weight'))
    assert p['linear'] + p['embedding'] + p['head'] == loaded.n_params - small


def test_splits_conserve_bytes():
    whole = memory.memory_plan(CONFIG, 'fp8', batch=4, context=128)
    halves = memory.memory_plan(CONFIG, 'fp8', batch=4, context=128, tp=2)
    assert whole.weights == pytest.approx(2 * halves.weights) and whole.cache == pytest.approx(2 * halves.cache)
    # two KV heads on four slices: each keeps a whole one
    copied = memory.memory_plan(CONFIG, 'fp8', batch=4, context=128, tp=4)
    assert copied.cache == pytest.approx(halves.cache) and copied.weights < halves.weights


def test_quantization_never_needs_more():
    plans = [memory.memory_plan(CONFIG, s, device='h100') for s in ('none', 'fp8', 'nvfp4')]
    assert plans[0].weights > plans[1].weights > plans[2].weights and all(p.fits for p in plans)
    assert memory.memory_plan(CONFIG, kv='fp8').cache * 2 == memory.memory_plan(CONFIG).cache


def test_parallel_plan_grows_with_the_load():
    small, large = (memory.parallel_plan('shape:llama-3.1-8b', batch=b, context=8192, device='l4') for b in (1, 64))
    assert small.gpus < large.gpus and small.fits and large.fits
    assert memory.nodes(large, 2) == -(-large.gpus // 2)


@pytest.mark.parametrize('config',
                         [{}, dict(CONFIG, vocab_size='many'),
                          dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=10)])
def test_configs_that_say_too_little(config):
    with pytest.raises(CookError):
        shapes.parameters(config)


def test_reads_a_directory(tmp_path):
    (tmp_path/'config.json').write_text(json.dumps(CONFIG))
    assert shapes.parameters(tmp_path) == shapes.parameters(CONFIG)
    with pytest.raises(CookError):
        shapes.parameters('shape:lama-8b')

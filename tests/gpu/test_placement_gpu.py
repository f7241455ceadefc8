"A model that no GPU of the machine holds: drawn over all of them, calibrated, compared with itself and exported."
import time

import pytest
import torch
from test_perplexity_gpu import random_corpus

from pairs import quiet
from small import Windows
from tqcook import attribution, compare, contract, models, placement, quantize
from tqcook.checkpoint import Checkpoint
from tqcook.export import export

TWO = torch.cuda.device_count() >= 2
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not TWO, reason='needs two GPUs')]


def layers(room):
    "So many layers of the 70 B shape that one GPU is too small for them in BF16; a tenth more."
    one = models.peek('shape:llama-3.1-70b')
    each = one['bytes'] / one['layers']
    return min(one['layers'], int(1.1 * room / each))


def test_a_model_larger_than_a_gpu(tmp_path, capsys, monkeypatch):
    total = torch.cuda.get_device_properties(0).total_memory
    n = layers(total)
    monkeypatch.setitem(models.SHAPES, 'big', models.SHAPES['llama-3.1-70b'] | dict(num_hidden_layers=n))
    told = placement.placement(models.peek('shape:big')['bytes'])
    assert models.peek('shape:big')['bytes'] > total and len(told) >= 2
    start = time.perf_counter()

    def mark(what):
        with capsys.disabled():
            print(f'{what} done after {time.perf_counter() - start:.0f} s', flush=True)

    m = models.load('shape:big', device='auto')
    mark('draw')
    assert m.spread and set(m.model.hf_device_map.values()) >= {0, 1}
    q = quantize.quantize(m, Windows(4, 512), 'fp8', copy=False, progress=False)
    mark('calibrate')
    c = compare.compare(attribution.Base(q.loaded), q.loaded, random_corpus(8, 512, m.vocab_size), **quiet)
    mark('compare')
    assert c['kld'].mean() > 0 # random weights: only that something was rounded
    path = export(q, tmp_path/'big')
    mark('export')
    d = Checkpoint.open(path)
    assert d.scheme == 'fp8' and not contract.check(path).errors
    peak = [torch.cuda.max_memory_allocated(i) for i in range(2)]
    assert max(peak) < total
    with capsys.disabled():
        print(f'\n{n} layers, {m.nbytes / 1e9:.0f} GB on {torch.cuda.device_count()} x {torch.cuda.get_device_name()}; '
              f'peaks {peak[0] / 1e9:.0f} and {peak[1] / 1e9:.0f} GB; file {d.nbytes / 1e9:.0f} GB')

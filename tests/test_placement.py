"A model that no device holds: where its weights go, that it computes the same, and what is refused before it is read."
import pytest
import torch

from pairs import quiet
from small import Windows, rel
from test_recipes import ROOT, cook, whole
from tqcook import attribution, compare, data, export, models, placement, quantize, runtime
from tqcook.core import CookError

pytest.importorskip('accelerate')


@pytest.fixture(scope='module')
def demo():
    "In the file's own type, also where a CPU would rather have float32; that of a split model stays."
    return models.load('demo', device='cpu', dtype='bfloat16')


@pytest.fixture(scope='module')
def split():
    "The demonstration model with 6 MB of memory allowed: most of its layers are on disk."
    return models.load('demo', device='cpu', room=dict(cpu=6e6, disk=1e9))


def test_placement_fills_the_fast_places_first():
    room = {0: 80e9, 1: 80e9, 'cpu': 100e9, 'disk': 1e12}
    assert placement.placement(16e9, room) == {0: 16e9}
    assert placement.placement(141e9, room) == {0: 80e9, 1: 61e9}
    assert list(placement.placement(300e9, room)) == [0, 1, 'cpu', 'disk']
    assert placement.placement(80e9, room) == {0: 80e9} != placement.placement(80e9 + 1, room)


def test_what_fits_nowhere_is_said_before_anything_is_read(monkeypatch):
    monkeypatch.setattr(models, '_read_directory', lambda *a: pytest.fail('it was read'))
    with pytest.raises(CookError, match=r'take 14.7 MB and there is room for 1 MB on the CPU, 2 MB on disk'):
        models.load('demo', device='cpu', room=dict(cpu=1e6, disk=2e6))
    with pytest.raises(CookError, match='room for 8 GB on GPU 0'):
        models.load('shape:llama-3.1-8b', room={0: 8e9})


def test_a_full_disk_is_one_sentence(monkeypatch):
    from transformers import AutoModelForCausalLM
    def full(*a, **kw):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(AutoModelForCausalLM, 'from_pretrained', full)
    with pytest.raises(CookError, match='is full.*TMPDIR'):
        models.load('demo', device='cpu', room=dict(cpu=6e6, disk=1e9))


def test_a_split_model_is_the_same_model(demo, split):
    places = split.model.hf_device_map
    assert set(places.values()) == {'cpu', 'disk'} and split.spread and not demo.spread
    assert any(p.is_meta for p in split.model.parameters()) and split.nbytes >= 14e6
    some = data.corpus('code', demo.tokenizer, context=64, max_windows=4)
    c = compare.compare(demo, split, some, **quiet)
    assert c['kld'].max() == 0 and c.stats['ppl_ratio'].value == 1


def test_a_map_of_ones_own(demo):
    by_hand = {n: 'cpu' for n in ('model.embed_tokens', 'model.norm', 'model.rotary_emb', 'lm_head')}
    by_hand |= {f'model.layers.{i}': 'disk' if i > 5 else 'cpu' for i in range(8)}
    m = models.load('demo', device='cpu', device_map=by_hand)
    ids = torch.arange(32)[None]
    with torch.no_grad():
        assert m.spread and torch.equal(m.model(ids).logits, demo.model(ids).logits)
    assert next(m.model.model.layers[7].parameters()).is_meta
    with pytest.raises(CookError, match='no place for model.layers.0.*and 7. more'):
        models.load('demo', device='cpu', device_map={'model.embed_tokens': 'cpu'})


def test_calibrated_compared_and_exported_with_one_model_in_memory(demo, tmp_path):
    "As from the whole model, base and quantized from the same modules; a map lost in a copy is refused."
    split = models.load('demo', device='cpu', room=dict(cpu=6e6, disk=1e9))
    text = Windows(2, 64)
    with pytest.raises(CookError, match='copy=False'):
        quantize.quantize(split, text, 'fp8', progress=False)
    q = quantize.quantize(split, text, 'fp8', copy=False, progress=False)
    whole = quantize.quantize(demo, text, 'fp8', progress=False)
    some = data.corpus('code', demo.tokenizer, context=64, max_windows=4)
    want = compare.compare(demo, whole.loaded, some, **quiet)
    c = compare.compare(attribution.Base(q.loaded), q.loaded, some, **quiet)
    assert c.base['kind'] == 'hf' and (c['nll_base'] == want['nll_base']).all()
    assert c['kld'] == pytest.approx(want['kld'], abs=1e-6) and c['kld'].mean() > 1e-4
    ours, theirs = (export.export(x, tmp_path/n) for x, n in ((q, 'split'), (whole, 'whole')))
    ids = torch.arange(64)[None]
    with torch.no_grad():
        a, b = (runtime.load(p, device='cpu').model(ids).logits for p in (ours, theirs))
    assert rel(a, b) == 0


def test_base_is_refused_where_weights_were_changed():
    q = quantize.quantize(models.tiny('llama'), Windows(), 'int8_sq', progress=False)
    with pytest.raises(CookError, match='moves factors into the weights'):
        attribution.Base(q.loaded)


@pytest.mark.slow
def test_a_recipe_with_a_model_that_is_split(tmp_path):
    "Calibrated, compared and exported with the weights in memory once; what wants one device is skipped and says so."
    import shutil
    nb = (ROOT/'recipes/01_fp8.ipynb').read_text()
    call = 'models.load(model, device=device, seed=seed'
    assert call in nb
    (tmp_path/'01_fp8.ipynb').write_text(nb.replace(call, call + ', room=dict(cpu=6e6, disk=1e9)'))
    shutil.copytree(ROOT/'recipes/params', tmp_path/'params')
    out, small = tmp_path/'run', '-p max_windows=8 -p context=128 -p calib_samples=4 -p calib_length=128'
    d = whole(cook(str(tmp_path/'01_fp8.ipynb'), *small.split(), out=out), out)
    skipped = {s['name'] for s in d['stages'] if s['status'] == 'skipped'}
    assert skipped - {'attribution'} == {'load checkpoint', 'parity', 'compare runtime', 'generate', 'speed'}
    assert set(d['quality']['steps']) == {'format', 'total'} and 0 < d['quality']['kld_mean'] < .05
    assert (out/'checkpoint'/'hf_quant_config.json').exists()

"The recipe of Blackwell's formats end to end in smoke size."
import json

import pytest

from test_recipes import cook, whole

pytest.importorskip('modelopt')


@pytest.fixture(scope='module')
def blackwell(tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'blackwell'
    return whole(cook('blackwell', out=out), out), out


@pytest.mark.slow
def test_quality_follows_the_bits(blackwell):
    d, out = blackwell
    by = {v['scheme']: v['quality'] for v in d['variants']}
    assert by['mxfp8']['kld_mean'] < .02 < by['nvfp4']['kld_mean'] < .3
    gap = d['details']['gaps']['nvfp4']['kld']
    assert 0 < gap['ci95'][0] < gap['value'] and d['details']['gaps']['mxfp8']['ln_ratio']['ci95'][0] < 0
    bits, error = d['details']['bits'], d['details']['weight_error']
    assert bits['mxfp8'] == 8.25 and 4.5 < bits['nvfp4'] < 4.51 and error['nvfp4'] > 3 * error['mxfp8']


@pytest.mark.slow
def test_the_file_is_what_was_judged(blackwell):
    d, out = blackwell
    layers, file = d['details']['layers'], d['details']['file']
    assert layers['group'] < .02 < layers['none'] # weights alone are another arithmetic, and the check sees it
    assert file['none']['kld_mean'] < file['group']['kld_mean']
    assert d['quality']['kld_mean'] == file['group']['kld_mean']
    label = json.loads((out/'checkpoint'/'hf_quant_config.json').read_text())['quantization']
    assert label['quant_algo'] == 'NVFP4' and label['group_size'] == 16
    assert d['details']['checks']['1.2.1 b200'] == [] != d['details']['checks']['1.2.1 h200']


@pytest.mark.slow
def test_predictions_say_where_they_are_from(blackwell):
    d, _ = blackwell
    gain = {(p['gpu'], p['scheme'], p['batch']): p['gain'] for p in d['details']['predicted']}
    assert gain['b200', 'nvfp4', 1] > gain['b200', 'fp8', 1] > 1 == gain['b200', 'none', 1]
    assert gain['h200', 'nvfp4', 0] == pytest.approx(1) # no FP4 there: a prompt gains nothing
    room = {(m['gpu'], m['scheme']): m for m in d['details']['memory']}
    assert room['rtxpro6000', 'nvfp4']['weights'] < .4 * room['rtxpro6000', 'none']['weights']
    assert d['details']['support']['nvfp4']['TensorRT-LLM 1.2.1, sm90'] == 'refused'
    assert d['seconds']['total'] < 400 # on a busy machine; 120 on two idle cores


@pytest.mark.parametrize('args, words', [
    (['-p', 'scheme=fp8_block'], ['fp8_block', 'not among the formats']),
    (['-p', 'targets=b900'], ['b900', 'b200']),
    (['-p', 'formats=nvfp5'], ['nvfp5', 'nvfp4']),
])
def test_bad_parameters(tmp_path, args, words):
    out = tmp_path/'run'
    r = cook('blackwell', *args, out=out)
    assert r.returncode in (1, 2) and 'Traceback' not in r.stderr
    assert all(w in r.stderr.strip().splitlines()[-1] for w in words), r.stderr[-600:]
    assert not (out/'results.json').exists()


def test_blocks_must_divide_every_input(tmp_path):
    "A model with layers of 120 inputs has no blocks of 16 that fill them, and the recipe says so before it calibrates."
    from tqcook import models
    odd = models.tiny('llama', hidden_size=120, num_attention_heads=4, head_dim=32)
    odd.model.save_pretrained(tmp_path/'odd')
    odd.tokenizer.save_pretrained(tmp_path/'odd')
    r = cook('blackwell', '-p', f'model={tmp_path}/odd', out=tmp_path/'run')
    last = r.stderr.strip().splitlines()[-1]
    assert r.returncode == 1 and '120 inputs' in last and 'does not divide' in last, r.stderr[-600:]

"One record a scheme: what it names is known, what is derived fits, and the way back from TensorRT-LLM's names."
import dataclasses
import json

import pytest

from make_readme import ROOT
from tqcook import schemes
from tqcook.core import CookError
from tqcook.device import DEVICES, lookup
from tqcook.formats import STORAGES
from tqcook.schemes import SCHEMES, Scheme, trtllm_support


def test_every_record_is_whole():
    for s in SCHEMES.values():
        assert s.w_granularity in ('tensor', 'channel', 'block', 'group')
        assert s.w_bits in (4, 8) and s.a_bits in (4, 8, 16)
        assert (s.block is None) == (s.w_granularity in ('tensor', 'channel'))
        assert s.a_static <= (s.a_granularity in ('tensor', 'group')) and s.weight_only == (s.a_granularity is None)
        assert set(s.layouts.values()) <= {'hf', 'compressed-tensors', 'deepseek', 'trtllm_legacy'}
        for name in s.quant_algo, *s.also:
            assert schemes.scheme_of(name) == s.name
    assert len({s.quant_algo for s in SCHEMES.values()}) == len(SCHEMES) == len({s.storage for s in SCHEMES.values()})
    assert {s.storage for s in SCHEMES.values()} == set(STORAGES)


def test_modelopt_has_every_configuration():
    mtq = pytest.importorskip('modelopt.torch.quantization')
    assert all(hasattr(mtq, s.modelopt) for s in SCHEMES.values())


@pytest.mark.parametrize('wrong, place', [(dict(storage='fp9'), 'formats.STORAGES'),
                                          (dict(quant_algo='FP9'), 'schemes.ALGOS'),
                                          (dict(a_dtype='e3m4'), 'formats.FORMATS')])
def test_a_record_that_names_something_unknown(wrong, place):
    with pytest.raises(CookError, match=place):
        dataclasses.replace(SCHEMES['fp8'], name='mine', **wrong)


def test_a_strangers_scheme_is_known_everywhere(monkeypatch):
    "One record, in place of the KeyError from the support matrix."
    mine = Scheme('int4_gptq', 'INT4, GPTQ', 'int4_awq', None, None, False, 'W4A16_GPTQ', 75, True, '', None)
    monkeypatch.setitem(SCHEMES, mine.name, mine)
    assert schemes.get('int4_gptq') is mine and schemes.scheme_of('W4A16_GPTQ') == 'int4_gptq'
    assert all(schemes.runs_on(mine, d).how for d in DEVICES.values())
    assert trtllm_support(mine).how == 'refused' and trtllm_support(mine, backend='tensorrt').native
    assert schemes.layout_for(mine, 'vllm') == 'hf'


@pytest.mark.parametrize('name', ['fp-8', 'int9', None, 8, ['fp8']])
def test_an_unknown_scheme_is_refused(name):
    with pytest.raises(CookError, match='one record in schemes.SCHEMES'):
        schemes.get(name)


def test_algorithms_and_back():
    assert schemes.canonical_algo('fp8_pb_wo') == schemes.canonical_algo('FP8_PB_WO') == 'FP8_BLOCK_SCALES'
    assert schemes.canonical_algo('W4A8_AWQ') == 'W4A8_AWQ' and schemes.canonical_algo(['FP8']) is None
    assert schemes.scheme_of('NVFP4_AWQ') == 'nvfp4'
    assert schemes.scheme_of('W4A8_AWQ') is None and schemes.scheme_of(None) is None


def test_versions_in_order():
    order = '1.0.0 1.2.0rc1 1.2.0rc10 1.2.0 1.2.1 1.3.0rc20 1.3.0rc21 1.3 1.4.0rc1.post1 1.4+cu13'.split()
    assert sorted(order, key=schemes.version_key) == order
    for bad in 'v1.2', '1', '', None, '1.2.x':
        with pytest.raises(CookError, match='expected version of TensorRT-LLM'):
            schemes.version_key(bad)


def test_what_tensorrt_llm_takes():
    how = lambda scheme, version, backend='pytorch', sm=None: trtllm_support(scheme, version, backend, sm).how
    assert how('int8_sq', '1.2.1') == how('int8_token', '1.4.0rc1') == 'refused'
    assert [how('int8_token', '1.2.1', 'tensorrt', sm) for sm in (80, 75)] == ['native', 'refused']
    assert how('fp8', '1.2.1', 'tensorrt', 80) == how('fp8', '1.3.0rc21', 'tensorrt') == 'refused'
    assert how('nvfp4', '1.2.1', sm=90) == 'refused' and how('nvfp4', '1.4.0rc1', sm=90) == 'widened'
    assert how('mxfp8', '1.2.1') == how('mxfp8', '1.4.0rc1', sm=90) == 'refused'
    assert how('mxfp8', '1.4.0rc1', sm=100) == 'native'
    assert [how('fp8_rowwise', '1.2.1', sm=sm) for sm in (90, 100)] == ['native', 'refused']
    assert 'bias' in trtllm_support('int8_wo', '1.2.1').why and 'bias' not in trtllm_support('int8_wo', '1.4.0rc1').why
    assert how('fp8', '0.21.0') == 'refused'
    with pytest.raises(CookError, match='backend'):
        trtllm_support('fp8', backend='vllm')


def test_where_schemes_run_here():
    a100, h100, cpu = lookup('a100'), lookup('h100'), dataclasses.replace(lookup('h100'), kind='cpu', sm=None)
    assert [schemes.runs_on('fp8', d).how for d in (a100, h100, cpu)] == ['fake', 'native', 'emulated']
    assert [schemes.runs_on('nvfp4', d).how for d in (h100, lookup('b200'), cpu)] == ['fake', 'widened', 'widened']
    assert [schemes.runs_on('int8_token', d).how for d in (a100, h100, cpu)] == ['native', 'native', 'emulated']
    assert schemes.runs_on('int4_awq', a100).how == schemes.runs_on('fp8_block', h100).how == 'widened'


def test_an_engine_that_takes_no_such_scheme():
    assert schemes.layout_for('int8_token', 'trtllm') == 'trtllm_legacy'
    assert schemes.layout_for('int8_token', 'sglang') == 'compressed-tensors'
    with pytest.raises(CookError, match='vllm loads int8_sq in no layout; it takes fp8'):
        schemes.layout_for('int8_sq', 'vllm')
    with pytest.raises(CookError, match="engine is 'vlm'.*vllm"):
        schemes.layout_for('fp8', 'vlm')


def test_the_table_of_families_is_what_was_measured():
    "Every scheme has its column, and the sentence above it counts the same cells."
    pytest.importorskip('torch')
    from test_families import FAMILIES, TABLE, markdown
    table = json.loads(TABLE.read_text())
    assert set(table) == set(FAMILIES) and all(set(results) == set(SCHEMES) for results in table.values())
    cells = json.loads((ROOT/'nbs/03_schemes.ipynb').read_text())['cells']
    text = next(s for s in (''.join(c['source']) for c in cells) if markdown(table) in s)
    results = [r for row in table.values() for r in row.values()]
    assert f'{len(table)} families' in text and f'{results.count("works")} of {len(results)} are' in text

"The passport: accidents are caught and named, copies are not accidents."
import json
import os
import shutil

import pytest

import broken
from tqcook import contract, passport, runtime
from tqcook.core import CookError, sha256
from tqcook.passport import verify, verify_or_refuse, write_passport


@pytest.fixture
def ck(tmp_path):
    d = broken.write(broken.sharded(), tmp_path/'ck')
    write_passport(
        d, scheme='fp8', kv='none', recipe='test', parameters=dict(a=1), model=dict(name='tiny', weights='random')
    )
    return d

def flip(path, at=-100):
    b = bytearray(path.read_bytes())
    b[at] ^= 1
    path.write_bytes(b)

def test_it_says_what_the_directory_was_made_from(ck):
    p = passport.read_passport(ck)
    assert p['scheme'] == 'fp8'
    assert p['parameters'] == {'a': 1}
    assert p['kind'] == 'checkpoint'
    assert p['versions']['python']
    assert set(p['files']) == {f.name for f in ck.iterdir()} - {'passport.json'}
    for n, f in p['files'].items():
        assert f['sha256'] == sha256(ck/n) and f['bytes'] == (ck/n).stat().st_size
    assert verify(ck).codes == []

def test_no_passport_is_a_warning(tmp_path):
    found = verify(broken.write(broken.good(), tmp_path/'c'))
    assert found.codes == ['no-passport'] and found.ok
    verify_or_refuse(tmp_path/'c')

@pytest.mark.parametrize(
    'name', ['model-00002-of-00002.safetensors', 'config.json', 'tokenizer.json', 'hf_quant_config.json']
)
def test_one_byte_in_any_file_is_refused_and_named(ck, name):
    flip(ck/name, -20)
    assert verify(ck).codes == ['file-changed']
    with pytest.raises(CookError, match=name):
        verify_or_refuse(ck)

def test_what_else_can_happen_to_a_directory(ck):
    shard, size = ck/'model-00001-of-00002.safetensors', (ck/'config.json').stat().st_size
    with open(ck/'config.json', 'a') as f:
        f.write(' ')
    (found,) = verify(ck)
    assert (found.code, found.file) == ('file-size', 'config.json') and str(size) in found.expected
    with open(ck/'config.json', 'r+') as f:
        f.truncate(size)
    assert verify(ck).codes == []
    shutil.copy(shard, ck/'model-extra.safetensors')
    assert verify(ck).codes == ['file-extra']
    (ck/'model-extra.safetensors').unlink()
    (ck/'notes.txt').write_text('hello')
    assert verify(ck).codes == ['file-added'] and verify(ck).ok
    (ck/'README.md').write_text('a card may change')
    shard.unlink()
    assert set(verify(ck).codes) == {'file-missing', 'file-added'}

def test_a_passport_edited_by_hand(ck):
    p = json.loads((ck/'passport.json').read_text())
    p['calibration'] = dict(samples=512)
    (ck/'passport.json').write_text(json.dumps(p))
    assert verify(ck).codes == ['passport-edited']
    for text in (
        '{}',
        '[]',
        'nothing',
        json.dumps(p | dict(schema=2)),
        json.dumps(p | dict(files={'../x': dict(bytes=1, mtime_ns=1, sha256='')})),
    ):
        (ck/'passport.json').write_text(text)
        assert verify(ck).codes == ['passport-json'], text
        with pytest.raises(CookError):
            verify_or_refuse(ck)

def test_the_same_passport_formatted_anew_is_the_same(ck):
    p = json.loads((ck/'passport.json').read_text())
    (ck/'passport.json').write_text(json.dumps(dict(reversed(p.items()))))
    assert verify(ck).codes == []

def test_written_once(ck):
    with pytest.raises(CookError, match='written once'):
        write_passport(ck)
    write_passport(ck, replace=True, scheme='fp8')
    assert verify(ck).codes == []

def test_a_copy_with_new_times_is_no_mismatch(ck, tmp_path):
    "A clone or a copy sets new times; bytes decide."
    shutil.copytree(ck, tmp_path/'copy', copy_function=shutil.copy)
    assert verify(tmp_path/'copy').codes == []

def test_bytes_decide_whatever_time_and_size_say(ck):
    "A changed byte behind an unchanged time and size is found."
    shard = ck/'model-00002-of-00002.safetensors'
    t = shard.stat()
    flip(shard)
    os.utime(shard, ns=(t.st_atime_ns, t.st_mtime_ns))
    assert verify(ck).codes == ['file-changed']

def engine(tmp_path, **kw):
    d = tmp_path/'engine'
    d.mkdir(parents=True)
    (d/'rank0.engine').write_bytes(b'engine')
    (d/'config.json').write_text('{}')
    write_passport(
        d, kind='engine', **(dict(device=dict(name='NVIDIA A100-SXM4-80GB', sm=80), parallel=dict(tp=1, pp=1)) | kw)
    )
    return d

def test_an_engine_is_bound_to_its_gpu(tmp_path):
    d = engine(tmp_path)
    assert verify(d, device='a100').codes == []
    assert verify(d, device='h100').codes == ['engine-other-sm']
    with pytest.raises(CookError, match='A100.*H100'):
        verify_or_refuse(d, device='h100')
    e = engine(tmp_path/'b', device=dict(name='NVIDIA H100 80GB HBM3', sm=90))
    found = verify(e, device='h200')
    assert found.codes == ['engine-other-gpu']
    assert found.ok
    assert 'H100' in found.items[0].found
    assert 'H200' in found.items[0].found
    many = engine(tmp_path/'c', device=dict(name='any RTX', sm=[89, 120]))
    assert verify(many, device='rtx4090').codes == ['engine-other-gpu'] and not verify(many, device='h100').ok
    assert verify(d, device='none').codes == []
    assert contract.check(d).codes == ['engine']
    assert contract.check(d, device='h100', passport=True).codes == ['engine-other-sm', 'engine']

def test_an_engine_and_versions_and_ranks(tmp_path, monkeypatch):
    d = engine(tmp_path, versions=dict(tensorrt='10.14.1'), parallel=dict(tp=2, pp=1))
    monkeypatch.setattr(passport, 'version', lambda dist: '10.15.1' if dist == 'tensorrt' else None)
    assert set(verify(d, device='a100').codes) == {'engine-version', 'engine-ranks'}

def test_an_engine_without_a_gpu_in_its_passport_is_not_written(tmp_path):
    (tmp_path/'rank0.engine').write_bytes(b'x')
    with pytest.raises(CookError, match='name and sm'):
        write_passport(tmp_path, kind='engine')
    with pytest.raises(CookError, match='kind'):
        write_passport(tmp_path, kind='model')

def test_no_gpu_here(tmp_path):
    from tqcook import device
    if device.detect('auto').kind == 'cuda':
        pytest.skip('there is a GPU here')
    assert verify(engine(tmp_path)).codes == ['engine-no-gpu']

def test_an_evaluation_belongs_to_its_passport(ck):
    quality = dict(
        ppl_base=10.0,
        ppl_quant=10.1,
        ppl_ratio=1.01,
        ppl_ratio_ci95=[1.005, 1.015],
        verdict='INCONCLUSIVE',
        source='prose',
    )
    passport.write_evaluation(ck, quality=quality)
    assert verify(ck).codes == [] and passport.read_evaluation(ck)['passport'] == passport.read_passport(ck).checksum
    e = json.loads((ck/'evaluation.json').read_text())
    e['quality']['verdict'] = 'PASS'
    (ck/'evaluation.json').write_text(json.dumps(e))
    assert verify(ck).codes == ['evaluation-edited'] and not verify(ck).ok
    passport.write_evaluation(ck, quality=quality)
    assert contract.check(ck, passport=True).ok and 'not-evaluated' not in contract.check(ck, passport=True).codes
    write_passport(ck, replace=True, scheme='fp8')
    assert verify(ck).codes == ['evaluation-other'] and verify(ck).ok
    (ck/'evaluation.json').write_text('{')
    assert verify(ck).codes == ['evaluation-json']
    (ck/'evaluation.json').unlink()
    assert 'not-evaluated' in contract.check(ck, passport=True).codes

def test_killed_while_writing_leaves_no_passport(tmp_path, monkeypatch):
    d = broken.write(broken.good(), tmp_path/'c')
    def die(*a):
        raise KeyboardInterrupt
    monkeypatch.setattr(os, 'replace', die)
    with pytest.raises(KeyboardInterrupt):
        write_passport(d)
    assert not [p for p in d.iterdir() if 'passport' in p.name]

def test_the_demonstration_checkpoint_with_one_byte_changed(demo_fp8, tmp_path):
    "The next load refuses and names the file."
    d = shutil.copytree(demo_fp8, tmp_path/'fp8')
    if not (d/'passport.json').exists():
        write_passport(d, scheme='fp8')
    assert verify_or_refuse(d).ok
    flip(d/'model.safetensors', -5000)
    with pytest.raises(CookError, match='model.safetensors'):
        runtime.load(d, device='cpu')

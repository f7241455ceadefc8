"What the notebook cannot test about itself: bad input, a truncated engine, another architecture, ONNX against PyTorch."
import sys

import numpy as np
import pytest

from tqcook import compile, onnx
from tqcook.core import CookError
from tqcook.device import lookup

torch = pytest.importorskip('torch')
pytest.importorskip('onnx')
rtx = pytest.mark.skipif(not __import__('importlib').util.find_spec('tensorrt_rtx'), reason='needs the extra rtx')
from small import nearest
from tqcook import models


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    loaded = models.tiny('llama')
    return loaded, nearest(loaded, tmp_path_factory.mktemp('compile')/'fp8')


@pytest.mark.parametrize('name', ['sm90', 'h100', 'h200', '90', 'SM_100', 'b200', 9.0 * 10])
def test_data_centre_gpus_are_refused_with_the_way_to_go(name):
    with pytest.raises(CookError, match='TensorRT-LLM'):
        compile.target(int(name) if isinstance(name, float) else name)


@pytest.mark.parametrize('name', ['', 'sm', 'sm999', 'fp8', None, -1])
def test_no_such_target(name):
    with pytest.raises(CookError):
        compile.target(name)


def test_unsupported_schemes_say_why():
    assert 'per token' in compile.supports('fp8_rowwise', 120)
    assert 'sm89' in compile.supports('fp8', 86) and not compile.supports('fp8', 89)
    with pytest.raises(CookError, match='did you mean'):
        compile.supports('fp-8', 120)


def test_missing_compiler_names_the_extra(small, monkeypatch, tmp_path):
    g = onnx.graph(small[1], length=16)
    monkeypatch.setitem(sys.modules, 'tensorrt_rtx', None)
    with pytest.raises(CookError, match=r'tqcook\[rtx\]'):
        compile.build([g], tmp_path, 'sm120')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('arch', ['llama', 'mistral', 'qwen2', 'qwen3', 'phi3'])
def test_architectures(arch, tmp_path):
    loaded = models.tiny(arch)
    g = onnx.graph(nearest(loaded, tmp_path/'c'), length=16)
    assert len(g.probes) == len(models.linears(loaded.model)) and g.operations['QuantizeLinear'] == len(g.probes)


def test_weights_that_fp16_cannot_hold(tmp_path):
    loaded = models.tiny('llama')
    with torch.no_grad():
        loaded.model.model.norm.weight[3] = 1e6
    with pytest.raises(CookError, match='norm.weight'):
        onnx.graph(loaded, length=16)
    with pytest.raises(CookError, match='norm.weight'):
        onnx.graph(nearest(loaded, tmp_path/'c'), length=16)


def test_input_scale_is_needed(tmp_path):
    d = nearest(models.tiny('llama'), tmp_path/'c', scale=0.)
    with pytest.raises(CookError, match='input_scale'):
        onnx.graph(d, length=16)


def test_no_limit_of_2_gb(small):
    "Weights stand in a file beside the graph, whose own size does not grow with them"
    import onnx as ox
    g = onnx.graph(small[1], length=16)
    other = g.path.parent/'weights.bin'
    large = [t for t in ox.load(g.path, load_external_data=False).graph.initializer if t.data_location == t.EXTERNAL]
    assert sum(int(e.value) for t in large for e in t.external_data if e.key == 'length') == other.stat().st_size
    assert len(large) == 2 * 7 + 2 and other.stat().st_size > 5 * g.path.stat().st_size # linears, embedding and head
    folder = g.path.parent
    del g
    assert not folder.exists() # gone with the object


@pytest.mark.slow
@rtx
def test_a_graph_of_more_than_2_gb(tmp_path):
    "1.1 billion parameters, nearly all in one head and one embedding: two bytes each do not fit a protobuf."
    loaded = models.tiny('llama', vocab_size=4_300_000)
    g = onnx.graph(loaded, length=4)
    del loaded
    assert g.nbytes > 2**31 > 1000 * g.path.stat().st_size
    assert compile.build([g], tmp_path, 'sm120', 1).engines[0].engine_bytes > 2**31


def test_graph_computes_what_the_checkpoint_says(small):
    "ONNX's own reference interpreter against the dequantized model, weights only: activations would differ by design."
    import onnx as ox
    from onnx.reference import ReferenceEvaluator
    loaded, d = small
    ck_dir = d.parent/'int8_wo'
    if not ck_dir.exists():
        nearest(loaded, ck_dir, 'int8_wo')
    g = onnx.graph(ck_dir, length=8)
    ids = np.arange(3, 11)[None]
    mask = np.triu(np.full((8, 8), np.finfo(np.float16).min, np.float16), 1)[None, None]
    got = (
        ReferenceEvaluator(ox.load(g.path))
        .run(None, dict(input_ids=ids, attention_mask=mask, position_ids=np.arange(8)[None]))[0]
        .astype(np.float32)
    )
    from tqcook.checkpoint import Checkpoint
    ck, model = Checkpoint.open(ck_dir), models.tiny('llama', dtype='float32').model
    for n, m in models.linears(model).items():
        m.weight.data = torch.from_numpy(
            ck.array(f'{n}.weight').astype(np.float32) * ck.array(f'{n}.weight_scale')[:, None]
        )
    with torch.no_grad():
        want = model(torch.from_numpy(ids)).logits.numpy()
    base = loaded.model.float()(torch.from_numpy(ids)).logits.detach().numpy()
    loaded.model.bfloat16()
    err = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert err < 5e-3 < np.linalg.norm(base[..., ::-1] - want) / np.linalg.norm(want), err


@pytest.mark.parametrize('scheme', ['fp8', 'int8_sq'])
def test_graph_quantizes_activations_as_the_checkpoint_says(scheme, tmp_path):
    """The graph is as near to float32 as our own reference is, and activation scales half as large again show.

    Rounding at every layer makes FP16, BF16 and float32 differ by some per cent of a random model's small logits.
    """
    import onnx as ox
    from onnx.reference import ReferenceEvaluator

    from tqcook import runtime
    from tqcook.checkpoint import Checkpoint
    d = nearest(models.tiny('llama'), tmp_path/'c', scheme, .02)
    ids, ck, g = np.arange(3, 11)[None], Checkpoint.open(d), onnx.graph(d, length=8)
    mask = np.triu(np.full((8, 8), np.finfo(np.float16).min, np.float16), 1)[None, None]
    feed = dict(input_ids=ids, attention_mask=mask, position_ids=np.arange(8)[None])
    got = (
        ReferenceEvaluator(ox.load(g.path))
        .run(None, feed)[0]
        .astype(np.float32)
    )
    with torch.no_grad():
        own = runtime.load(d, device='cpu', kernels='reference').model(torch.from_numpy(ids)).logits.float().numpy()
    def float32(factor):
        model = models.tiny('llama', dtype='float32').model
        for n, m in models.linears(model).items():
            s, ws = (
                float(ck.array(f'{n}.input_scale')) * factor,
                np.asarray(ck.array(f'{n}.weight_scale'), np.float32).reshape(-1, 1),
            )
            m.weight.data = torch.from_numpy(ck.array(f'{n}.weight').astype(np.float32) * ws)
            fp8 = lambda x, s=s: (x / s).clamp(-448, 448).to(torch.float8_e4m3fn).float() * s
            int8 = lambda x, s=s: (x / s).round().clamp(-128, 127) * s
            m.register_forward_pre_hook(lambda mod, a, q=fp8 if scheme == 'fp8' else int8: (q(a[0]),))
        with torch.no_grad():
            return model(torch.from_numpy(ids)).logits.numpy()
    err = lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)
    right, wrong = float32(1.), float32(1.5)
    assert err(got, right) < 1.2 * err(own, right) and err(got, wrong) > 1.5 * err(got, right)


@rtx
def test_engine_round_trip_and_damage(small, tmp_path):
    e, = compile.build([onnx.graph(small[1], length=16)], tmp_path, 'sm89', repeats=2).engines
    assert set(e.stored) == {'e4m3'} and len(e.seconds['builds']) == 2 and 0 < e.fixed_bytes < e.engine_bytes
    assert compile.check_engine(e.path, lookup('l4'))['sm'] == 89
    with pytest.raises(CookError, match='sm89.*sm90'):
        compile.check_engine(e.path, lookup('h100'))
    f = e.path/'prefill.engine'
    data = f.read_bytes()
    f.write_bytes(data[:len(data) // 2])
    with pytest.raises(CookError, match='damaged'):
        compile.check_engine(e.path)
    f.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CookError, match='hash'):
        compile.check_engine(e.path)
    f.unlink()
    with pytest.raises(CookError, match='no prefill.engine'):
        compile.check_engine(e.path)


@rtx
def test_the_compiler_refuses_fp8_for_ampere(small):
    g = onnx.graph(small[1], length=16)
    with pytest.raises(CookError, match='fp8_e4m3'):
        compile._compile(g.path, 86)


@rtx
def test_not_an_onnx_graph(tmp_path):
    (tmp_path/'model.onnx').write_bytes(b'nonsense')
    with pytest.raises(CookError, match='could not read'):
        compile._compile(tmp_path/'model.onnx', 120)

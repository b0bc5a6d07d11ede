"""nn.DataParallel with our model: on the CPU through torch's own replication, on two GPUs where there are two."""
import copy
import importlib
import threading

import pytest
import torch
from conftest import model_config, tiny_options
from torch.nn.parallel import scatter_gather

from configs import load_cfg
from loss.make_loss import make_loss
from model.make_model import make_model
from processor.trainer import do_train
from utils.dist import Replicas
from utils.precision import Precision

CPU = torch.device("cpu")
PIDS = torch.arange(4).repeat_interleave(2)


def replicate(module, count):
    """torch.nn.parallel.replicate without its copies to CUDA devices; as there, the first has the module's buffers."""
    modules = list(module.modules())
    replicas = []
    for number in range(count):
        twins = {one: one._replicate_for_data_parallel() for one in modules}
        for one, twin in twins.items():
            for name, child in one._modules.items():
                twin._modules[name] = None if child is None else twins[child]
            for name, parameter in one._parameters.items():
                if parameter is None:
                    twin._parameters[name] = None
                else:
                    setattr(twin, name, parameter.view_as(parameter))
            for name, buffer in one._buffers.items():
                twin._buffers[name] = buffer if buffer is None or number == 0 else buffer.clone()
        replicas.append(twins[module])
    return replicas


def in_threads(replicas, inputs, kwargs, devices):
    """torch.nn.parallel.parallel_apply without streams."""
    results = [None] * len(replicas)

    def work(number):
        try:
            results[number] = replicas[number](*inputs[number])
        except Exception as error:
            results[number] = error
    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(replicas))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not any(isinstance(one, Exception) for one in results), results
    return results


@pytest.fixture
def two_replicas(monkeypatch):
    """Replicas over two devices, both of them the CPU."""
    class Joined:
        @staticmethod
        def apply(device, dim, *tensors):
            return torch.cat(tensors, dim)

    monkeypatch.setattr(scatter_gather, "Gather", Joined)
    # The module: the package has a function of its name.
    data_parallel = importlib.import_module("torch.nn.parallel.data_parallel")
    monkeypatch.setattr(data_parallel, "parallel_apply", in_threads)

    class OnCPU(Replicas):
        def scatter(self, inputs, kwargs, device_ids):
            return tuple(zip(*(one.chunk(2) for one in inputs), strict=True)), ({}, {})

        def replicate(self, module, device_ids):
            return replicate(module, 2)

    def make(model, precision):
        net = OnCPU(model, [CPU, CPU], precision.autocast)
        net.device_ids, net.output_device, net.src_device_obj, net.dim = [0, 1], 0, CPU, 0
        return net
    return make


@pytest.mark.parametrize("parts", [False, True])
def test_replicas_mine_over_the_whole_batch_and_give_the_gradients_of_one(two_replicas, parts):
    torch.manual_seed(0)
    cfg = model_config(MODEL__IF_USE_PCB=parts, MODEL__METRIC_LOSS_TYPE="triplet_center", MODEL__ID_LOSS_TYPE="arcface",
                       MODEL__POOLING_METHOD="GeM")
    model = make_model(cfg, 4).eval()  # a batch norm's statistics are each replica's own
    other, images = copy.deepcopy(model), torch.randn(8, 3, 32, 16)
    criterion = make_loss(cfg, 4, model.feat_dims)
    net = two_replicas(other, Precision(CPU, fp16=False))
    values = []
    for one, module in ((model, model), (other, net)):
        outputs = module(images, PIDS)
        assert outputs["global"].metric_feat.shape == (8, one.base.feat_dim)
        total, _ = criterion(outputs, PIDS)
        total.backward()
        values.append(total.item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        if p.grad is not None:
            assert (p.grad - q.grad).norm() <= 1e-5 * p.grad.norm() + 1e-6, name


def test_the_first_replica_moves_the_models_statistics(two_replicas):
    cfg = model_config()
    model = make_model(cfg, 4).train()
    two_replicas(model, Precision(CPU, fp16=False))(torch.randn(8, 3, 32, 16), PIDS)
    assert model.bottleneck.num_batches_tracked == 1
    assert model.bottleneck.running_mean.abs().max() > 0


def test_every_replica_computes_in_the_chosen_type(two_replicas):
    """Threads do not inherit the type of autocast from the one that starts them."""
    seen = []

    class Layer(torch.nn.Linear):
        def forward(self, x, pids):
            seen.append(super().forward(x).dtype)
            return x

    net = two_replicas(Layer(3, 3), Precision(CPU, fp16=True, dtype="bfloat16"))
    net(torch.randn(4, 3), torch.arange(4))
    assert seen == [torch.bfloat16] * 2


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_two_gpus_train_in_one_process(tiny_data, tmp_path, dtype):
    opts = [*tiny_options(tiny_data, tmp_path / "model"), "MODEL.DEVICE", "cuda", "MODEL.DEVICE_ID", "0,1",
            "SOLVER.FP16", "True", "SOLVER.AMP_DTYPE", dtype, "SOLVER.MAX_EPOCHS", "2", "SOLVER.STEPS", "[]"]
    assert do_train(load_cfg(None, opts)).is_file()

"""Event files of a run, read by TensorBoard."""

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util.tensor_util import make_ndarray

from simjax.runtime import monitor


def test_tensorboard_reads_every_value_with_its_step(tmp_path):
    made = monitor.Monitor(tmp_path)
    made.begin("sim", step=0, steps=100, batch=1)
    made.advance(0)
    for step in (1, 2):
        made.scalars(step, {"generator/loss": step / 2})
    made.end()
    (file,) = (tmp_path / "tensorboard").glob("events.out.tfevents.*")
    found = [
        (event.step, value.tag, make_ndarray(value.tensor).item())
        for event in EventFileLoader(str(file)).Load()
        for value in event.summary.value
        if value.tag == "sim/generator/loss"
    ]
    assert found == [(1, "sim/generator/loss", 0.5), (2, "sim/generator/loss", 1.0)]

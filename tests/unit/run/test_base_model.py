"""The base model is on one mesh at a time."""

from types import SimpleNamespace

from mossa_jax.run.base_model import BaseModel


def test_a_copy_is_kept_for_its_mesh_and_released_before_the_next_is_loaded():
    loads, resident = [], []

    def load(mesh):
        loads.append((mesh, base._model is None))
        resident.append(SimpleNamespace(mesh=mesh))
        return resident[-1]

    base = BaseModel(load)
    assert base.on("a") is base.on("a") is resident[0]
    assert base.on("b") is resident[1] and base.on("a") is resident[2]
    base.release()
    assert base.on("a") is resident[3]
    assert loads == [("a", True), ("b", True), ("a", True), ("a", True)]
